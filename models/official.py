"""Released checkpoints <-> ours: key names, shapes, and the order in which modulation vectors are chunked."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save as dumped
from torch import Tensor

# released pattern -> our name; a pattern matches whole path components
_NAMES = {
    r"video_spatial_pos_embed": "video_patch_pos",
    r"video_temporal_pos_embed": "video_frame_pos",
    r"audio_spatial_pos_embed": "audio_mel_pos",
    r"audio_temporal_pos_embed": "audio_frame_pos",
    r"v_embedder.proj": "video_embed",
    r"a_embedder": "audio_embed",
    r"video_t_embedder": "video_time",
    r"audio_t_embedder": "audio_time",
    r"video_y_embedder.embedding_table": "video_class",
    r"audio_y_embedder.embedding_table": "audio_class",
    r"video_spatial_attn": "spatial_attn",
    r"video_temporal_attn": "temporal_attn",
    r"audio_spatial_attn": "audio_attn",
    r"video_adaLN_modulation.1": "video_adaln",
    r"audio_adaLN_modulation.1": "audio_adaln",
    r"video_scale.1": "video_mlp_adaln",
    r"audio_scale.1": "audio_mlp_adaln",
    r"a_avg_proj.0": "fusion.from_audio",
    r"v_avg_proj.0": "fusion.from_video",
    r"video_final_layer.adaLN_modulation.1": "video_head.adaln",
    r"video_final_layer": "video_head",
    r"audio_final_layer.adaLN_modulation.1": "audio_head.adaln",
    r"audio_final_layer": "audio_head",
}
_FRAME_TABLES = ("video_frame_pos", "audio_frame_pos")  # (1,T,1,D) there, (T,D) here
_TOKEN_TABLES = ("video_patch_pos", "audio_mel_pos")  # (1,1,N,D) there, (N,D) here


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the released key names."""
    return "v_embedder.proj.weight" in state


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released state dict -> ours."""
    ours = {_rename(key, _NAMES): value for key, value in state.items()}
    for key, axis in [(key, 2) for key in _FRAME_TABLES] + [(key, 1) for key in _TOKEN_TABLES]:
        table = ours.get(key)
        if table is not None and table.ndim == 4 and table.shape[0] == table.shape[axis] == 1:
            ours[key] = table.flatten(0, 2)  # (N, D); `FLAV.load` tells if it is missing or has another shape
    return _swap_shift_and_scale(ours)


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of a fusion c model -> the released one, bit for bit."""
    state = _swap_shift_and_scale(state)
    for key in _FRAME_TABLES:
        state[key] = state[key][None, :, None]
    for key in _TOKEN_TABLES:
        state[key] = state[key][None, None]
    back = {ours: released for released, ours in _NAMES.items()}
    return {_rename(key, back): value for key, value in state.items()}


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write our state dict under the released names."""
    path.write_bytes(dumped({key: value.contiguous() for key, value in to_official(state).items()}))


def _rename(key: str, names: dict[str, str]) -> str:
    """Replace the longest name that matches whole components of the key."""
    for old in sorted(names, key=len, reverse=True):
        renamed, count = re.subn(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{names[old]}", key)
        if count:
            return renamed
    return key


def _swap_shift_and_scale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """(scale, shift, gate) <-> (shift, scale, gate) in the feed-forward modulations; its own inverse."""
    state = dict(state)
    for key in state:
        if "_mlp_adaln." in key and state[key].ndim and len(state[key]) % 3 == 0:
            first, second, gate = state[key].chunk(3)
            state[key] = torch.cat([second, first, gate])
    return state


def export(model, folder: Path) -> None:
    """Write a FLAV's config.json and model.safetensors with the released key names; fusion c only.

    Raises:
        ValueError: the model has what the released code does not know.
    """
    config = dict(model._hub_mixin_config)
    blocks, times = config.pop("fusion_blocks", None), config.pop("conditioning_times", None)
    if blocks is not None or times is not None:
        raise ValueError(f"a fusion in blocks {blocks} held at times {times} has no released form; only one in all "
                         "blocks, trained jointly")  # fmt: skip
    if ages := config.pop("memory_ages", None):
        raise ValueError(f"a memory of ages {ages} has no released form; only a model without one")
    fusion, prediction = config.pop("fusion", "c"), config.pop("prediction", "velocity")
    if (fusion, prediction) != ("c", "velocity"):
        raise ValueError(f"fusion {fusion!r} with prediction {prediction!r} has no released form; only c, velocity")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save(model.state_dict(), folder / "model.safetensors")

"""Train a LoRA adapter beside a frozen model (Hu et al., 2021, arXiv 2106.09685): W + alpha/r B A, W frozen.

add_lora(model, rank=8)
save_adapter(model, folder, {"step": 1000})  # ... and later load_adapter(load_model(base), folder)
"""

import copy
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint import Pretrained, fingerprint
from pipeline.adapter import FILES, PREFIX, TARGETS, check_plain, merge
from pipeline.whole import replaced_folder
from training.finetune import trainable_size


def add_lora(model: Pretrained, rank: int, alpha: float | None = None) -> int:
    """Put an adapter W + alpha / rank * B A on the linears of attention and feed-forward; all else is frozen.

    B starts at zero, so the output stays as it is, bit for bit; A is drawn from torch's global generator.

    Args:
        rank: r, rows of A. alpha: None for `rank`, a scale of 1.
    Returns:
        How many numbers are trained.
    Raises:
        ValueError: the rank is below 1, or the model has an adapter already.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds, which sampling does not need

    check_plain(model)
    if rank < 1:
        raise ValueError(f"LoRA rank {rank} is below 1; choose 4 to 64")
    alpha = rank if alpha is None else alpha
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)), model)
    return trainable_size(model, "adding LoRA")


def merged(model: Pretrained) -> Pretrained:
    """A plain copy of a model with LoRA, its adapter added to its weights: what is exported and sampled from."""
    config = _lora_config(model)
    plain = _without_lora(model)
    merge(plain, _adapter(model), config.lora_alpha / config.r)
    return plain


def save_adapter(model: Pretrained, folder: Path, facts: dict) -> None:
    """Write the adapter in peft's format, and base.json: facts, architecture and checksum of what it belongs to.

    The checksum is a SHA-256 over names, shapes and float32 values of all weights of the frozen model, so it tells
    another training of the same architecture apart. The folder is complete or as it was before.

    Args:
        facts: plain numbers and strings to keep with the adapter, such as {"step": 1000, "base": "runs/a/export"}.
    Raises:
        ValueError: the model has no adapter.
    """
    config, plain = _lora_config(model), _without_lora(model)
    base = {"config": plain._hub_mixin_config, "sha256": fingerprint(plain), "facts": facts}
    peft_facts = {**config.to_dict(), "target_modules": list(TARGETS), "inference_mode": True}
    with replaced_folder(folder) as part:
        tensors = {name: x.detach().cpu().contiguous() for name, x in _adapter(model).items()}
        weights, config_file, base_file = (part / name for name in FILES)
        save_file(tensors, weights, metadata={"format": "pt"})
        config_file.write_text(json.dumps(peft_facts, indent=2, sort_keys=True))
        base_file.write_text(json.dumps(base, indent=2))


def _adapter(model: Pretrained) -> dict[str, Tensor]:
    """The adapter's tensors under the names of its file."""
    from peft import get_peft_model_state_dict

    return {PREFIX + name: x for name, x in get_peft_model_state_dict(model).items()}


def _without_lora(model: Pretrained) -> Pretrained:
    """A copy of a model with LoRA as it was before."""
    plain = copy.deepcopy(model)
    for name, layer in [*plain.named_modules()]:
        if hasattr(layer, "base_layer"):
            plain.set_submodule(name, layer.base_layer)
    del plain.peft_config
    return plain


def _lora_config(model: Pretrained):
    if not hasattr(model, "peft_config"):
        raise ValueError("this model has no adapter; call add_lora first")
    return model.peft_config["default"]

"""FLAV: the two-branch transformer of R-FLAV (arXiv 2503.08307), which predicts the velocity of a window of frames."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models import official
from models.checkpoint import Pretrained
from models.fusion import FUSIONS, check_conditioning_times, placed
from models.layers import Attention, Head, Mlp, PatchEmbed, TimeEmbed, add_gated, displacement, modulate, norm, run
from models.text import NULL_TEXT, Text

Modulation = tuple[Tensor, Tensor]  # of the video and the audio branch, (B,T,k D)


class Block(nn.Module):
    """Attention inside each branch, fusion of the branches, feed-forward of each branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, fusion: str):
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.spatial_attn = Attention(dim, num_heads)
        self.temporal_attn = Attention(dim, num_heads)
        self.audio_attn = Attention(dim, num_heads)
        self.video_adaln = nn.Linear(dim, 6 * dim)
        self.audio_adaln = nn.Linear(dim, 3 * dim)
        self.fusion = FUSIONS[fusion](dim, num_heads)
        self.video_mlp = Mlp(dim, hidden)
        self.audio_mlp = Mlp(dim, hidden)
        self.video_mlp_adaln = nn.Linear(dim, 3 * dim)
        self.audio_mlp_adaln = nn.Linear(dim, 3 * dim)

    def modulation(self, c_v: Tensor, c_a: Tensor) -> Modulation:
        """Shifts, scales and gates of the attentions, which depend on the conditions (B,T,D) alone."""
        return self.video_adaln(F.silu(c_v)), self.audio_adaln(F.silu(c_a))

    def forward(
        self, v: Tensor, a: Tensor, c_v: Tensor, c_a: Tensor, causal: bool, modulation: Modulation | None = None
    ) -> tuple[Tensor, Tensor]:
        """v (B,T,L,D), a (B,T,S,D), conditions (B,T,D) -> v, a; causal: nothing in frame k sees a later frame.

        modulation: of these conditions, if it is known already.
        """
        of_video, of_audio = modulation or self.modulation(c_v, c_a)
        shift_s, scale_s, gate_s, shift_t, scale_t, gate_t = of_video.chunk(6, dim=-1)
        x = modulate(norm(v), shift_s, scale_s)
        v = add_gated(v, self.spatial_attn(x.flatten(0, 1)).view_as(x), gate_s)
        x = modulate(norm(v), shift_t, scale_t).transpose(1, 2).contiguous()  # (B,L,T,D): a place is a sequence
        v = add_gated(v, self.temporal_attn(x.flatten(0, 1), causal).view_as(x).transpose(1, 2), gate_t)

        shift, scale, gate = of_audio.chunk(3, dim=-1)
        x = modulate(norm(a), shift, scale)
        a = add_gated(a, self.audio_attn(x.flatten(1, 2), causal).view_as(x), gate)

        v, a, m_v, m_a = self.fusion(v, a, c_v, c_a, causal)
        v = self.feed_forward(v, m_v, self.video_mlp_adaln, self.video_mlp)
        a = self.feed_forward(a, m_a, self.audio_mlp_adaln, self.audio_mlp)
        return v, a

    @staticmethod
    def feed_forward(x: Tensor, m: Tensor, adaln: nn.Linear, mlp: nn.Module) -> Tensor:
        shift, scale, gate = adaln(F.silu(m)).chunk(3, dim=-1)
        return add_gated(x, mlp(modulate(norm(x), shift, scale)), gate)


class FLAV(
    nn.Module,
    Pretrained,
    paper_url="https://arxiv.org/abs/2503.08307",
    tags=["audio-video", "flow-matching"],
):
    """Velocity of a window of T video frames and their sound, each frame at a flow time of its own.

    Args:
        latent_size: side of a video latent; patch_size: side of a token in it; in_channels: channels of it.
        hidden_size, depth, num_heads, mlp_ratio: of the transformer.
        class_dropout_prob: above 0 the class tables have a row for the null label `num_classes`.
        num_classes: 0 for an unconditional model, and for one with text.
        predict_frames: T, the longest window.
        grad_ckpt: recompute each block in the backward pass, memory for time.
        n_mels: M, mel bins; audio_fr: S, mel frames per video frame.
        causal_attn: frame k never sees a later frame (audio: per mel frame), which frame skipping relies on.
        fusion: what passes between the branches, a key of `models.fusion.FUSIONS`.
        fusion_blocks: numbers of the blocks in which it does; None for all.
        conditioning_times: flow times of a given picture and of a given sound, at which a linked model was trained to
            hold them while it makes the other; None for a model that has learnt no such thing.
        prediction: "velocity", or "data" for a network that predicts clean frames (better at tiny widths).
        text_width: D_t of text tokens; above 0 a linear map of the mean of a text's tokens takes the place of a class
            table, and the null text, label NULL_TEXT, is a learned vector: texts are an open list of classes.
    """

    _no_split_modules = ("Block",)  # of which FSDP makes units
    system, rolls, frames, sampling, num_timesteps = "r-flav", True, 10, "logit", 2
    stages = stages_from_weights = stages_holding = ("link",)

    def __init__(
        self,
        latent_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int | None = 0,
        predict_frames: int = 10,
        grad_ckpt: bool = False,
        n_mels: int = 256,
        audio_fr: int = 10,
        causal_attn: bool = True,
        fusion: str = "c",
        prediction: str = "velocity",
        text_width: int | None = 0,
        fusion_blocks: list[int] | None = None,
        conditioning_times: list[float] | None = None,
    ):
        super().__init__()
        _check_architecture(latent_size, patch_size, fusion, prediction)
        passing = placed(fusion_blocks, depth)
        if num_classes and text_width:
            raise ValueError(
                f"{num_classes} classes beside text of width {text_width} are not built; choose one of them"
            )
        D, tokens = hidden_size, (latent_size // patch_size) ** 2
        self.latent_size, self.patch_size, self.in_channels = latent_size, patch_size, in_channels
        self.num_classes, self.predict_frames = num_classes or 0, predict_frames
        self.n_mels, self.audio_fr = n_mels, audio_fr
        self.causal_attn, self.grad_ckpt, self.prediction = causal_attn, grad_ckpt, prediction
        self.text_width = text_width or 0
        self.conditional = bool(self.num_classes or self.text_width)
        self.has_null_label = self.conditional and class_dropout_prob > 0
        self.null_label = NULL_TEXT if self.text_width else self.num_classes
        self.conditioning_times, self.carries = conditioning_times, FUSIONS[fusion].carries
        if conditioning_times is not None:
            check_conditioning_times(conditioning_times)
            self.methods, self.takes = ("held", *self.methods), self.carries

        self.video_embed = PatchEmbed(in_channels, D, patch_size)
        self.audio_embed = nn.Linear(n_mels, D)
        self.video_patch_pos = nn.Parameter(torch.zeros(tokens, D))
        self.video_frame_pos = nn.Parameter(torch.zeros(predict_frames, D))
        self.audio_mel_pos = nn.Parameter(torch.zeros(audio_fr, D))
        self.audio_frame_pos = nn.Parameter(torch.zeros(predict_frames, D))
        self.video_time, self.audio_time = TimeEmbed(D), TimeEmbed(D)
        if self.num_classes:
            rows = self.num_classes + self.has_null_label
            self.video_class, self.audio_class = nn.Embedding(rows, D), nn.Embedding(rows, D)
        if self.text_width:
            self.video_text, self.audio_text = nn.Linear(text_width, D), nn.Linear(text_width, D)
            self.null_text = nn.Parameter(torch.zeros(text_width))
        fusions = [fusion if i in passing else "none" for i in range(depth)]
        self.blocks = nn.ModuleList(Block(D, num_heads, mlp_ratio, one) for one in fusions)
        self.video_head = Head(D, patch_size**2 * in_channels)
        self.audio_head = Head(D, n_mels)
        self.initialise()

    @classmethod
    def least_weights(cls, config: Mapping) -> tuple[int, int]:
        D, p, depth = config["hidden_size"], config["patch_size"], config["depth"]
        rows = [config[name] or 0 for name in ("num_classes", "predict_frames", "n_mels", "audio_fr")]  # of D numbers
        rows += [(config["latent_size"] // p) ** 2, p**2 * config["in_channels"], int(D * config["mlp_ratio"])]
        return D * max(*rows, D * depth), depth

    def initialise(self) -> None:
        """DiT's start: Xavier linears, and zero where a block or the output begins, so a fresh model outputs zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for time in (self.video_time, self.audio_time):
            nn.init.normal_(time.mlp[0].weight, std=0.02)
            nn.init.normal_(time.mlp[2].weight, std=0.02)
        for name, module in self.named_modules():
            if name.endswith(("adaln", "head.linear", "fusion.attn.proj", "cross.proj", "_text")):
                # "_text": words never met say nothing
                nn.init.zeros_(module.weight)

    def set_stage(self, stage: str) -> int:
        """Freeze all but what passes between the branches, for stage "link"; how many numbers learn.

        Raises:
            ValueError: there is no such stage, or the fusion has no weights.
        """
        self.check_stage(stage)
        self.requires_grad_(False)
        for block in self.blocks:
            block.fusion.requires_grad_(True)
        if not (learning := sum(p.numel() for p in self.parameters() if p.requires_grad)):
            raise ValueError(f"stage {stage} trains the fusion alone, and this one has no weights; take --fusion link")
        return learning

    def methods_for(self, given: str) -> tuple[str, ...]:
        """As of `Pretrained`; there is a gradient to guide by where the made side reaches the given one."""
        (made,) = {"picture", "sound"} - {given}
        return tuple(method for method in self.methods if method != "guide" or made in self.carries)

    def compile_blocks(self) -> None:
        """Compile the blocks, one after the other from the same code: slow first calls, then faster ones."""
        for block in self.blocks:
            block.compile()  # no CUDA graphs: outside the main thread they fail (pytorch issue 123177)

    @property
    def frame_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Shapes of one frame: video latent (C,H,W), mel (S,M)."""
        return (self.in_channels, self.latent_size, self.latent_size), (self.audio_fr, self.n_mels)

    def forward(
        self,
        v: Tensor,
        a: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        t_a: Tensor | None = None,
        y_a: Tensor | None = None,
        text: Text | None = None,
        prompts: Tensor | None = None,
        conditions: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Velocities dv, da (Eq. 3: data minus noise) of the noised frames v, a.

        Args:
            v: (B,T,C,H,W) video latents at time t; T may be shorter than the window, positions are a prefix.
            a: (B,T,S,M) log-mel at time t_a.
            t: (B,T) flow time in [0, 1], 0 noise, 1 data; t_a: of the sound where it differs.
            y: (B,) or (B,T) label, a class or a row of `prompts`, `null_label` for none, None unconditional; y_a: of
                the sound where it differs.
            text: of each clip, for all its frames, or of each frame; or prompts: (P,D_t) means of tokens, which y and
                y_a choose from.
            conditions: what `conditions` gave for these times and labels, if they were met before.
        Raises:
            ValueError: a shape that does not fit this model, labels without classes, or text without text.
        """
        self._check(v, a, t, y, text, prompts)
        t_a = t if t_a is None else t_a
        T = v.shape[1]
        if conditions is None:
            c_v, c_a = self._embedded(t, y, t_a, y_a, text, prompts)
            of_blocks, of_heads = [None] * len(self.blocks), (None, None)
        else:
            c_v, c_a, of_blocks, of_heads = self._parted(*conditions)

        x = self.video_embed(v) + self.video_frame_pos[:T, None] + self.video_patch_pos
        z = self.audio_embed(a) + self.audio_frame_pos[:T, None] + self.audio_mel_pos
        for block, modulation in zip(self.blocks, of_blocks):
            x, z = run(self.grad_ckpt, block, x, z, c_v, c_a, self.causal_attn, modulation)

        p, side = self.patch_size, self.latent_size // self.patch_size
        dv = rearrange(
            self.video_head(x, c_v, of_heads[0]), "b t (h w) (p q c) -> b t c (h p) (w q)", h=side, w=side, p=p, q=p
        )  # channel fastest inside a token
        da = self.audio_head(z, c_a, of_heads[1])
        if self.prediction == "data":
            return displacement(dv, v, t), displacement(da, a, t_a)
        return dv, da

    def conditions(
        self,
        t: Tensor,
        y: Tensor | None = None,
        t_a: Tensor | None = None,
        y_a: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What `forward` computes from these times and labels alone, for calls that meet them again.

        Returns:
            (B,T,K) of each branch, side by side: its condition, and the modulation of every block and of the head.
        """
        c_v, c_a = self._embedded(t, y, t if t_a is None else t_a, y_a, None, prompts)
        of_v, of_a = zip(*(block.modulation(c_v, c_a) for block in self.blocks))
        video, audio = (c_v, *of_v, self.video_head.modulation(c_v)), (c_a, *of_a, self.audio_head.modulation(c_a))
        return torch.cat(video, dim=-1), torch.cat(audio, dim=-1)

    def _parted(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, list[Modulation], Modulation]:
        """c_v, c_a, and the modulation of blocks and heads, from `conditions`."""
        widths = ([linear.out_features for linear in (block.video_adaln, block.audio_adaln)] for block in self.blocks)
        D, (of_v, of_a) = self.video_head.adaln.in_features, zip(*widths)
        c_v, *of_v, head_v = video.split([D, *of_v, 2 * D], dim=-1)
        c_a, *of_a, head_a = audio.split([D, *of_a, 2 * D], dim=-1)
        return c_v, c_a, list(zip(of_v, of_a)), (head_v, head_a)

    def _embedded(self, t, y, t_a, y_a, text: Text | None, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Time embedding, and that of class or text where there is one: (B,T,D) of each branch."""
        c_v, c_a, y_a = self.video_time(t), self.audio_time(t_a), y if y_a is None else y_a
        if self.num_classes:
            return c_v + self._label(self.video_class, y, t), c_a + self._label(self.audio_class, y_a, t)
        if self.text_width:
            of_v, of_a = (self._said(label, text, prompts, len(t)) for label in (y, y_a))
            return c_v + self.video_text(of_v), c_a + self.audio_text(of_a)
        return c_v, c_a

    def _said(self, y: Tensor | None, text: Text | None, prompts: Tensor | None, clips: int) -> Tensor:
        """Mean of the tokens that a frame's text has, (B,1,D_t) or (B,T,D_t); the null text where there is none."""
        null = self.null_text
        if text is not None:
            said = torch.where(text.there.unsqueeze(-1), text.pooled().to(null.dtype), null)
            return said if said.ndim == 3 else said.unsqueeze(1)
        if y is None or prompts is None:
            return null.repeat(clips, 1, 1)
        return torch.cat([prompts.to(null.dtype), null.unsqueeze(0)])[y if y.ndim == 2 else y.unsqueeze(1)]

    def _label(self, table: nn.Embedding, y: Tensor | None, t: Tensor) -> Tensor:
        """Class condition, (B,1,D) or (B,T,D)."""
        if y is None:
            if not self.has_null_label:
                raise ValueError(
                    f"y is None, but this model of {self.num_classes} classes was built without a null label "
                    "(class_dropout_prob 0); give a label per clip"
                )
            y = torch.full((t.shape[0],), self.num_classes, device=t.device)
        return table(y if y.ndim == 2 else y.unsqueeze(1))

    def _check(self, v: Tensor, a: Tensor, t: Tensor, y: Tensor | None, text: Text | None, prompts) -> None:
        video, audio = self.frame_shapes
        B, T = v.shape[:2]
        if v.shape[2:] != video or a.shape != (B, T, *audio) or t.shape != (B, T):
            raise ValueError(
                f"v {tuple(v.shape)}, a {tuple(a.shape)}, t {tuple(t.shape)} do not fit this model; it takes "
                f"v (B, T, {', '.join(map(str, video))}), a (B, T, {', '.join(map(str, audio))}), t (B, T)"
            )
        if T > self.predict_frames:
            raise ValueError(f"{T} frames are more than the window of {self.predict_frames} this model was built for")
        if y is not None and not self.conditional:
            raise ValueError("y was given to an unconditional model (num_classes 0); leave it out")
        given = prompts if text is None else text.tokens
        if given is not None and given.shape[-1] != self.text_width:
            raise ValueError(
                f"text of width {given.shape[-1]} does not fit this model, which takes "
                f"{f'width {self.text_width}' if self.text_width else 'no text'}; use the encoder it was trained with"
            )

    def load(self, state: dict[str, Tensor], source: str = "state") -> None:
        """Load weights by our names or the released ones, as strictly as `Pretrained.load`."""
        super().load(official.to_ours(state) if official.is_official(state) else state, source)

    def export_official(self, folder: Path) -> None:
        """Write config.json and model.safetensors with the released key names; fusion c only.

        Raises:
            ValueError: the model has a fusion, a place of it or a prediction that the released code does not know.
        """
        config = dict(self._hub_mixin_config)
        blocks, times = config.pop("fusion_blocks", None), config.pop("conditioning_times", None)
        if blocks is not None or times is not None:
            raise ValueError(f"a fusion in blocks {blocks} held at times {times} has no released form; only one in all "
                             "blocks, trained jointly")  # fmt: skip
        fusion, prediction = config.pop("fusion", "c"), config.pop("prediction", "velocity")
        if (fusion, prediction) != ("c", "velocity"):
            raise ValueError(f"fusion {fusion!r} with prediction {prediction!r} has no released form; only c, velocity")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        official.save(self.state_dict(), folder / "model.safetensors")


def _check_architecture(latent_size: int, patch_size: int, fusion: str, prediction: str) -> None:
    if latent_size % patch_size:
        raise ValueError(
            f"latent size {latent_size} is not a multiple of patch size {patch_size}; choose another preset"
        )
    if fusion not in FUSIONS:
        raise ValueError(f"fusion {fusion!r} is unknown; choose one of {', '.join(FUSIONS)}")
    if prediction not in ("velocity", "data"):
        raise ValueError(f"prediction {prediction!r} is unknown; choose velocity or data")


def _preset(depth: int, hidden_size: int, num_heads: int, patch_size: int, **more) -> dict:
    return dict(depth=depth, hidden_size=hidden_size, num_heads=num_heads, patch_size=patch_size, **more)


FLAV_presets = {
    **{f"FLAV-XL/{p}": _preset(28, 1152, 16, p) for p in (2, 4, 8)},
    "FLAV-L/1": _preset(24, 1024, 16, 1),  # the released table really has four more layers here than in L/2, 4, 8
    **{f"FLAV-L/{p}": _preset(20, 1024, 16, p) for p in (2, 4, 8)},
    **{f"FLAV-B/{p}": _preset(12, 768, 12, p) for p in (1, 2, 4, 8)},
    **{f"FLAV-S/{p}": _preset(12, 384, 6, p) for p in (2, 4, 8)},
    "FLAV-tiny": _preset(3, 128, 4, 8, mlp_ratio=2.0, prediction="data"),  # the demo's: one token per 8x8 latent
}
FLAV.presets = FLAV_presets

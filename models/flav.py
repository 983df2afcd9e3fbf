"""FLAV: the two-branch transformer of R-FLAV (arXiv 2503.08307), which predicts the velocity of a window of frames."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from models import official
from models.checkpoint import Pretrained
from models.flav_block import Block, Modulation
from models.fusion import FUSIONS, check_conditioning_times, placed
from models.layers import Head, PatchEmbed, Recall, Shown, TimeEmbed, adaptive, compile_each, displacement, run
from models.text import NULL_TEXT, Text

Kept = list[dict[str, Shown]]  # of each block, what a memory shows to the window


class Conditioned(NamedTuple):
    """What depends on times and labels alone.

    c_v, c_a: conditions (B,T,D). blocks, heads: the vectors made of them, (B,T,1,D), if they are known already. rows:
    all this side by side, as `FLAV.conditions` gives it.
    """

    c_v: Tensor
    c_a: Tensor
    blocks: Iterable[Modulation | None] = repeat(None)
    heads: tuple[tuple[Tensor, ...] | None, ...] = (None, None)
    rows: tuple[Tensor, Tensor] | None = None

    def after(self, lead: int) -> "Conditioned":
        """That of the heads, of the frames after some."""
        heads = (of and tuple(x[:, lead:] for x in of) for of in self.heads)
        return Conditioned(self.c_v[:, lead:], self.c_a[:, lead:], (), tuple(heads))


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
        memory_ages: how long before the window's first frame, in frames, the frames of a memory were, which the window
            sees as clean leading frames; None for no memory. Frames that are not there yet are noise at t = 0.
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
        memory_ages: list[int] | None = None,
    ):
        super().__init__()
        self.memory_ages = _ages(memory_ages, causal_attn)
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
        if self.memory_ages:
            self.video_memory_pos = nn.Parameter(torch.zeros(len(self.memory_ages), D))
            self.audio_memory_pos = nn.Parameter(torch.zeros(len(self.memory_ages), D))
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
        compile_each(self.blocks)

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
        conditions: Conditioned | None = None,
        memory: bool = False,
        kept: Kept | None = None,
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
            conditions: what `parted` gave for these times and labels, if they were met before.
            memory: whether the first K frames are the memory's, oldest first; there are velocities of the others alone.
            kept: what `remember` gave for the memory of these clips, instead of its frames.
        Raises:
            ValueError: a shape that does not fit this model, labels without classes, text without text, or no memory
                for a model that has one.
        """
        lead = len(self.memory_ages) if memory else 0
        self._check(v, a, t, y, text, prompts, lead, memory or kept is not None)
        t_a = t if t_a is None else t_a
        conditioned = conditions or Conditioned(*self._embedded(t, y, t_a, y_a, text, prompts))
        x, z = self._through_blocks(v, a, conditioned, lead, None if kept is None else map(Recall, kept))
        if lead:
            v, a, t, t_a, x, z = (y[:, lead:] for y in (v, a, t, t_a, x, z))
            conditioned = conditioned.after(lead)
        c_v, c_a, _, (of_v, of_a), _ = conditioned
        p, side = self.patch_size, self.latent_size // self.patch_size
        dv = rearrange(
            self.video_head(x, c_v, of_v), "b t (h w) (p q c) -> b t c (h p) (w q)", h=side, w=side, p=p, q=p
        )  # channel fastest inside a token
        da = self.audio_head(z, c_a, of_a)
        if self.prediction == "data":
            return displacement(dv, v, t), displacement(da, a, t_a)
        return dv, da

    def remember(
        self,
        v: Tensor,
        a: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        prompts: Tensor | None = None,
        conditions: Conditioned | None = None,
    ) -> Kept:
        """What a memory shows to the window, whatever that is: keys and values of each attention over time.

        Args:
            v (B,K,C,H,W), a (B,K,S,M): its frames, oldest first. t (B,K): 1 where they are clean, 0 where they are
                noise. y, prompts, conditions: as of `forward`.
        """
        self._check(v, a, t, y, None, prompts, len(self.memory_ages), True)
        recalls = [Recall() for _ in self.blocks]
        conditioned = conditions or Conditioned(*self._embedded(t, y, t, None, None, prompts))
        self._through_blocks(v, a, conditioned, len(self.memory_ages), recalls, to_the_end=False)
        return [recall.kept for recall in recalls]

    def _through_blocks(
        self,
        v: Tensor,
        a: Tensor,
        conditioned: Conditioned,
        lead: int,
        recalls: Iterable[Recall] | None,
        to_the_end: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B,T,L,D), (B,T,S,D) after all blocks, of frames of which `lead` are those of a memory.

        to_the_end: if not, the feed-forwards of the last block are left out, which show nothing to other frames.
        """
        c_v, c_a, of_blocks, *_ = conditioned
        T, at = v.shape[1] - lead, None
        of_frames = self.video_frame_pos[:T], self.audio_frame_pos[:T]
        if lead:
            of_memory = self.video_memory_pos, self.audio_memory_pos
            of_frames = tuple(torch.cat(pair) for pair in zip(of_memory, of_frames))
            at = _numbers(self.memory_ages, T, v.device)
        x = self.video_embed(v) + of_frames[0][:, None] + self.video_patch_pos
        z = self.audio_embed(a) + of_frames[1][:, None] + self.audio_mel_pos
        for block, modulation, recall in zip(self.blocks, of_blocks, recalls or repeat(None)):
            feeds = to_the_end or block is not self.blocks[-1]
            x, z = run(self.grad_ckpt, block, x, z, c_v, c_a, self.causal_attn, modulation, at, recall, feeds)
        return x, z

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

    def parted(self, video: Tensor, audio: Tensor) -> Conditioned:
        """What `conditions` has side by side, (B,T,K) of each branch, as blocks and heads take it."""
        widths = ([linear.out_features for linear in (block.video_adaln, block.audio_adaln)] for block in self.blocks)
        D, (of_v, of_a) = self.video_head.adaln.in_features, zip(*widths)
        c_v, *of_v, head_v = video.split([D, *of_v, 2 * D], dim=-1)
        c_a, *of_a, head_a = audio.split([D, *of_a, 2 * D], dim=-1)
        vectors = (block.vectors(*of) for block, *of in zip(self.blocks, of_v, of_a))
        blocks = [tuple(tuple(map(_by_itself, of)) for of in both) for both in vectors]
        return Conditioned(c_v, c_a, blocks, (adaptive(head_v, 2), adaptive(head_a, 2)), (video, audio))

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

    def _check(
        self, v: Tensor, a: Tensor, t: Tensor, y: Tensor | None, text: Text | None, prompts, lead: int, memory: bool
    ) -> None:
        video, audio = self.frame_shapes
        B, T = v.shape[:2]
        if v.shape[2:] != video or a.shape != (B, T, *audio) or t.shape != (B, T):
            raise ValueError(
                f"v {tuple(v.shape)}, a {tuple(a.shape)}, t {tuple(t.shape)} do not fit this model; it takes "
                f"v (B, T, {', '.join(map(str, video))}), a (B, T, {', '.join(map(str, audio))}), t (B, T)"
            )
        if memory != bool(self.memory_ages):
            told = f"a memory of ages {self.memory_ages}; give it" if self.memory_ages else "no memory; leave it out"
            raise ValueError(f"this model has {told}")
        if T - lead > self.predict_frames:
            raise ValueError(
                f"{T - lead} frames are more than the window of {self.predict_frames} this model was built for"
            )
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
            ValueError: the model has what the released code does not know: a memory, or another fusion or prediction.
        """
        official.export(self, folder)


def _check_architecture(latent_size: int, patch_size: int, fusion: str, prediction: str) -> None:
    if latent_size % patch_size:
        raise ValueError(
            f"latent size {latent_size} is not a multiple of patch size {patch_size}; choose another preset"
        )
    if fusion not in FUSIONS:
        raise ValueError(f"fusion {fusion!r} is unknown; choose one of {', '.join(FUSIONS)}")
    if prediction not in ("velocity", "data"):
        raise ValueError(f"prediction {prediction!r} is unknown; choose velocity or data")


def _ages(ages: Sequence[int] | None, causal: bool) -> tuple[int, ...]:
    """Ages of a memory, rising.

    Raises:
        ValueError: they are not whole numbers above 0, each once, or frames see later ones.
    """
    ages = tuple(ages or ())
    if any(type(age) is not int or age < 1 for age in ages) or len({*ages}) < len(ages):
        raise ValueError(f"memory ages {list(ages)} are not whole numbers above 0, each once; take 1 8 9 16 17 28")
    if ages and not causal:
        raise ValueError("a memory that sees the window would change with it; leave --no-causal-attn out")
    return tuple(sorted(ages))


def _by_itself(x: Tensor) -> Tensor:
    """A copy that is part of nothing: blocks are compiled anew for each place that a view may begin at."""
    return x.clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _numbers(ages: tuple[int, ...], T: int, device: torch.device) -> Tensor:
    """(K + T,) numbers of the frames of a memory and of a window; kept, since a copy makes a device wait."""
    return torch.tensor([-age for age in reversed(ages)] + [*range(T)], device=device)


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

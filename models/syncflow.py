"""SyncFlow (arXiv 2412.15220): a tower of pictures and a tower of sound that reads it, for whole clips from a text."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from einops import rearrange
from torch import Tensor, nn

from models.checkpoint import Pretrained
from models.layers import (
    CrossAttention,
    Mlp,
    PatchEmbed,
    TextBlock,
    TimeEmbed,
    begin_linears,
    compile_each,
    displacement,
    grid_positions,
    norm,
    run,
)
from models.text import NULL_TEXT, Text, with_null

STAGES = {  # of training -> the parts of the model that learn in it
    "video": ("video",),
    "audio": ("sound",),
    "joint": ("video", "sound"),
}
TAPS = ("temporal", "spatial")
POSITIONS_PER_SECOND = 50  # of rotary positions: the paper's sound tokens are one apart


class Part(TextBlock):
    """Self-attention, cross-attention to the text, feed-forward; modulated by a table added to what the time gives."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(self, x: Tensor, c: Tensor, text: Text, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B,R,L,D), c (B,6,D) of the time, text of each clip -> x, and what the self-attention in each row gave."""
        return self.modulated(x, self.table + c, text, at)


class VideoLayer(nn.Module):
    """A part in which the patches of a frame see each other, then one in which the frames of a patch do."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.spatial, self.temporal = (Part(dim, num_heads) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor, text: Text, at: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B,T,L,D), c (B,6,D), text of each clip, at (T,) -> x, and the self-attentions' outputs (B,T,L,D)."""
        x, in_space = self.spatial(x, c, text, None)
        x, in_time = self.temporal(x.transpose(1, 2).contiguous(), c, text, at)
        return x.transpose(1, 2), {"spatial": in_space, "temporal": in_time.transpose(1, 2)}


class Adaptor(nn.Module):
    """What a layer of sound hears of a picture: h = Linear(LayerNorm(SelfAttn(F))), over the patches of all frames.

    Args:
        pool_frames: take the mean of each frame first, so one token a frame: cheap enough for a CPU.
    """

    def __init__(self, dim: int, num_heads: int, pool_frames: bool):
        super().__init__()
        self.pool_frames = pool_frames
        self.attn, self.norm, self.linear = CrossAttention(dim, num_heads), nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, tap: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """F (B,T,L,D) of frames at positions (T,) -> tokens (B,K,D) and their positions (K,)."""
        x = tap.mean(2, keepdim=True) if self.pool_frames else tap
        at = at.repeat_interleave(x.shape[2])
        return self.linear(self.norm(self.attn(x.flatten(1, 2), at=at))), at


class SoundLayer(nn.Module):
    """Self-attention, cross-attention to picture and time, feed-forward, a LayerNorm after each."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.attn, self.cross = (CrossAttention(dim, num_heads) for _ in range(2))
        self.mlp = Mlp(dim, 4 * dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, a: Tensor, at: Tensor, heard: Tensor, heard_at: Tensor, mask: Tensor | None) -> Tensor:
        """a (B,N,D) at positions (N,), heard (B,K,D) at (K,) -> a."""
        a = self.norms[0](a + self.attn(a, at=at))
        a = self.norms[1](a + self.cross(a, heard, at, heard_at, mask))
        return self.norms[2](a + self.mlp(a))


class SyncFlow(
    nn.Module,
    Pretrained,
    paper_url="https://arxiv.org/abs/2412.15220",
    tags=["text-to-audio-video", "flow-matching"],
):
    """Velocities of a clip's picture and sound at one flow time, from a text.

    The sound reads the picture and not the reverse. The same weights run at any size of picture and any length.

    Args:
        in_channels, patch_size: of the video latents. latent_size: height and width of those of training, over which
            the places of other sizes are spread. audio_channels: M of sound tokens, of which `audio_patch` that
            follow each other are one inside. text_width: of text tokens.
        hidden_size, depth, num_heads: of both towers.
        video_rate, audio_rate: latent frames and sound tokens per second, by which their times agree.
        adaptor: whether the sound hears the picture. audio_text: whether it hears the text itself, too.
        tap: which self-attention of a video layer the sound hears. pool_frames: as of `Adaptor`.
        grad_ckpt: recompute each layer in the backward pass, one of sound together with its adaptor.
        prediction: "velocity", or "data" for networks that predict clean clips (better at tiny widths).
    """

    _no_split_modules = ("VideoLayer", "SoundLayer", "Adaptor")  # of which FSDP makes units
    system, rolls, frames, sampling = "syncflow", False, 32, "uniform"
    num_timesteps, cfg_scale, takes, methods = 50, 6.0, ("picture",), ("line",)
    stages, stages_from_weights = tuple(STAGES), ("audio",)
    num_classes, conditional, has_null_label, null_label = 0, True, True, NULL_TEXT

    def __init__(
        self,
        in_channels: int = 4,
        latent_size: int = 32,
        patch_size: int = 2,
        audio_channels: int = 128,
        audio_patch: int = 1,
        text_width: int = 4096,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        video_rate: float = 4.0,
        audio_rate: float = 50.0,
        adaptor: bool = True,
        audio_text: bool = False,
        tap: str = "temporal",
        pool_frames: bool = False,
        grad_ckpt: bool = False,
        prediction: str = "velocity",
    ):
        super().__init__()
        if tap not in TAPS or prediction not in ("velocity", "data"):
            raise ValueError(f"tap {tap!r} with prediction {prediction!r} is unknown; choose {' or '.join(TAPS)}, and "
                             "velocity or data")  # fmt: skip
        D = hidden_size
        self.in_channels, self.latent_size, self.patch_size = in_channels, latent_size, patch_size
        self.audio_channels, self.audio_patch, self.text_width = audio_channels, audio_patch, text_width
        self.video_rate, self.audio_rate, self.tap, self.audio_text = video_rate, audio_rate, tap, audio_text
        self.grad_ckpt, self.prediction, self.sound_learns = grad_ckpt, prediction, True
        self.video = nn.ModuleDict({
            "embed": PatchEmbed(in_channels, D, patch_size),
            "time": TimeEmbed(D),
            "modulation": nn.Linear(D, 6 * D),
            "text": nn.Sequential(nn.Linear(text_width, D), nn.GELU(approximate="tanh"), nn.Linear(D, D)),
            "layers": nn.ModuleList(VideoLayer(D, num_heads) for _ in range(depth)),
            "head": nn.Linear(D, patch_size**2 * in_channels),
        })  # fmt: skip
        self.video.register_parameter("null_text", nn.Parameter(torch.zeros(text_width)))
        self.video.register_parameter("head_table", nn.Parameter(torch.randn(2, D) / D**0.5))
        self.sound = nn.ModuleDict({
            "embed": nn.Linear(audio_patch * audio_channels, D),
            "time": TimeEmbed(D),
            "layers": nn.ModuleList(SoundLayer(D, num_heads) for _ in range(depth)),
            "head": nn.Linear(D, audio_patch * audio_channels),
        })  # fmt: skip
        if adaptor:
            self.sound["adaptors"] = nn.ModuleList(Adaptor(D, num_heads, pool_frames) for _ in range(depth))
        if audio_text:
            self.sound["text"] = nn.Linear(text_width, D)
        self.initialise()

    @classmethod
    def least_weights(cls, config: Mapping) -> tuple[int, int]:
        D, depth = config["hidden_size"], config["depth"]
        rows = (config["patch_size"] ** 2 * config["in_channels"], config["audio_channels"], config["text_width"])
        return D * max(*rows, D * depth), depth

    def initialise(self) -> None:
        """DiT's start: Xavier linears; zero are the modulation, the text's way in, and the outputs."""
        begin_linears(self, zero=(".modulation", "text_attn.proj", ".head"))

    def forward(
        self,
        v: Tensor,
        a: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        t_a: Tensor | None = None,
        y_a: Tensor | None = None,
        text: Text | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Velocities dv, da (data minus noise) of the noised clip v, a.

        Args:
            v: (B,T,C,H,W) video latents, H and W any multiples of the patch. a: (B,N,M) sound tokens, N any multiple of
                theirs; T of any length. t: (B,) flow time, 0 noise, 1 data; t_a: of the sound where it differs. y, y_a:
                None, it has no classes. text: of each clip; None, or a row without tokens, is the null text.
        Raises:
            ValueError: a shape that does not fit this model.
        """
        self._check(v, a, t, text)
        t_a = t if t_a is None else t_a
        tokens = with_null(text, self.video.null_text, len(v))
        dv, taps = self._see(v, t, tokens)  # of a frozen tower autograd keeps nothing
        with nullcontext() if self.sound_learns else torch.no_grad():  # else its loss would reach the picture's tower
            da = self._hear(a, t_a, taps, tokens)
        if self.prediction == "data":
            return displacement(dv, v, t), displacement(da, a, t_a)
        return dv, da

    def _see(self, v: Tensor, t: Tensor, tokens: Text) -> tuple[Tensor, list[Tensor]]:
        """The picture's velocity, and what its layers show the sound, (B,T,L,D) each."""
        tower, p = self.video, self.patch_size
        T, h, w = v.shape[1], v.shape[3] // p, v.shape[4] // p
        x = tower["embed"](v)
        x = x + grid_positions(h, w, x.shape[-1], x.device, self.latent_size // p).to(x.dtype)
        time = tower["time"](t)
        c = tower["modulation"](nn.functional.silu(time)).unflatten(-1, (6, -1))  # one for all layers: adaLN-single
        text = Text(tower["text"](tokens.tokens), tokens.mask)
        at, taps = self._frame_positions(T, x.device), []
        for layer in tower["layers"]:
            x, shown = run(self.grad_ckpt, layer, x, c, text, at)
            taps.append(shown[self.tap])
        shift, scale = (tower.head_table + time.unsqueeze(1)).unsqueeze(2).unsqueeze(2).unbind(1)  # (B,1,1,D)
        dv = tower["head"](norm(x) * (1 + scale) + shift)
        return rearrange(dv, "b t (h w) (p q c) -> b t c (h p) (w q)", h=h, w=w, p=p, q=p), taps

    def _hear(self, a: Tensor, t: Tensor, taps: list[Tensor], tokens: Text) -> Tensor:
        """The sound's velocity, from what the picture's layers show."""
        tower = self.sound
        x, time = tower["embed"](a.unflatten(1, (-1, self.audio_patch)).flatten(2)), tower["time"](t).unsqueeze(1)
        at = torch.arange(x.shape[1], device=x.device) * self.audio_patch / self.audio_rate * POSITIONS_PER_SECOND
        frames_at = self._frame_positions(taps[0].shape[1], x.device)
        more, more_at, more_mask = [time], [at.new_zeros(1)], [tokens.mask.new_ones(len(x), 1)]
        if self.audio_text:
            more.append(tower["text"](tokens.tokens))
            more_at.append(at.new_zeros(tokens.mask.shape[1]))
            more_mask.append(tokens.mask)
        more = torch.cat(more, 1), torch.cat(more_at), torch.cat(more_mask, 1)
        for i in range(len(tower["layers"])):
            tap = taps[i] if "adaptors" in tower else None  # else it would be kept to recompute nothing
            x = run(self.grad_ckpt, self._listen, i, x, at, tap, frames_at, *more)
        return tower["head"](x).unflatten(-1, (self.audio_patch, -1)).flatten(1, 2)

    def _listen(
        self,
        i: int,
        x: Tensor,
        at: Tensor,
        tap: Tensor | None,
        tap_at: Tensor,
        more: Tensor,
        more_at: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Layer i of sound with its adaptor, so that both are recomputed together: x (B,N,D) at (N,) -> x.

        Args:
            tap: (B,T,L,D) that a layer of pictures shows, at (T,); None without adaptors.
            more: (B,K,D) that is heard beside it, at (K,). mask: (B,K) bool, which of that there are.
        """
        if tap is not None:
            shown, shown_at = self.sound["adaptors"][i](tap, tap_at)
            more, more_at = torch.cat([shown, more], 1), torch.cat([shown_at, more_at])
            mask = torch.cat([mask.new_ones(shown.shape[:2]), mask], 1)
        return self.sound["layers"][i](x, at, more, more_at, mask)

    def _frame_positions(self, T: int, device: torch.device) -> Tensor:
        return torch.arange(T, device=device) / self.video_rate * POSITIONS_PER_SECOND

    def _check(self, v: Tensor, a: Tensor, t: Tensor, text: Text | None) -> None:
        B, C, p = len(v), self.in_channels, self.patch_size
        fits = v.ndim == 5 and v.shape[2] == C and a.ndim == 3 and a.shape[::2] == (B, self.audio_channels)
        if not fits or t.shape != (B,) or v.shape[3] % p or v.shape[4] % p or a.shape[1] % self.audio_patch:
            raise ValueError(
                f"v {tuple(v.shape)}, a {tuple(a.shape)}, t {tuple(t.shape)} do not fit this model; it takes v (B, T, "
                f"{C}, H, W) of sides that {p} divides, a (B, N, {self.audio_channels}) of N that {self.audio_patch} "
                "divides, t (B,)"
            )
        if text is not None and text.tokens.shape[-1] != self.text_width:
            raise ValueError(
                f"text of width {text.tokens.shape[-1]} does not fit this model, which takes width {self.text_width}; "
                "use the encoder it was trained with"
            )

    def compile_blocks(self) -> None:
        """Compile the layers, one after the other from the same code: slow first calls, then faster ones."""
        compile_each((*self.video["layers"], *self.sound["layers"]))

    def set_stage(self, stage: str) -> int:
        """Let the parts of a stage of training learn, and freeze the others; how many numbers learn.

        Raises:
            ValueError: there is no such stage.
        """
        self.check_stage(stage)
        for name, part in self.named_children():
            part.requires_grad_(name in STAGES[stage])
        self.sound_learns = "sound" in STAGES[stage]
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


SyncFlow_presets = {
    "SyncFlow-XL/2": dict(hidden_size=1152, depth=28, num_heads=16, patch_size=2),
    "SyncFlow-tiny": dict(
        hidden_size=128, depth=3, num_heads=4, patch_size=2, audio_patch=5, pool_frames=True, prediction="data"
    ),
}
SyncFlow.presets = SyncFlow_presets
SyncFlow.variants = {
    "no-adaptor": dict(adaptor=False),
    "text-only": dict(adaptor=False, audio_text=True),  # what the sound hears
    "spatial-tap": dict(tap="spatial"),
}

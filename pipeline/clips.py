"""ClipPipeline: a model of whole clips with its codecs, which makes sound and picture of a text together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from diffusion.clip import Given, sample_clip
from diffusion.guidance import clip_guided
from diffusion.noise import Modality, frame_noise
from models.checkpoint import Pretrained
from models.codec import check_size
from models.text import NULL_TEXT, Text, TextEncoder, load_text_encoder, padded
from pipeline.avcodec import ClipCodec
from pipeline.prompts import Prompts


@dataclass(frozen=True)
class Clips:
    """Whole clips: frames uint8 (B,T,H,W,3), wave (B, T * samples_per_frame), and the latents they came from."""

    frames: Tensor
    wave: Tensor
    v: Tensor
    a: Tensor


class ClipPipeline:
    """A model of whole clips with its codecs.

    Args:
        model: of a system that does not roll. codec: of its checkpoint.
    """

    def __init__(
        self,
        model: Pretrained,
        codec: ClipCodec,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        self.codec = codec.to(device)
        self.spec, self.device, self.dtype = codec.spec, torch.device(device), dtype
        self.prompts = TokenPrompts(self._text_encoder, model.text_width)
        told = {name: value for name, value in codec.facts.items() if hasattr(model, name)}  # any size suits some
        wrong = [f"{name} {getattr(model, name)}, the codecs {value}" for name, value in told.items()
                 if getattr(model, name) != value]  # fmt: skip
        if wrong:
            raise ValueError(f"the model has {', '.join(wrong)}; take the codecs that it was trained with")

    def _text_encoder(self) -> TextEncoder:
        if not self.spec.text_encoder:
            raise ValueError("this checkpoint does not say what reads its texts; export it with train.py")
        return load_text_encoder(self.spec.text_encoder, self.spec.text_source).to(self.device)

    @property
    def cfg_scale(self) -> float:
        """Guidance where none is given: the paper's."""
        return self.model.cfg_scale

    def label(self, y: int | str | Sequence[str] | Tensor | None) -> Tensor:
        """Labels of texts, by which `sample` takes them too; None, and a text without a word, is the null text."""
        return self.prompts.labels(y)

    def text(self, labels: Tensor) -> Text:
        """Text of labels (B,), on the device."""
        return self.prompts.text(labels).to(self.device, self.dtype)

    @torch.no_grad()
    def sample(
        self,
        samples: list[int],
        frames: int | None = None,
        y: int | str | Sequence[str] | Tensor | None = None,
        seed: int | Tensor = 0,
        num_timesteps: int | None = None,
        cfg_scale: float | None = None,
        negative: str | Sequence[str] = "",
        picture: Tensor | None = None,
        size: tuple[int, int] | None = None,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Clips:
        """Whole clips; each depends on (seed, its number) and not on its neighbours in the batch.

        Args:
            samples: number of each clip under the seed, (B,). frames: length of all; that of training if not given.
            y: one text for all or one for each, or their labels. seed: of all, or (B,).
            num_timesteps: Euler steps of the whole clip. cfg_scale, negative: guidance, and what it leads away from.
            picture: (B,T',C,h,w) latents that are given, moved along their own line (SyncFlow's zero-shot V2A).
            size: height and width of the picture, px; those of training if not given.
            progress: wraps the range of steps, as tqdm does.
        Raises:
            ValueError: a length or size that codec or model does not take, or a text that the model cannot read.
        """
        size = size or (self.spec.image_size, self.spec.image_size)
        shapes = clip_shapes(self.model, self.codec, frames or self.spec.clip_frames, *size)
        if picture is not None and picture.shape[1:] != shapes[0]:
            raise ValueError(f"the given picture {tuple(picture.shape[1:])} is not {shapes[0]}, which frames and size "
                             "ask for; give them as it is")  # fmt: skip
        v, a = self._noise(samples, shapes, seed)
        given = None if picture is None else Given(picture.to(v), v)
        velocity = self.velocity(len(samples), y, cfg_scale, negative)
        steps = self.model.num_timesteps if num_timesteps is None else num_timesteps
        v, a = sample_clip(velocity, v, a, steps, given_v=given, progress=progress)
        return Clips(*self.codec.decode(v, a), v, a)

    def velocity(
        self,
        count: int,
        y: int | str | Sequence[str] | Tensor | None = None,
        cfg_scale: float | None = None,
        negative: str | Sequence[str] = "",
    ) -> Callable:
        """The model of `count` clips as `sample_clip` calls it, guidance by text around it; as of `sample`."""
        labels = self.label(y).expand(count)
        null = self.label([negative] * count if isinstance(negative, str) else negative)
        scale = self.cfg_scale if cfg_scale is None else cfg_scale
        if scale == 1 and (null != NULL_TEXT).any():
            raise ValueError("a negative prompt needs guidance to lead away from it; give a cfg scale above 1")
        scale = 1 if torch.equal(labels, null) else scale  # there is nothing to lead away from
        texts = self.text(torch.cat([labels, null]))
        return clip_guided(self._called, scale, {"text": texts[:count]}, {"text": texts})

    def _called(self, v: Tensor, a: Tensor, t: Tensor, t_a: Tensor, text: Text) -> tuple[Tensor, Tensor]:
        """The model, its inputs on its device and in its dtype."""
        t, t_a = (x.to(self.device, torch.promote_types(self.dtype, torch.float32)) for x in (t, t_a))
        return self.model(v.to(self.dtype), a.to(self.dtype), t, t_a=t_a, text=text)

    def _noise(self, samples: list[int], shapes: tuple[tuple, tuple], seed: int | Tensor) -> tuple[Tensor, Tensor]:
        """Noise of both modalities, of which a shorter clip has the beginning."""
        seeds = torch.as_tensor(seed).expand(len(samples)).tolist()
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return tuple(
            torch.stack([frame_noise(s, i, 0, kind, shape) for s, i in zip(seeds, samples)]).to(self.device, dtype)
            for kind, shape in zip((Modality.VIDEO, Modality.AUDIO), shapes)
        )

    def stream(self, *_, **__) -> NoReturn:
        """No model of whole clips makes streams."""
        raise ValueError(f"{self.model.system} makes whole clips, not streams; use `sample`, or a model that rolls "
                         "(r-flav)")  # fmt: skip

    new_stream = extending = windows = stream


def clip_shapes(model: Pretrained, codec: ClipCodec, frames: int, height: int, width: int) -> tuple[tuple, tuple]:
    """(T',C,h,w) and (N,M) of a clip that codec and model take.

    Args:
        frames: of the clip. height, width: of its picture, px.
    Raises:
        ValueError: the codec, or the model's patches, do not divide it.
    """
    video, audio = codec.shapes(frames, height, width)
    p, q = model.patch_size, model.audio_patch
    check_size(height, width, codec.frames.factor * p, f"{codec.spec.codec} with patches of {p} in the model")
    if audio[0] % q:
        raise ValueError(f"a clip of {frames} frames has {audio[0]} sound tokens, not a multiple of the {q} that the "
                         "model takes together; choose another length")  # fmt: skip
    return video, audio


class TokenPrompts(Prompts):
    """Texts by number with all of their tokens."""

    def __init__(self, open_encoder: Callable[[], TextEncoder], width: int):
        super().__init__(open_encoder, width)
        self._tokens: list[Tensor] = []

    def text(self, labels: Tensor) -> Text:
        """Text of labels (B,), on the CPU."""
        nothing = torch.zeros(0, self._width)
        return padded([self._tokens[i] if i >= 0 else nothing for i in labels.tolist()], self._width)

    def _keep(self, tokens: Tensor) -> None:
        self._tokens.append(tokens)

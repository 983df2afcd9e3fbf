"""ClipPipeline: a model of whole clips with its codecs, which makes sound and picture of a text together.

clips = pipe.sample([0, 1], y="a red ball bounces on the floor")
clips = pipe.sample([0], given={"picture": latents})               # the sound for it
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from diffusion.clip import Given, sample_clip
from diffusion.guidance import clip_guided
from diffusion.noise import Modality, frame_noise
from models.checkpoint import Pretrained
from models.codec import check_size
from models.link import SIDES
from models.text import NULL_TEXT, Text, TextEncoder, load_text_encoder, padded
from pipeline.avcodec import ClipCodec
from pipeline.prompts import Prompts


@dataclass(frozen=True)
class Clips:
    """Whole clips: frames uint8 (B,T,H,W,3), wave (B, T * samples_per_frame), None of a side that was given.

    v (B,T',C,h,w), a (B,N,M): the latents that they came from, or that were given.
    """

    frames: Tensor | None
    wave: Tensor | None
    v: Tensor
    a: Tensor


@dataclass(frozen=True)
class Wish:
    """What clips are to show, and how they are denoised: labels of their texts and of those that guidance leads away
    from, (B,) each, its scale, Euler steps, and what wraps the range of these."""

    labels: Tensor
    null: Tensor
    scale: float
    steps: int
    progress: Callable[[range], Iterable[int]] = iter


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
        if not self.model.text_width:
            raise ValueError("this model was trained without text, so it takes no prompt; leave it out")
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
        given: Mapping[str, Tensor] | None = None,
        begun: tuple[Tensor, Tensor] | None = None,
        clip: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Clips:
        """Whole clips; each depends on (seed, its number) and not on its neighbours in the batch.

        Args:
            samples: number of each clip under the seed, (B,). frames: length of all; that of training if not given.
            y: one text for all or one for each, or their labels. seed: of all, or (B,).
            num_timesteps: Euler steps of the whole clip. cfg_scale, negative: guidance, and what it leads away from.
            given: "picture" or "sound" -> its latents, (B,T',C,h,w) or (B,N,M), for which the other side is made.
            begun: what the made side begins with where another is given, latents (B,K,...), of which count (B,) count.
            clip: which of a longer film's each is, so that its noise is its own; of all, or (B,).
            size: height and width of the picture, px; those of training if not given.
            progress: wraps the range of steps, as tqdm does.
        Raises:
            ValueError: a length or size that codec or model does not take, a text that the model cannot read, or a side
                that it does not take.
        """
        size = size or (self.spec.image_size, self.spec.image_size)
        shapes = clip_shapes(self.model, self.codec, frames or self.spec.clip_frames, *size)
        noise = dict(zip(SIDES, self._noise(samples, shapes, seed, clip)))
        wish = self._wish(len(samples), y, cfg_scale, negative, num_timesteps, progress)
        sides = self._held(given or {}, noise)
        if begun is not None:
            (made,) = set(SIDES) - {*sides}
            sides[made] = _beginning(*begun, noise[made])
        latents = self._denoised(noise, sides, wish)
        decode = {"picture": self.codec.decode_frames, "sound": self.codec.decode_sound}
        media = [None if side in (given or {}) else decode[side](x) for side, x in zip(SIDES, latents)]
        return Clips(*media, *latents)

    def velocity(
        self,
        count: int,
        y: int | str | Sequence[str] | Tensor | None = None,
        cfg_scale: float | None = None,
        negative: str | Sequence[str] = "",
    ) -> Callable:
        """The model of `count` clips as `sample_clip` calls it, guidance by text around it; as of `sample`."""
        return self._guided(self._wish(count, y, cfg_scale, negative))

    def _wish(
        self,
        count: int,
        y: int | str | Sequence[str] | Tensor | None,
        cfg_scale: float | None,
        negative: str | Sequence[str],
        steps: int | None = None,
        progress: Callable = iter,
    ) -> Wish:
        """What `count` clips are asked for; as of `sample`."""
        null = self.label([negative] * count if isinstance(negative, str) else negative)
        scale = self.cfg_scale if cfg_scale is None else cfg_scale
        if scale == 1 and (null != NULL_TEXT).any():
            raise ValueError("a negative prompt needs guidance to lead away from it; give a cfg scale above 1")
        steps = self.model.num_timesteps if steps is None else steps
        return Wish(self.label(y).expand(count), null, scale, steps, progress)

    def _held(self, given: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Given]:
        """The given sides as the model is shown them: on their own line, or held at its conditioning times."""
        times = dict(zip(SIDES, self.model.conditioning_times or (None, None)))
        for side, x in given.items():
            if side not in self.model.takes:
                raise ValueError(f"a model of {self.model.system} takes no {side}, only a {self.model.takes[0]}")
            if x.shape != noise[side].shape:
                raise ValueError(f"the given {side} {tuple(x.shape)} is not {tuple(noise[side].shape)}, which number, "
                                 "frames and size of the clips ask for; give them as it is")  # fmt: skip
        return {side: Given(x.to(noise[side]), noise[side], times[side]) for side, x in given.items()}

    def _denoised(self, noise: Mapping[str, Tensor], sides: Mapping[str, Given], wish: Wish) -> tuple[Tensor, Tensor]:
        """Latents of picture and sound, of which `sides` are given, or parts of them."""
        return self._followed(self._guided(wish), noise, sides, wish)

    def _followed(
        self, velocity: Callable, noise: Mapping[str, Tensor], sides: Mapping[str, Given], wish: Wish
    ) -> tuple[Tensor, Tensor]:
        """What a velocity, as of `_guided`, makes of the noise."""
        given = (sides.get(side) for side in SIDES)
        return sample_clip(velocity, *noise.values(), wish.steps, *given, progress=wish.progress)

    def _guided(self, wish: Wish, **how) -> Callable:
        """The model with guidance by text, both sides made, or one of them as far as it is not given.

        `how` goes to the model.
        """
        scale = 1 if torch.equal(wish.labels, wish.null) else wish.scale  # there is nothing to lead away from
        texts = self.text(torch.cat([wish.labels, wish.null]))
        return clip_guided(partial(self._called, **how), scale, {"text": texts[: len(wish.labels)]}, {"text": texts})

    def _called(
        self, v: Tensor | None, a: Tensor | None, t: Tensor, t_a: Tensor, text: Text, **how
    ) -> tuple[Tensor | None, Tensor | None]:
        """The model, its inputs on its device and in its dtype."""
        t, t_a = (x.to(self.device, torch.promote_types(self.dtype, torch.float32)) for x in (t, t_a))
        v, a = (None if x is None else x.to(self.dtype) for x in (v, a))
        return self.model(v, a, t, t_a=t_a, text=text, **how)

    def _noise(
        self, samples: list[int], shapes: tuple[tuple, tuple], seed: int | Tensor, clip: int | Sequence[int] = 0
    ) -> tuple[Tensor, Tensor]:
        """Noise of both modalities, of which a shorter clip has the beginning."""
        seeds, clips = (torch.as_tensor(x).expand(len(samples)).tolist() for x in (seed, clip))
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        places = list(zip(seeds, samples, clips))
        return tuple(
            torch.stack([frame_noise(*place, kind, shape) for place in places]).to(self.device, dtype)
            for kind, shape in zip((Modality.VIDEO, Modality.AUDIO), shapes)
        )

    def stream(self, *_, **__) -> NoReturn:
        """No model of whole clips makes streams."""
        raise ValueError(f"{self.model.system} makes whole clips, not streams; use `sample`, or a model that rolls "
                         "(r-flav)")  # fmt: skip

    new_stream = extending = windows = stream


def _beginning(x: Tensor, counts: Tensor, noise: Tensor) -> Given:
    """A side that begins with x (B,K,...), of which count (B,) count, and is made from there on."""
    clean, mask = noise.clone(), torch.arange(noise.shape[1]) < counts.unsqueeze(1)
    clean[:, : x.shape[1]] = x.to(noise)
    return Given(clean, noise, mask=mask)


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

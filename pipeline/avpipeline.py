"""AVPipeline: a model with its codecs, which samples clips and streams without end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.guidance import Guidance, class_guided
from diffusion.rolling import Emitted, Window, roll, start
from models import FLAV
from pipeline.avcodec import AVCodec
from pipeline.spec import AVSpec, fetch_checkpoint, released_spec
from pipeline.storage import replaced_folder
from vocoder import VocoderStream


@dataclass(frozen=True)
class Clips:
    """Whole clips: frames uint8 (B,T,H,W,3), wave (B, T * samples_per_frame), and the latents they came from."""

    frames: Tensor
    wave: Tensor
    v: Tensor
    a: Tensor


@dataclass(frozen=True)
class Chunk:
    """Frames of a stream with exactly their sound: frames uint8 (t,H,W,3), wave (t * samples_per_frame,)."""

    frames: Tensor
    wave: Tensor
    first: int  # index in the stream of the first frame
    window: Window  # state right after the newest frame that was generated


class AVPipeline:
    """A model with its codecs: samples clips, streams without end."""

    def __init__(
        self, model: FLAV, codec: AVCodec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ):
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        self.codec = codec.to(device)
        self.spec, self.device, self.dtype = codec.spec, torch.device(device), dtype
        video, audio = model.frame_shapes
        factor = codec.frames.factor
        if video[0] != codec.frames.channels or video[1] * factor != self.spec.image_size:
            raise ValueError(
                f"the model makes latents {video}, codec {self.spec.codec} turns {self.spec.image_size} px into "
                f"{(codec.frames.channels, self.spec.image_size // factor, self.spec.image_size // factor)}; "
                "take the codec and the image size the model was trained with"
            )
        if audio != (self.spec.mel_per_frame, self.spec.n_mels):
            raise ValueError(
                f"the model makes mel frames {audio}, pipeline.json says "
                f"{(self.spec.mel_per_frame, self.spec.n_mels)}; one of the files belongs to another checkpoint"
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        audio_scale: float | None = None,
        codec_source: str | None = None,
        vocoder: str | None = None,
    ) -> "AVPipeline":
        """A checkpoint that train.py exported, or a released one, from a folder or the hub.

        Args:
            audio_scale: of a released checkpoint, which does not store it; known for the two of the paper.
            codec_source: where the frame codec's weights are, if not where the checkpoint says.
            vocoder: "griffin-lim" to do without the trained vocoder of a checkpoint.
        Raises:
            FileNotFoundError, ValueError: something is missing or contradicts the checkpoint, in one sentence.
        """
        folder = fetch_checkpoint(str(source))
        model = FLAV.from_pretrained(folder)
        stored = (folder / "pipeline.json").is_file()
        spec = AVSpec.load(folder) if stored else released_spec(model, str(source), audio_scale)
        if audio_scale is not None and audio_scale != spec.audio_scale:
            raise ValueError(f"audio scale {audio_scale} contradicts the checkpoint's {spec.audio_scale}; leave it out")
        overrides = {"codec_source": codec_source, "vocoder": vocoder}
        spec = replace(spec, **{key: value for key, value in overrides.items() if value})
        return cls(model, AVCodec.load(folder, spec), device, dtype)

    def save(self, folder: Path) -> None:
        """Write a self-describing checkpoint folder, complete or not at all."""
        with replaced_folder(folder) as part:
            self.model.save_pretrained(part)
            self.codec.save(part)

    def label(self, y: Tensor | int | None) -> Tensor | None:
        """Labels as the sampler takes them; None becomes the null label of a model with classes."""
        if not self.model.num_classes:
            if y is not None:
                raise ValueError(f"y is {y}, but this model has no classes; leave it out")
            return None
        null = self.model.num_classes
        y = torch.as_tensor(null if y is None else y)
        if y.min() < 0 or y.max() > null - (not self.model.has_null_label):
            raise ValueError(f"class {y.tolist()} does not exist; this model has {null} classes, 0 to {null - 1}")
        return y

    def velocity(self, cfg_scale: float = 1.0) -> Callable:
        """The model as the sampler calls it: its inputs in its dtype, class guidance around it."""

        def model(v: Tensor, a: Tensor, t: Tensor, **conditions) -> tuple[Tensor, Tensor]:
            return self.model(v.to(self.dtype), a.to(self.dtype), t, **conditions)

        if cfg_scale != 1 and not self.model.has_null_label:
            raise ValueError(f"cfg scale {cfg_scale} needs a model with classes and a null label; use 1")
        return class_guided(model, cfg_scale, self.model.num_classes)

    def roll(
        self,
        samples: list[int],
        y: Tensor | int | None = None,
        seed: int = 0,
        num_timesteps: int = 2,
        frames: int | None = None,
        cfg_scale: float = 1.0,
        known: Callable | None = None,
        guidance: Guidance | None = None,
        window: Window | None = None,
    ) -> Iterator[Emitted]:
        """Latent frames of the streams `samples`, the first step of which is `window` or fresh noise."""
        if window is None:
            y = self.label(y)
            y = y.expand(len(samples)) if y is not None and y.ndim == 0 else y
            if y is not None and y.shape not in ((len(samples),), (len(samples), self.model.predict_frames)):
                raise ValueError(
                    f"labels {tuple(y.shape)} do not fit {len(samples)} samples and a window of "
                    f"{self.model.predict_frames} frames; give one label, (samples,) or (samples, frames) of them"
                )
            state = torch.float64 if self.dtype == torch.float64 else torch.float32
            shapes, where = self.model.frame_shapes, dict(device=self.device, dtype=state)
            window = start(self.model.predict_frames, shapes, seed, torch.tensor(samples), y, **where)
        how = dict(known=known, guidance=guidance, skip=self.model.causal_attn)
        yield from roll(window, self.velocity(cfg_scale), num_timesteps, frames, **how)

    @torch.no_grad()
    def sample(self, samples: list[int], frames: int, y: Tensor | int | None = None, **how) -> Clips:
        """Whole clips of a batch of streams; a clip depends on (seed, its number) and not on its neighbours.

        Args:
            samples: number of each stream under the seed. frames: length of each. y: label of all, or (B,).
            how: as in `roll`.
        """
        emitted = list(self.roll(samples, y, frames=frames, **how))
        v, a = torch.stack([e.v for e in emitted], 1), torch.stack([e.a for e in emitted], 1)
        return Clips(*self.codec.decode(v, a), v, a)

    @torch.no_grad()
    def stream(self, y: Tensor | int | None = None, sample: int = 0, **how) -> Iterator[Chunk]:
        """Frames of one stream with their sound as they become ready, without end unless `frames` is given.

        Sound waits for the mel frames that follow it (`vocoder.context`), so a chunk leaves some frames late; picture
        and sound of a chunk always belong together. Seam-free with HiFi-GAN; Griffin-Lim has no exact chunks.
        """
        voice, pictures, sound, done = VocoderStream(self.codec.vocoder), [], [], 0
        size, emitted = self.spec.samples_per_frame, None
        for emitted in self.roll([sample], y, **how):
            pictures.append(self.codec.decode_frames(emitted.v[:, None])[0])
            sound.append(voice.push(self.codec.mel(emitted.a[:, None]))[0])
            ready = sum(map(len, sound)) // size
            if ready:
                wave = torch.cat(sound)
                yield Chunk(torch.cat(pictures[:ready]), wave[: ready * size], done, emitted.window)
                pictures, sound, done = pictures[ready:], [wave[ready * size :]], done + ready
        if pictures:
            yield Chunk(torch.cat(pictures), torch.cat([*sound, voice.finish()[0]]), done, emitted.window)

"""AVCodec: pictures and sound to what the model sees, and back."""

import json
import math
from functools import partial
from pathlib import Path
from textwrap import shorten

import torch
from einops import rearrange
from torch import Tensor

from data.frames import to_uint8
from models.codec import FrameCodec, check_size, load_codec
from pipeline.spec import AVSpec
from vocoder import CONTEXT, GriffinLim, from_model, load_vocoder, log_mel, to_model
from vocoder.autoencoder import SOUND_CODECS
from vocoder.mel import CEILING, FLOOR
from vocoder.sound_codec import SoundCodec

LARGEST_CODEC_SIZE = 2**14  # layers, channels or pixels
DB = 20 / math.log(10)  # of a natural logarithm of a magnitude
MEL_DB = DB * math.log(CEILING / FLOOR) / 2  # of 1 in the normalised mel


class AVCodec:
    """Frames and sound to what the model sees, and back: for streams, frame by frame.

    Args:
        spec: the facts. frames: a codec of `models.codec`. vocoder: of `vocoder.VOCODERS`.
    """

    context = CONTEXT  # samples of sound that `encode` wants on both sides

    def __init__(self, spec: AVSpec, frames: FrameCodec, vocoder: torch.nn.Module):
        self.spec, self.frames, self.vocoder = spec, frames, vocoder
        self.device = torch.device("cpu")
        if vocoder.hop != spec.hop or vocoder.n_mels != spec.n_mels:
            raise ValueError(
                f"vocoder {spec.vocoder} speaks {vocoder.n_mels} mel bins at hop {vocoder.hop}, the model has "
                f"{spec.n_mels} at {spec.hop}; take the vocoder that belongs to the checkpoint, or griffin-lim"
            )

    def to(self, device: torch.device | str) -> "AVCodec":
        self.device = torch.device(device)
        for network in self.networks:
            network.to(device)
        return self

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """Whose weights decide what is decoded, as the class takes them."""
        return self.frames, self.vocoder

    @property
    def facts(self) -> dict[str, int | float]:
        """What decides the shape of a model for these codecs, by the names of the models' own arguments."""
        (channels, side, _), (mels_per_frame, n_mels) = self.unit_shapes
        return {"in_channels": channels, "latent_size": side, "n_mels": n_mels, "audio_fr": mels_per_frame}

    @property
    def unit_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(C,h,w) and (S,M) of what a file is stored in units of: a frame."""
        side = self.spec.image_size // self.frames.factor
        return (self.frames.channels, side, side), (self.spec.mel_per_frame, self.spec.n_mels)

    @torch.no_grad()
    def encode(self, frames: Tensor, wave: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B,T,3,H,W) in [-1,1] and their sound (B, T * samples_per_frame + 2 * context) to model space.

        Returns:
            mean, std (B,T,C,h,w) of the video latents; a (B,T,S,M).
        """
        return *self.frames.encode(frames), self.encode_sound(wave)

    def encode_sound(self, wave: Tensor) -> Tensor:
        """Sound with its context, (B, T * samples_per_frame + 2 * context), to (B,T,S,M)."""
        mel = log_mel(wave, self.spec.n_mels, padded=True, sample_rate=self.spec.sample_rate)
        return rearrange(to_model(mel, self.spec.audio_scale), "b m (t s) -> b t s m", s=self.spec.mel_per_frame)

    def mel_error(self, wave: Tensor, a: Tensor) -> Tensor:
        """|Error| in dB, in any shape, of the log-mel that float16 keeps of a piece of a file.

        Args:
            wave: the sound with its context, (B,n). a: what was made of it at audio scale 1.
        """
        return MEL_DB * (a.half().float() - a).abs()

    @torch.no_grad()
    def decode_frames(self, v: Tensor) -> Tensor:
        """Video latents (B,T,C,h,w) -> uint8 (B,T,H,W,3).

        Raises:
            ValueError: they are not finite.
        """
        return rearrange(to_uint8(self.frames.decode(_finite(v).float())), "b t c h w -> b t h w c")

    def mel(self, a: Tensor) -> Tensor:
        """Audio of the model (B,T,S,M) -> log-mel (B,M,T*S) for the vocoder.

        Raises:
            ValueError: it is not finite.
        """
        return rearrange(from_model(_finite(a).float(), self.spec.audio_scale), "b t s m -> b m (t s)")

    @torch.no_grad()
    def decode(self, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Whole clips, v (B,T,C,h,w) and a (B,T,S,M), to uint8 (B,T,H,W,3) and wave (B, T * samples_per_frame)."""
        return self.decode_frames(v), self.decode_sound(a)

    @torch.no_grad()
    def decode_sound(self, a: Tensor) -> Tensor:
        """Audio of the model (B,T,S,M) -> wave (B, T * samples_per_frame)."""
        return self.vocoder(self.mel(a))

    def save(self, folder: Path) -> None:
        """pipeline.json, vocoder/, and codec/ where the codec was fitted."""
        self.spec.save(folder)
        self.vocoder.save(folder / "vocoder")
        if self.frames.fitted:
            self.frames.save(folder / "codec")

    @classmethod
    def load(cls, folder: Path, spec: AVSpec | None = None) -> "AVCodec":
        """From a checkpoint folder, of streams or of whole clips; `spec` where it has no pipeline.json.

        Raises:
            FileNotFoundError, ValueError: something is missing, damaged or does not fit.
        """
        folder = Path(folder)
        spec = spec or AVSpec.load(folder)
        return cls.make(spec, _frame_codec(folder / "codec", spec), folder / "vocoder")

    @staticmethod
    def make(spec: AVSpec, frames: FrameCodec, vocoder: Path | None) -> "AVCodec":
        """That of streams or of whole clips, as `spec` says.

        Args:
            vocoder: folder of a HiFi-GAN, where `spec` names one.
        """
        if not spec.clip_frames:
            return AVCodec(spec, frames, make_vocoder(spec, vocoder))
        rate, speaker = spec.sample_rate, partial(make_vocoder, spec, vocoder)
        return ClipCodec(spec, frames, SOUND_CODECS[spec.sound].open(spec.sound_source, rate, speaker))

    def copied(self, spec: AVSpec) -> "AVCodec":
        """The same codecs with other facts."""
        return type(self)(spec, *self.networks)


class ClipCodec(AVCodec):
    """Clips and their sound to what a model of whole clips sees, and back.

    Args:
        spec: the facts. frames: a codec of `models.codec`. sound: of `vocoder.autoencoder.SOUND_CODECS`.
    """

    def __init__(self, spec: AVSpec, frames: FrameCodec, sound: SoundCodec):
        self.spec, self.frames, self.sound, self.context = spec, frames, sound, sound.context
        self.device = torch.device("cpu")
        frames.latent_frames(spec.clip_frames)

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        return self.frames, self.sound

    @property
    def facts(self) -> dict[str, int | float]:
        return {"in_channels": self.frames.channels, "latent_size": self.spec.image_size // self.frames.factor,
                "audio_channels": self.sound.channels,
                "video_rate": self.spec.fps / self.frames.temporal_factor,
                "audio_rate": self.spec.sample_rate / self.sound.hop}  # fmt: skip

    @property
    def unit_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(T',C,h,w) and (N,M) of what a file is stored in units of: a clip."""
        size = self.spec.image_size
        return self.shapes(self.spec.clip_frames, size, size)

    def shapes(self, frames: int, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(T',C,h,w) and (N,M) of a clip.

        Args:
            frames: of the clip. height, width: of its picture, px.
        Raises:
            ValueError: the codec does not take so many frames, or pictures of this size.
        """
        factor = self.frames.factor
        check_size(height, width, factor, self.spec.codec)
        video = self.frames.latent_frames(frames), self.frames.channels, height // factor, width // factor
        return video, (self.sound.tokens(frames * self.spec.samples_per_frame), self.sound.channels)

    @property
    def unit(self) -> int:
        """Frames by which clips can be moved against each other: pictures and sound both begin a latent there."""
        hop = self.sound.hop // math.gcd(self.sound.hop, self.spec.samples_per_frame)
        return math.lcm(self.frames.temporal_factor * self.frames.together, hop)

    @torch.no_grad()
    def encode_sound(self, wave: Tensor) -> Tensor:
        """Sound with its context, (B, T * samples_per_frame + 2 * context), to (B,N,M)."""
        return self.spec.audio_scale * self.sound.encode(wave, self.spec.sample_rate)[0]

    def mel_error(self, wave: Tensor, a: Tensor) -> Tensor:
        return DB * self.sound.log_mel_error(wave, a.half().float())

    @torch.no_grad()
    def decode(self, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.decode_frames(v)
        return frames, self.decode_sound(a)[:, : frames.shape[1] * self.spec.samples_per_frame]

    @torch.no_grad()
    def decode_sound(self, a: Tensor) -> Tensor:
        """Tokens of the model (B,N,M) -> wave (B, N * hop)."""
        return self.sound.decode(_finite(a).float() / self.spec.audio_scale)

    def save(self, folder: Path) -> None:
        """pipeline.json, and codec/ and vocoder/ where there is something to keep."""
        self.spec.save(folder)
        self.sound.save(folder)
        if self.frames.fitted:
            self.frames.save(folder / "codec")


def make_vocoder(spec: AVSpec, source: Path | None) -> torch.nn.Module:
    """The vocoder that `spec` names, from its folder; Griffin-Lim needs none."""
    if spec.vocoder == "griffin-lim":
        return GriffinLim(spec.n_mels, spec.sample_rate)
    return load_vocoder(spec.vocoder, source)


def _frame_codec(folder: Path, spec: AVSpec) -> FrameCodec:
    """The frame codec of a checkpoint, in `folder` where it is stored."""
    config = folder / "config.json"
    try:
        if config.is_file():
            json.loads(config.read_text(), parse_int=_codec_size)
        codec = load_codec(spec.codec, spec.codec_source, folder)
        if absent := [name for name, weight in codec.state_dict().items() if weight.is_meta]:
            raise ValueError(f"no weights for {absent[0]} and {len(absent) - 1} others")
        return codec
    except FileNotFoundError:
        raise
    except Exception as error:  # libraries have no end of ways to fail on files that do not fit them
        reason = shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(
            f"codec {spec.codec} cannot be loaded ({reason}); take its config and weights from one place"
        ) from error


def _codec_size(digits: str) -> int:
    """A whole number in the config of a codec; absurd ones would cost hours or all memory."""
    if int(digits) > LARGEST_CODEC_SIZE:
        raise ValueError(f"{digits[:20]} is no size of a codec")
    return int(digits)


def _finite(x: Tensor) -> Tensor:
    """What a model made (B,...), as it is.

    Raises:
        ValueError: it is not finite, in these places of the batch.
    """
    broken = (~x.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"what the model made is not finite (at {broken} of the batch): its activations overflow; take another "
            "--seed, or train with --fusion c_norm"
        )
    return x

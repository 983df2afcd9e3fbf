"""The facts of a checkpoint that its weights do not hold, and where checkpoints are found."""

import inspect
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from reprlib import repr as shown
from textwrap import shorten
from typing import Any, get_args, get_origin

from safetensors import SafetensorError, safe_open

from data.folders import composed, nearest_path
from models import FLAV, model_class
from models.checkpoint import Pretrained
from models.codec import CODECS, VIDEO_CODECS
from models.text import TEXT_ENCODERS
from vocoder import VOCODERS
from vocoder.autoencoder import SOUND_CODECS
from vocoder.mel import HOP, SAMPLE_RATE

# Of the two released checkpoints, whose folders do not say it themselves.
RELEASED_AUDIO_SCALES = {"R-FLAV-B-1-AIST": 3.5009668382765917, "R-FLAV-B-1-LS": 3.0951129410195515}
CHOICES = {
    "resize": ("pad", "crop"),
    "normalise": ("file", "clip"),
    "channels": ("mean", "first"),
    "codec": (*CODECS, *VIDEO_CODECS),
    "sound": tuple(SOUND_CODECS),
    "vocoder": tuple(VOCODERS),
    "text_encoder": (None, *TEXT_ENCODERS),
}
LARGEST, LONGEST = 2**31 - 1, 40  # number and text in a config
FILES = ["config.json", "model.safetensors", "pipeline.json", "vocoder/*", "codec/*"]  # of a checkpoint


@dataclass(frozen=True)
class AVSpec:
    """Facts about a checkpoint that its weights do not hold; rates are written once, what is countable is derived."""

    fps: int = 10
    sample_rate: int = SAMPLE_RATE  # Hz, mono
    hop: int = HOP  # samples per mel frame
    n_mels: int = 256
    clip_frames: int = 0  # of the whole clips that the model was trained on; 0 for streams, made frame by frame
    audio_scale: float = 1.0  # about 1 / std of the normalised mel, or of the sound's tokens, in the training set
    image_size: int = 256  # px, square
    resize: str = "pad"  # how other shapes become square: pad or crop
    normalise: str = "file"  # whose peak becomes 0.95: file or clip
    channels: str = "mean"  # how sound becomes mono: mean or first
    codec: str = "sd-vae"
    codec_source: str | None = None  # local directory or hub id; None the codec's default, or codec/ in the checkpoint
    sound: str = "mel"  # what sound becomes: its mel, or for whole clips the tokens of an autoencoder
    sound_source: str | None = None  # local directory or hub id of the autoencoder's weights
    vocoder: str = "griffin-lim"  # of the mel
    text_encoder: str | None = None  # of the texts that the model follows; None for a model without text
    text_source: str | None = None  # local directory or hub id of the encoder's weights; None the encoder's default
    class_names: tuple[str, ...] = ()
    step: int = 0  # of training

    def __post_init__(self):
        self._check_types()
        object.__setattr__(self, "class_names", tuple(map(composed, self.class_names)))  # JSON knows lists only
        if not 0 < self.audio_scale < LARGEST:
            raise ValueError(f"audio scale {shown(self.audio_scale)} is not positive; take about 1 / std of the mel")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"{name} {shown(getattr(self, name))} is unknown; choose one of {known}")
        self._check_clips() if self.clip_frames else self._check_streams()

    def _check_streams(self) -> None:
        """A stream is made frame by frame: each has a latent and whole mel frames of its own."""
        if self.codec in VIDEO_CODECS or self.sound != "mel":
            whole = self.codec if self.codec in VIDEO_CODECS else self.sound
            raise ValueError(f"codec {whole} is one of whole clips, and streams are made frame by frame; give "
                             f"--clip-frames their length, or a codec of frames: {', '.join(CODECS)}")  # fmt: skip
        if self.sample_rate % (self.fps * self.hop):
            raise ValueError(
                f"{self.sample_rate} Hz / {self.fps} fps / hop {self.hop} is not a whole number of mel frames per "
                f"video frame; choose a hop that divides {self.sample_rate / self.fps:g}"
            )

    def _check_clips(self) -> None:
        if self.sample_rate % self.fps:
            raise ValueError(f"{self.sample_rate} Hz is not a whole number of samples per frame at {self.fps} fps; "
                             f"choose an fps that divides {self.sample_rate}")  # fmt: skip

    def _check_types(self) -> None:
        """Facts come from files of others: each must be what its annotation says, sizes and rates above 0."""
        for name, kind in ((f.name, f.type) for f in fields(self)):
            value, least = getattr(self, name), 0 if name in ("step", "clip_frames") else 1
            if name == "class_names":
                good = isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)
            elif kind is int:
                good = _is_number(value, int, least)
            else:
                good = isinstance(value, (int, float) if kind is float else kind)
            if not good or (isinstance(value, str) and not value.isprintable()):
                raise ValueError(f"{name} is {shown(value)}, which it cannot be; give it as AVSpec describes it")

    @property
    def mel_per_frame(self) -> int:  # S
        return self.sample_rate // (self.fps * self.hop)

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // self.fps

    def save(self, folder: Path) -> None:
        (folder / "pipeline.json").write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "AVSpec":
        path = Path(folder) / "pipeline.json"
        saved, known = _read_object(path), {f.name for f in fields(cls)}
        if strange := sorted(set(saved) - known):
            raise ValueError(
                f"{path} has {shown(strange)}, unknown to this version; it knows {', '.join(sorted(known))}"
            )
        return cls(**saved)


def _is_number(value: Any, kind: type, least: int) -> bool:
    """Whether a value from a JSON file is a number of this kind, neither too small nor absurd."""
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and least <= value <= LARGEST


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or export it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (no JSON object, but {shown(found)}); fetch or export it again")
    return found


def released_spec(model: FLAV, source: str, audio_scale: float | None) -> AVSpec:
    """The facts of a released checkpoint, which stores none; its audio scale by name or argument."""
    if audio_scale is None:
        audio_scale = RELEASED_AUDIO_SCALES.get(Path(source).name)
    if audio_scale is None:
        raise ValueError(
            f"{source} has no pipeline.json, so its audio scale is unknown; give --audio-scale "
            f"({', '.join(f'{value} for {name}' for name, value in RELEASED_AUDIO_SCALES.items())})"
        )
    return AVSpec(
        n_mels=model.n_mels,
        audio_scale=audio_scale,
        image_size=model.latent_size * 8,
        normalise="clip",
        channels="first",
        vocoder="hifigan",
        class_names=tuple(str(i) for i in range(model.num_classes)),
    )


def fetch_checkpoint(source: str) -> Path:
    """Local folder of a checkpoint: `source` itself or its snapshot from the hub.

    Raises:
        FileNotFoundError, ValueError: there is neither, or one of its files is damaged.
    """
    folder = Path(source) if Path(source).is_dir() else _download(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{source} has no config.json{_nearest(source)}; give a folder that train.py exported, or a hub id"
        )
    sizes = {}
    for path in (path for pattern in FILES for path in sorted(folder.glob(pattern))):
        if path.suffix == ".json":
            _read_object(path)
        elif path.suffix == ".safetensors":
            sizes[path] = _sizes(path)
    if (folder / "config.json").is_file() and folder / "model.safetensors" in sizes:
        _check_architecture(folder / "config.json", sizes[folder / "model.safetensors"])
    return folder


def _nearest(source: str) -> str:
    """For an error: the checkpoint of a name like the one given, or what train.py exported there or beside it."""
    path = Path(source)
    near = nearest_path(path, _is_checkpoint) or nearest_path(path / "export", _is_checkpoint)
    beside = (folder / "export" for folder in path.parents[:2])
    return near or next((f" (did you mean {export}?)" for export in beside if _is_checkpoint(export)), "")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _sizes(path: Path) -> list[int]:
    """Numbers in each tensor of a safetensors file, by its header, which must fit the size of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return [math.prod(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({shorten(str(error), 200)}); fetch or export it again") from None


def _architecture(path: Path, kind: type[Pretrained]) -> dict[str, Any]:
    """What a model of this class will be built from, by its config.json, each value of the kind that it takes."""
    saved, parameters = _read_object(path), list(inspect.signature(kind.__init__).parameters.values())[1:]
    config = {p.name: saved.get(p.name, p.default) for p in parameters}
    for name, wanted in ((p.name, p.annotation) for p in parameters):
        value, kinds, least = config[name], get_args(wanted) or (wanted,), int(wanted is int)
        long = not isinstance(value, list) and len(str(value)) > LONGEST
        if long or not any(_is_of(value, k, least) for k in kinds):
            raise ValueError(f"{path} has {name} {shown(value)}, which it cannot be; fetch or export it again")
    return config


def _is_of(value: Any, kind: type, least: int) -> bool:
    """Whether a value is of a kind: a number, a list of numbers, or another."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_number(x, *get_args(kind), 0) for x in value)
    return _is_number(value, kind, least) if kind in (int, float) else isinstance(value, kind)


def _check_architecture(path: Path, sizes: list[int]) -> None:
    """Refuse a config.json that describes a larger model than the weights fill, before memory is taken for it.

    Args:
        sizes: numbers in each tensor of the weights.
    """
    kind = model_class(path.parent)
    weights, tensors = kind.least_weights(_architecture(path, kind))
    if weights > sum(sizes) or tensors > len(sizes):
        raise ValueError(
            f"{path} describes a model of {tensors} blocks with more than {weights} weights, model.safetensors has "
            f"{sum(sizes)} weights in {len(sizes)} tensors; take both from the same checkpoint"
        )


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=FILES, etag_timeout=10))
    except (OSError, ValueError) as error:  # not found, no network, not an id: the remedy is the same
        raise FileNotFoundError(
            f"{source} is no local folder{_nearest(source)} and could not be had from the hub "
            f"({type(error).__name__}); download it where there is a network and give its local folder"
        ) from None

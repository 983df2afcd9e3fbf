"""The facts of a checkpoint that its weights do not hold, and where checkpoints are found."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open

from models import FLAV
from models.codec import CODECS
from vocoder import VOCODERS
from vocoder.mel import HOP, SAMPLE_RATE

# Of the two released checkpoints, whose folders do not say it themselves.
RELEASED_AUDIO_SCALES = {"R-FLAV-B-1-AIST": 3.5009668382765917, "R-FLAV-B-1-LS": 3.0951129410195515}
FILES = ["config.json", "model.safetensors", "pipeline.json", "vocoder/*", "codec/*"]  # of a checkpoint


@dataclass(frozen=True)
class AVSpec:
    """Facts about a checkpoint that its weights do not hold; rates are written once, what is countable is derived."""

    fps: int = 10
    sample_rate: int = SAMPLE_RATE  # Hz, mono
    hop: int = HOP  # samples per mel frame
    n_mels: int = 256
    audio_scale: float = 1.0  # about 1 / std of the normalised mel of the training set
    image_size: int = 256  # px, square
    resize: str = "pad"  # how other shapes become square: pad or crop
    normalise: str = "file"  # whose peak becomes 0.95: file or clip
    channels: str = "mean"  # how sound becomes mono: mean or first
    codec: str = "sd-vae"
    codec_source: str | None = None  # local directory or hub id; None the codec's default, or codec/ in the checkpoint
    vocoder: str = "griffin-lim"
    class_names: tuple[str, ...] = ()
    step: int = 0  # of training

    def __post_init__(self):
        object.__setattr__(self, "class_names", tuple(self.class_names))  # JSON knows lists only
        if self.sample_rate % (self.fps * self.hop):
            raise ValueError(
                f"{self.sample_rate} Hz / {self.fps} fps / hop {self.hop} is not a whole number of mel frames per "
                f"video frame; choose a hop that divides {self.sample_rate / self.fps:g}"
            )
        if not 0 < self.audio_scale < float("inf"):
            raise ValueError(f"audio scale {self.audio_scale} is not positive; take about 1 / std of the mel")
        for name, registry in (("codec", CODECS), ("vocoder", VOCODERS)):
            if getattr(self, name) not in registry:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(registry)}")

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
        saved, known = json.loads(path.read_text()), {f.name for f in fields(cls)}
        if strange := sorted(set(saved) - known):
            raise ValueError(f"{path} has {strange}, unknown to this version ({sorted(known)})")
        return cls(**saved)


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
    for path in (path for pattern in FILES for path in sorted(folder.glob(pattern))):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                safe_open(path, framework="pt")  # reads the header and compares it with the size of the file
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged ({error}); fetch or export it again") from None
    return folder


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=FILES, etag_timeout=10))
    except (OSError, ValueError) as error:  # not found, no network, not an id: the remedy is the same
        raise FileNotFoundError(
            f"{source} is no local folder and could not be had from the hub ({type(error).__name__}); "
            "download it where there is a network and give its local folder"
        ) from None

"""Codecs of frames, each by itself: pretrained autoencoders of the diffusers library, and some that need no weights."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as shown

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

DIFFUSERS_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
HUB_TIMEOUT = 10  # seconds until the hub counts as out of reach


class FrameCodec(nn.Module):
    """What all codecs share: the shapes, the checks and the bounded batches around `_encode` and `_decode`.

    Attributes:
        name: of the codec in its registry.
        factor: pixels per latent cell, along each side.
        channels: C of the latents.
        temporal_factor: frames per latent frame; only with 1 can a model roll, frame by frame. together: latents that
            the network makes at once.
        fitted: whether `fit` makes it from the data, so that a checkpoint must hold it.
    """

    name: str
    factor: int
    channels: int
    temporal_factor = 1
    together = 1
    fitted = False

    def latent_frames(self, frames: int) -> int:
        """Number of latents of so many frames."""
        return frames

    @torch.no_grad()
    def encode(self, frames: Tensor, batch_size: int = 16) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of frames.

        Args:
            frames: (B,T,3,H,W) float in [-1,1], on the codec's device and in its dtype.
            batch_size: frames that pass through the network together; bounds the memory.
        Returns:
            mean, std: (B,T,C,H/factor,W/factor) each, times the scale factor; std is 0 for a deterministic codec.
        Raises:
            ValueError: the shape, the dtype or the size of the frames does not fit.
        """
        self.check(frames)
        mean, std = zip(*map(self._encode, frames.flatten(0, 1).split(batch_size)))
        return torch.cat(mean).unflatten(0, frames.shape[:2]), torch.cat(std).unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Frames (B,T,3,H,W) in [-1,1] of latents (B,T,C,h,w), `batch_size` frames at a time.

        Raises:
            ValueError: the latents are not those of this codec.
        """
        self.check_latents(latents)
        frames = torch.cat([self._decode(z).clamp(-1, 1) for z in latents.flatten(0, 1).split(batch_size)])
        return frames.unflatten(0, latents.shape[:2])

    def check(self, frames: Tensor) -> None:
        """Raise a ValueError unless `encode` can take these frames."""
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
            raise ValueError(f"frames are {tuple(frames.shape)} {frames.dtype}, expected (B,T,3,H,W) float in [-1,1]")
        check_size(*frames.shape[-2:], self.factor, self.name)

    def check_latents(self, latents: Tensor) -> None:
        """Raise a ValueError unless `decode` can take these latents."""
        if latents.ndim != 5 or latents.shape[2] != self.channels:
            raise ValueError(
                f"latents are {tuple(latents.shape)}, codec {self.name} takes (B,T,{self.channels},h,w); "
                f"decode with the codec that made them"
            )

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N,3,H,W) -> mean, std (N,C,h,w)."""
        raise NotImplementedError

    def _decode(self, z: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,3,H,W)."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads from a folder."""
        raise NotImplementedError

    @classmethod
    def load(cls, source: str | Path | None) -> "FrameCodec":
        """Load from a folder or, where the codec has one, a hub id; None takes the codec's default."""
        raise NotImplementedError


class DiffusersCodec(FrameCodec):
    """A pretrained autoencoder of the diffusers library; a subclass names it, and says if it makes no distribution."""

    library_class: str
    default_source: str
    channels_of_stages: str  # config entry with one number per resolution: each after the first halves the picture

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.factor = 2 ** (len(model.config[self.channels_of_stages]) - 1)
        self.channels = model.config.latent_channels
        self.scale = model.config.scaling_factor

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x).latent_dist
        return posterior.mean * self.scale, posterior.std * self.scale

    def _decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z / self.scale).sample

    def save(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)

    @classmethod
    def load(cls, source: str | Path | None = None) -> "DiffusersCodec":
        folder = fetch(source or cls.default_source, cls.name)
        stored = json.loads((folder / "config.json").read_text()).get("_class_name")
        if stored != cls.library_class:
            raise ValueError(
                f"{folder} holds a {stored}, codec {cls.name} needs a {cls.library_class}; "
                f"choose another codec or another folder"
            )
        import diffusers  # takes seconds, and not every codec needs it

        return cls(getattr(diffusers, cls.library_class).from_pretrained(folder, local_files_only=True))


class SDVAE(DiffusersCodec):
    """Stable Diffusion's VAE, 8 pixels to 4 channels; the paper's codec. Its latents are a normal distribution."""

    name = "sd-vae"
    library_class = "AutoencoderKL"
    default_source = "stabilityai/sd-vae-ft-ema"  # or stabilityai/sd-vae-ft-mse
    channels_of_stages = "block_out_channels"


class DCAE(DiffusersCodec):
    """Deep compression autoencoder, 32 pixels to 32 channels, deterministic."""

    name = "dc-ae"
    library_class = "AutoencoderDC"
    default_source = "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers"
    channels_of_stages = "encoder_block_out_channels"

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return deterministic(self.model.encode(x).latent * self.scale)


class TAESD(DiffusersCodec):
    """Tiny autoencoder for Stable Diffusion's latents: small enough for previews on a CPU, deterministic."""

    name = "taesd"
    library_class = "AutoencoderTiny"
    default_source = "madebyollin/taesd"
    channels_of_stages = "encoder_block_out_channels"

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return deterministic(self.model.encode(x).latents * self.scale)


class PatchPCA(FrameCodec):
    """Principal components of square patches: no weights to download, fitted in seconds, deterministic.

    A patch x (D,) of D = 3 p^2 numbers becomes z = scale * (basis (x - mean)).

    Args:
        mean: (D,) mean patch, ordered (channel, row, column).
        basis: (C,D) orthonormal rows, strongest component first.
        scale: (C,) latent_scale / standard deviation of each component in the fitted clips.
    """

    name = "patch-pca"
    fitted = True
    values = 3  # of a pixel
    kept = 12  # components, unless told otherwise

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("scale", scale)
        self.factor = round((len(mean) / self.values) ** 0.5)
        self.channels = len(scale)

    @classmethod
    def fit(
        cls, frames: Tensor | Iterable[Tensor], patch: int = 8, channels: int | None = None, latent_scale: float = 0.35
    ) -> "PatchPCA":
        """Fit to clips; the same clips give the same codec.

        Args:
            frames: uint8 (N,...,H,W,3), or float (N,...,3,H,W) in [-1,1]; or an iterable of such batches or frames.
            patch: pixels along each side of a patch.
            channels: components kept; those of the class if not given.
            latent_scale: standard deviation of each latent channel over these frames.
        Raises:
            ValueError: the frames do not fill `channels` dimensions, or their size is no multiple of `patch`.
        """
        channels = channels or cls.kept
        mean, covariance = moments(cls.to_patches(batch, patch) for batch in frames)
        variance, vectors = torch.linalg.eigh(covariance)  # ascending, in columns
        variance, basis = variance.flip(0)[:channels], vectors.T.flip(0)[:channels]
        if (rank := int((variance > 1e-10 * variance[0]).sum())) < channels:
            raise ValueError(
                f"the frames fill only {rank} of {channels} channels of codec {cls.name}; "
                f"fit it on more varied frames, or with channels={rank}"
            )
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()  # the largest entry is positive
        return cls(mean.float(), basis.float().contiguous(), (latent_scale / variance.sqrt()).float())

    @classmethod
    def to_patches(cls, frames: Tensor, patch: int) -> Tensor:
        """All patches (count, 3 patch^2) of uint8 (...,H,W,3) or float (...,3,H,W) frames, in float64 and [-1,1]."""
        x = as_floats(frames)
        check_size(*x.shape[-2:], patch, cls.name)
        return cut(x.reshape(-1, *x.shape[-3:]), patch).flatten(0, 2)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (cut(x, self.factor) - self.mean) @ self.basis.T * self.scale  # (N,h,w,C)
        return deterministic(rearrange(z, "n h w c -> n c h w"))

    def _decode(self, z: Tensor) -> Tensor:
        x = (rearrange(z, "n c h w -> n h w c") / self.scale) @ self.basis + self.mean  # (N,h,w,D)
        return rearrange(x, "n h w (c p q) -> n c (h p) (w q)", c=self.values, p=self.factor)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "codec.safetensors").write_bytes(save(self.state_dict()))

    @classmethod
    def load(cls, source: str | Path | None) -> "PatchPCA":
        """Load from a folder that `save` wrote.

        Raises:
            FileNotFoundError: it holds no codec. ValueError: what it holds is damaged or no PatchPCA.
        """
        if source is None or not (path := Path(source) / "codec.safetensors").is_file():
            raise FileNotFoundError(
                f"codec {cls.name} is fitted, not downloaded: {source} has no codec.safetensors; "
                f"give the codec/ folder of a checkpoint or use PatchPCA.fit"
            )
        try:
            saved = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({shown(error)}); take the codec/ folder of a checkpoint") from None
        if not cls._fit_each_other(saved):
            shapes = shown({name: tuple(x.shape) for name, x in saved.items()})
            raise ValueError(
                f"{path} holds {shapes}, not finite mean ({cls.values} p^2,), basis (C, {cls.values} p^2) and positive "
                "scale (C,); "
                "take the codec/ folder of a checkpoint"
            )
        return cls(**saved)

    @classmethod
    def _fit_each_other(cls, saved: dict[str, Tensor]) -> bool:
        """Whether these can be the numbers of a codec."""
        if saved.keys() != {"mean", "basis", "scale"} or any(x.dtype != torch.float32 for x in saved.values()):
            return False
        size, channels = saved["mean"].numel(), saved["scale"].numel()
        shapes = {"mean": (size,), "basis": (channels, size), "scale": (channels,)}
        square = size == cls.values * round((size / cls.values) ** 0.5) ** 2 > 0 and channels > 0
        finite = all(tuple(x.shape) == shapes[name] and x.isfinite().all() for name, x in saved.items())
        return square and finite and bool((saved["scale"] > 0).all())


class Pixels(FrameCodec):
    """The frames themselves: for tests and very small pictures."""

    name = "pixels"
    factor = 1
    channels = 3

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return deterministic(x)

    def _decode(self, z: Tensor) -> Tensor:
        return z

    def save(self, folder: str | Path) -> None:
        """Nothing to store."""

    @classmethod
    def load(cls, source: str | Path | None = None) -> "Pixels":
        return cls()


def check_size(height: int, width: int, factor: int, name: str) -> None:
    """Raise a ValueError, naming the nearest sizes, if the frames do not divide into latent cells."""
    for side, pixels in (("high", height), ("wide", width)):
        if pixels % factor:
            below = pixels // factor * factor
            nearest = f"{below} or {below + factor}" if below else factor
            raise ValueError(
                f"frames are {pixels} pixels {side}, not a multiple of the {factor} of codec {name}; "
                f"resize them to {nearest}"
            )


def fetch(source: str | Path, name: str) -> Path:
    """Local folder of a diffusers autoencoder: `source` itself, or its snapshot from the hub.

    Raises:
        FileNotFoundError: there is neither, or the folder is not complete.
    """
    folder = Path(source) if Path(source).is_dir() else download(str(source), name)
    if not (folder / "config.json").is_file() or not any(folder.glob("diffusion_pytorch_model*")):
        raise FileNotFoundError(
            f"codec {name}: {folder} lacks {' or '.join(DIFFUSERS_FILES)}; "
            f"give the directory of a whole diffusers autoencoder"
        )
    return folder


def download(hub_id: str, name: str) -> Path:
    """Snapshot of a model on the hub; without an answer of the hub, the one in the cache."""
    reason = "no such directory"
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", hub_id):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(hub_id, allow_patterns=list(DIFFUSERS_FILES), etag_timeout=HUB_TIMEOUT))
        except (OSError, ValueError) as error:  # not found, no network, not a valid id: the remedy is the same
            reason = f"no such directory, and the hub is no help: {type(error).__name__}"
    raise FileNotFoundError(
        f"codec {name}: {hub_id} cannot be read ({reason}); download it where there is a network, "
        f"then give the local directory with its {' and '.join(DIFFUSERS_FILES)}"
    )


def deterministic(z: Tensor) -> tuple[Tensor, Tensor]:
    """Latents without spread, as mean and std."""
    return z, torch.zeros_like(z)


def cut(x: Tensor, patch: int) -> Tensor:
    """Patches as vectors: (N,C,H,W) -> (N, H/patch, W/patch, C patch^2)."""
    return rearrange(x, "n c (h p) (w q) -> n h w (c p q)", p=patch, q=patch)


def as_floats(frames: Tensor) -> Tensor:
    """uint8 (...,H,W,3) or float (...,3,H,W) frames -> (...,3,H,W) in float64 and [-1,1]."""
    if frames.dtype == torch.uint8:
        frames = frames.movedim(-1, -3).double() / 127.5 - 1
    return frames.double()


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D,D) of the rows of all batches (count, D), in one pass."""
    count, total, products = 0, 0, 0
    for x in batches:
        count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
    if not count:
        raise ValueError("there are no frames to fit the codec to; give at least one clip")
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)

"""Pictures to latents and back, all behind the same door.

    codec = load_codec("sd-vae")
    mean, std = codec.encode(frames)   # (B,T,3,H,W) in [-1,1] -> (B,T,C,h,w), scale factor inside
    frames = codec.decode(latents)

A new codec is one class and one line in its registry.
"""

from pathlib import Path

from models.frame_codec import DCAE, SDVAE, TAESD, FrameCodec, PatchPCA, Pixels, check_size
from models.video_codec import BlockPCA, CogVideoX, VideoCodec, Wan

CODECS: dict[str, type[FrameCodec]] = {  # of frames: with these a model can roll
    "sd-vae": SDVAE,
    "dc-ae": DCAE,
    "taesd": TAESD,
    "patch-pca": PatchPCA,
    "pixels": Pixels,
}
VIDEO_CODECS: dict[str, type[VideoCodec]] = {  # of clips, of fewer latents than frames
    "cogvideox": CogVideoX,
    "wan": Wan,
    "block-pca": BlockPCA,
}


def load_codec(name: str, source: str | Path | None = None, folder: str | Path | None = None) -> FrameCodec:
    """A codec by name.

    Args:
        name: a key of CODECS or VIDEO_CODECS.
        source: local directory or hub id of pretrained weights; None takes the codec's default.
        folder: `codec/` of a checkpoint; goes before `source` where it exists.
    Raises:
        ValueError: the name is unknown, or the weights are another codec's.
        FileNotFoundError: there are no weights at the source.
    """
    codecs = CODECS | VIDEO_CODECS
    if name not in codecs:
        raise ValueError(f"codec {name!r} is unknown; choose one of {sorted(codecs)}")
    return codecs[name].load(folder if folder is not None and Path(folder).is_dir() else source)


__all__ = ["CODECS", "VIDEO_CODECS", "FrameCodec", "PatchPCA", "Pixels", "VideoCodec", "check_size", "load_codec"]

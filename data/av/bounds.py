"""How large a stranger's file may be: by what it says of itself, then by its packets, before it is decoded."""

from pathlib import Path

import av

from data.av.media import Kind, MediaError, open_media
from data.av.probe import probe, probe_audio

# of files that hold all of what they show; others, such as FFmpeg's lists of files, name files by path
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,wav,w64,mp3,flac,aac,aiff,caf,ac3,eac3,amr,gif,"
    "apng,mxf,nut,yuv4mpegpipe,h264,hevc,m4v,mpegvideo,obu,ivf,rm,wv,tta,ape,au,dv"
)


def check_bounds(path: str | Path, kind: Kind, seconds: float, pixels: int) -> None:
    """Look at a file of which the picture ("video") or the sound ("audio") is wanted.

    Raises:
        MediaError: it cannot be read, has no such stream, lasts more than `seconds`, or has a picture of more than
            `pixels`.
    """
    with open_media(path, FORMATS) as container:
        _check_length(path, (container.duration or 0) / av.time_base, seconds)
        for stream in container.streams.video:
            context = stream.codec_context
            if context and context.width * context.height > pixels:
                raise MediaError(f"{path} has pictures of {context.width} x {context.height}, more than the {pixels} "
                                 "pixels that they may have; make them smaller")  # fmt: skip
    _check_length(path, (probe if kind == "video" else probe_audio)(path).seconds, seconds)


def _check_length(path: str | Path, told: float, seconds: float) -> None:
    if told > seconds:
        raise MediaError(f"{path} lasts {told:.0f} s, more than the {seconds:g} s that it may; cut it")

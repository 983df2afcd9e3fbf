"""What there is in a media file, by its packets: sizes, lengths, gaps, and whether it is whole."""

import heapq
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from data.av.grid import grid_length
from data.av.media import Kind, MediaError, clock_zero, frame_ticks, open_media, rate_of, stream_of, streams_of
from data.av.pixels import pixels

KINDS = {"video": "picture", "audio": "sound"}
CUT = 0.5  # s; a file that ends this much before its header says is cut
HEADERLESS = ("mp3", "aac")  # FFmpeg guesses the length of these from their bit rate
REORDER = 16  # pictures that may be stored between one and the next to be shown, by the H.264 standard


@dataclass(frozen=True)
class Gap:
    """The longest time in a stream without a new picture, or without sound."""

    seconds: float
    at: float  # s, on the clock of the file


@dataclass(frozen=True)
class MediaInfo:
    """What `probe` finds: picture size after rotation, and the length of the picture by its time stamps."""

    path: Path
    width: int  # pixels
    height: int  # pixels
    fps: float  # mean rate; only a hint when the rate varies
    seconds: float  # from the first picture's start to the last picture's end
    sample_rate: int  # Hz; 0 without sound
    channels: int  # 0 without sound
    gaps: dict[Kind, Gap]  # of the streams that there are

    @property
    def has_audio(self) -> bool:
        return self.channels > 0

    def frames(self, fps: float = 10) -> int:
        """Frames that the file has on a grid of `fps`."""
        return grid_length(self.seconds, self.fps, fps)


def probe(path: str | Path) -> MediaInfo:
    """Look at every packet of a file and decode one picture: exact in every container, and still cheap.

    Raises:
        MediaError: the file is missing, unreadable, without picture (then ask `probe_audio`), cut or damaged.
    """
    with open_media(path) as container:
        video, audio = stream_of(container, "video"), next(iter(container.streams.audio), None)
        heard = audio.codec_context if audio else None  # None, too, of a codec that nothing is known of
        picture = next(container.decode(video), None)
        if picture is None:
            raise MediaError(f"{path} has a video stream without a single picture; encode it again or remove it")
        height, width = pixels(picture).shape[:2]
        seconds, gaps = _seconds(path, "video")
        return MediaInfo(
            path=Path(path),
            width=width,
            height=height,
            fps=float(rate_of(video)),
            seconds=seconds,
            sample_rate=heard.sample_rate if heard else 0,
            channels=heard.channels if heard else 0,
            gaps=gaps,
        )


@dataclass(frozen=True)
class AudioInfo:
    """What `probe_audio` finds in a sound file, or in the sound of a video."""

    path: Path
    seconds: float  # from the clock's zero to the last packet's end; what `read_audio` gives may differ by a packet
    sample_rate: int  # Hz
    channels: int


def probe_audio(path: str | Path) -> AudioInfo:
    """Look at every packet of a file with sound, with or without picture; a cover picture is no picture.

    Raises:
        MediaError: the file is missing, unreadable, without sound, cut or damaged.
    """
    with open_media(path) as container:
        context = stream_of(container, "audio").codec_context
        return AudioInfo(Path(path), _seconds(path, "audio")[0], context.sample_rate, context.channels)


def _seconds(path: str | Path, kind: Kind) -> tuple[float, dict[Kind, Gap]]:
    """End of the picture or the sound by the time stamps of its packets, checked against the header; and the gaps."""
    with open_media(path) as container:
        stream, zero = stream_of(container, kind), clock_zero(container)
        promised = ((container.start_time or 0) + container.duration) / av.time_base if container.duration else 0
        tracks, trouble = _tracks(container)
        ends = [track.end * track.time_base for track in tracks.values() if track.end is not None]
        mine = tracks.get(stream.index)
        end = mine.end * mine.time_base if mine and mine.end is not None else zero
        guessed = container.format.name in HEADERLESS
        firsts = {k: next(iter(streams_of(container, k)), None) for k in KINDS}
        gaps = {k: tracks[s.index].gap(zero) for k, s in firsts.items() if s and s.index in tracks}
    if trouble or (max(ends, default=zero) < promised - CUT and not guessed):
        raise MediaError(
            f"{path} is cut or damaged: {float(end - zero):.2f} s of {KINDS[kind]} can be read of a file of "
            f"{promised:.2f} s{trouble}; replace the file or remove it"
        )
    return float(end - zero), gaps


def _tracks(container: av.container.InputContainer) -> tuple[dict[int, "_Times"], str]:
    """Times of each stream, by its packets, and why reading stopped before the end of the file, or ""."""
    tracks: dict[int, _Times] = {}
    try:
        for packet in container.demux():
            if not packet.is_discard and (packet.pts, packet.dts) != (None, None):
                tracks.setdefault(packet.stream_index, _Times(packet.time_base)).add(packet)
    except av.FFmpegError as error:
        return tracks, f" ({error.strerror})"
    return tracks, ""


class _Times:
    """End and longest gap of one stream, in its ticks, out of packets in the order of decoding, in constant memory."""

    def __init__(self, time_base: Fraction):
        self.time_base, self.end = time_base, None
        self._ahead: list[int] = []  # starts that earlier ones may still follow
        self._last, self._longest = None, (0, 0)

    def add(self, packet: av.Packet) -> None:
        """Take in the next packet; one without a time of its own (B-frames of AVI) counts by when it is decoded."""
        if packet.pts is not None:
            end = packet.pts + (packet.duration or frame_ticks(packet.stream))
            self.end = end if self.end is None else max(self.end, end)
        heapq.heappush(self._ahead, packet.dts if packet.pts is None else packet.pts)
        if len(self._ahead) > REORDER:
            self._pass(heapq.heappop(self._ahead))

    def _pass(self, start: int) -> None:
        if self._last is not None:
            self._longest = max(self._longest, (start - self._last, self._last))
        self._last = start

    def gap(self, zero: Fraction) -> Gap:
        """The longest one, when all packets are in; the time that the last one lasts counts too."""
        for start in (*sorted(self._ahead), *([] if self.end is None else [self.end])):
            self._pass(start)
        ticks, at = self._longest
        return Gap(float(ticks * self.time_base), float(at * self.time_base - zero))

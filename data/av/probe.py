"""What there is in a media file, by its packets: sizes, lengths, gaps, and whether it is whole."""

import heapq
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from data.av.grid import grid_length
from data.av.media import (
    REORDER,
    Kind,
    MediaError,
    begin_of,
    clock_zero,
    frame_ticks,
    open_media,
    rate_of,
    stream_of,
    streams_of,
)
from data.av.pixels import Screen

KINDS = {"video": "picture", "audio": "sound"}
CUT = 0.5  # s; a file that ends this much before its header says is cut
HEADERLESS = ("mp3", "aac")  # FFmpeg guesses the length of these from their bit rate
FROM_ZERO = ("matroska,webm", "asf")  # their headers count the length from time zero, others from the first packet


@dataclass(frozen=True)
class Gap:
    """The longest time without a new picture; or without sound while there is a picture, at its ends too."""

    seconds: float
    at: float  # s, on the clock of the file


@dataclass(frozen=True)
class MediaInfo:
    """What `probe` finds: size of the upright picture in square pixels, and its length by its time stamps."""

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
        height, width = Screen(video).pixels(picture).shape[:2]
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
    gap: Gap


def probe_audio(path: str | Path) -> AudioInfo:
    """Look at every packet of a file with sound, with or without picture; a cover picture is no picture.

    Raises:
        MediaError: the file is missing, unreadable, without sound, cut or damaged.
    """
    with open_media(path) as container:
        context = stream_of(container, "audio").codec_context
        seconds, gaps = _seconds(path, "audio")
        return AudioInfo(Path(path), seconds, context.sample_rate, context.channels, gaps.get("audio", Gap(0, 0)))


def _seconds(path: str | Path, kind: Kind) -> tuple[float, dict[Kind, Gap]]:
    """End of the picture or the sound by the time stamps of its packets, checked against the header; and the gaps."""
    with open_media(path) as container:
        stream, zero = stream_of(container, kind), clock_zero(container)
        promised = _promised(container)
        tracks, trouble = _tracks(container, zero)
        ends = [track.end * track.time_base for track in tracks.values() if track.end is not None]
        mine = tracks.get(stream.index)
        if kind == "video" and mine and 10 * mine.timeless > mine.timed + mine.timeless:
            raise MediaError(
                f"{path} tells no time of {mine.timeless} of its {mine.timed + mine.timeless} pictures; "
                f"encode it as mp4 first"
            )
        end = mine.end * mine.time_base if mine and mine.end is not None else zero
        guessed = container.format.name in HEADERLESS
        firsts = {k: next(iter(streams_of(container, k)), None) for k in KINDS}
        found = {k: tracks[s.index] for k, s in firsts.items() if s and s.index in tracks}
        shown = found.get("video")
        until = shown.end * shown.time_base if shown and shown.end is not None else None
        gaps = {k: times.gap(until) for k, times in found.items()}
    if trouble or (max(ends, default=zero) < promised - CUT and not guessed):
        raise MediaError(
            f"{path} is cut or damaged: {float(end - zero):.2f} s of {KINDS[kind]} can be read of a file of "
            f"{promised:.2f} s{trouble}; replace the file or remove it"
        )
    return float(end - zero), gaps


def _promised(container: av.container.InputContainer) -> float:
    """End of a file by its header, in the seconds of its time stamps; 0 where it tells none."""
    start = 0 if container.format.name in FROM_ZERO else container.start_time or 0
    return (start + container.duration) / av.time_base if container.duration else 0


def _tracks(container: av.container.InputContainer, zero: Fraction) -> tuple[dict[int, "_Times"], str]:
    """Times of each stream, by its packets, and why reading stopped before the end of the file, or ""."""
    tracks: dict[int, _Times] = {}
    try:
        for packet in container.demux():
            if packet.is_discard or not packet.size:
                continue
            track = tracks.setdefault(packet.stream_index, _Times(packet.time_base, zero))
            if (begin := begin_of(packet)) is None:
                track.timeless += 1
            else:
                track.add(begin, packet.duration or frame_ticks(packet.stream), _heard(packet))
    except av.FFmpegError as error:
        return tracks, f" ({error.strerror})"
    return tracks, ""


def _heard(packet: av.Packet) -> int:
    """Ticks for which a packet of sound is heard; 0 of a picture, which is new for an instant only."""
    context = packet.stream.codec_context
    if packet.stream.type != "audio" or not context:
        return 0
    if not packet.duration:  # WavPack and ALAC in Matroska
        return round(sum(Fraction(frame.samples, frame.sample_rate) for frame in packet.decode()) / packet.time_base)
    known = context.sample_rate and round(context.frame_size / context.sample_rate / packet.time_base)
    return min(known or packet.duration, packet.duration)  # mp4 lets a packet before a gap last until its end


class _Times:
    """End and longest gap of one stream, in its ticks, out of packets in the order of decoding, in constant memory."""

    def __init__(self, time_base: Fraction, zero: Fraction):
        self.time_base, self.end = time_base, None
        self.timed = self.timeless = 0  # packets that say when they are shown or heard, and that do not
        self._zero = self._filled = round(zero / time_base)
        self._ahead: list[tuple[int, int]] = []  # spans that earlier ones may still follow
        self._longest = 0, self._zero

    def add(self, begin: int, told: int, heard: int) -> None:
        """Take in the next packet; the length that a file tells may hide a gap, that of its sound cannot."""
        self.timed += 1
        end = begin + max(told, heard)
        self.end = end if self.end is None else max(self.end, end)
        heapq.heappush(self._ahead, (begin, begin + heard))
        if len(self._ahead) > REORDER:
            self._pass(*heapq.heappop(self._ahead))

    def _pass(self, begin: int, filled: int) -> None:
        self._longest = max(self._longest, (begin - self._filled, self._filled))
        self._filled = max(self._filled, filled)

    def gap(self, until: Fraction | None) -> Gap:
        """The longest one from the clock's zero to `until` (s; None: to the end of the stream), when all is in."""
        end = self.end if until is None else round(until / self.time_base)
        for span in (*sorted(self._ahead), *([] if end is None else [(end, end)])):
            self._pass(*span)
        ticks, at = self._longest
        return Gap(float(ticks * self.time_base), float((at - self._zero) * self.time_base))

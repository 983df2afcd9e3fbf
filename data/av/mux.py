"""The picture of one file and the sound of another in a third, copied where its container can hold them."""

import heapq
import os
from collections.abc import Iterator
from fractions import Fraction
from operator import itemgetter
from pathlib import Path

import av

from data.av.media import (
    REORDER,
    MediaError,
    begin_of,
    clock_zero,
    frame_ticks,
    open_media,
    rate_of,
    reading,
    stream_of,
    tells_decoding_only,
)
from data.av.probe import KINDS
from data.av.write import CONTAINERS, part_of, writing

PLAYED_IN_MP4 = {"h264", "hevc", "av1", "vp9", "mpeg4", "aac", "mp3", "ac3", "eac3", "alac", "opus"}


def mux(
    video_from: str | Path, audio_from: str | Path, out: str | Path, seconds: float | None = None, flac: bool = False
) -> Path:
    """Write the picture of one file with the sound of another, packet for packet, in constant memory.

    Each file's clock zero (see `data.av.media`) comes to lie on the other's, so sound that starts late, or before the
    picture, is still in sync. The file appears whole, under its name, and replaces an older one.

    Args:
        out: .mkv, or .mp4; this becomes .mkv where players do not expect one of the codecs in mp4 (PCM, FLAC, Vorbis).
        seconds: length of the result: each track ends within one packet of it, unless its source is shorter. Pictures
            from after it that earlier ones are decoded from (B-frames) are kept, and shown for an instant at the end.
        flac: encode the sound anew as FLAC, which takes any sound; up to 24 bits are kept.
    Returns:
        The path that was really written.
    Raises:
        MediaError: a source cannot be read, has no such track or one that no film can hold, or `out` has another
            suffix.
        OSError: the disk is full, or the like.
    """
    with open_media(video_from) as film, open_media(audio_from) as song:
        film_track, song_track = stream_of(film, "video"), stream_of(song, "audio")
        out = _fitting(Path(out), {_codec(film_track), "flac" if flac else _codec(song_track)})
        part = part_of(out)
        try:
            with writing(out), av.open(str(part), "w", format=CONTAINERS[out.suffix]) as container:
                heard = (_as_flac if flac else _copied)(container, song, song_track, seconds)
                shown = _copied(container, film, film_track, seconds)
                for _, packet in heapq.merge(shown, heard, key=itemgetter(0)):  # takes one of each before the first
                    container.mux(packet)
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)
    return out


def _codec(stream: av.stream.Stream) -> str:
    return stream.codec_context.codec.canonical_name


def _fitting(out: Path, codecs: set[str]) -> Path:
    """The path with the suffix of a container in which players expect these codecs."""
    if out.suffix not in CONTAINERS:
        raise MediaError(f"{out} should end in .mp4 or .mkv; rename it")
    if not out.parent.is_dir():
        raise MediaError(f"{out} cannot be written because its folder does not exist; make the folder first")
    return out if codecs <= PLAYED_IN_MP4 else out.with_suffix(".mkv")


def _copied(
    container: av.container.OutputContainer,
    source: av.container.InputContainer,
    track: av.stream.Stream,
    seconds: float | None,
) -> Iterator[tuple[Fraction, av.Packet]]:
    """(decoding time in seconds, packet) of a track as it is."""
    try:
        target = container.add_stream_from_template(track, opaque=True)
    except ValueError as error:
        raise MediaError(
            f"the {KINDS[track.type]} of {source.name} cannot be copied ({error}); convert it to H.264 or FLAC"
        ) from error
    if track.type == "video":  # else Matroska does not tell for how long the last picture is shown
        target.codec_context.framerate = rate_of(track)
    yield from _packets(source, track, target, seconds)


def _as_flac(
    container: av.container.OutputContainer,
    source: av.container.InputContainer,
    track: av.AudioStream,
    seconds: float | None,
) -> Iterator[tuple[Fraction, av.Packet]]:
    """(decoding time in seconds, packet) of a sound track encoded anew."""
    heard, zero = track.codec_context, round(clock_zero(source) / track.time_base)
    target = container.add_stream("flac", rate=heard.sample_rate, layout=heard.layout)
    target.codec_context.format = "s16" if heard.format.bytes <= 2 else "s32"
    with reading(source.name):
        for frame in source.decode(track):
            frame.pts -= zero
            if seconds is not None and frame.pts * track.time_base >= seconds:
                break
            yield from ((packet.dts * packet.time_base, packet) for packet in target.encode(frame))
    yield from ((packet.dts * packet.time_base, packet) for packet in target.encode(None))


def _packets(
    container: av.container.InputContainer, source: av.stream.Stream, target: av.stream.Stream, seconds: float | None
) -> Iterator[tuple[Fraction, av.Packet]]:
    """(decoding time in seconds, packet for `target`) on the file's clock, as far as a film of `seconds` needs them."""
    timed = _timed(container, source)
    if source.type == "audio":
        timed = _on_samples(timed, source)
    for packet in timed:
        cut = None if seconds is None else round(Fraction(seconds) / packet.time_base)
        if cut is not None and packet.dts >= cut:
            return
        if cut is not None and packet.pts >= cut:
            packet.pts = cut + (packet.pts - cut) // max(frame_ticks(source), 1)  # B-frames need it; a tick each
            packet.duration = 1
        packet.stream = target
        yield packet.dts * packet.time_base, packet


def _timed(container: av.container.InputContainer, source: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets of a stream in decoding order, on the file's clock."""
    zero = round(clock_zero(container) / source.time_base)
    disordered = tells_decoding_only(source) and source.codec_context.has_b_frames
    opening = []  # Matroska tells no decoding times before the first pictures that are out of order
    with reading(container.name):
        for packet in container.demux(source):
            if not packet.size:  # the end
                break
            if packet.pts is None or len(opening) > REORDER or disordered:
                raise MediaError(f"{container.name} has packets without a time; convert it to mp4 first")
            packet.pts = begin_of(packet) - zero
            if packet.dts is None:
                opening.append(packet)
                continue
            packet.dts -= zero
            yield from _before(packet.dts, opening, source)
            opening = []
            yield packet
    if opening:
        yield from _before(min(packet.pts for packet in opening), opening, source)


def _before(dts: int, opening: list[av.Packet], source: av.stream.Stream) -> Iterator[av.Packet]:
    """Packets with their decoding times set to the frames right before `dts`."""
    for ahead, packet in zip(range(len(opening), 0, -1), opening):
        packet.dts = dts - ahead * frame_ticks(source)
        yield packet


def _on_samples(packets: Iterator[av.Packet], source: av.AudioStream) -> Iterator[av.Packet]:
    """Sound packets from a clock coarser than a sample (Matroska's) put back on the sample: rounding is no gap."""
    rate, size = source.codec_context.sample_rate, source.codec_context.frame_size
    tick, end = source.time_base * rate, None
    for packet in packets:
        if tick > 1 and size:
            at = round(packet.pts * tick)
            at = end if end is not None and abs(at - end) <= 2 * tick else at
            packet.pts = packet.dts = at
            packet.duration, packet.time_base = size, Fraction(1, rate)
            end = at + size
        yield packet

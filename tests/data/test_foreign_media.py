"""Files as cameras, phones and other programs write them: turned, mirrored, squeezed, HDR, without times, late.

What is expected follows from how a file is made: picture k shows the number k, and a click starts with a known sample.
"""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from data.av import MediaError, iter_frames, mux, probe, probe_audio, read_audio, read_frames
from data.clips import examine

FPS, RATE = 25, 48000


def numbered(k):
    """A 64x48 picture that holds k in binary, as eight black or white columns."""
    return np.broadcast_to(255 * (k >> np.arange(64) // 8 & 1)[:, None], (48, 64, 3)).astype(np.uint8)


def numbers(frames):
    """The k of each frame, which may be of any width."""
    rows = frames[:, 24, frames.shape[2] // 16 :: frames.shape[2] // 8, 0]
    return ((rows > 128) * 2 ** torch.arange(8)).sum(1).tolist()


def write(path, pictures=(), sound=None, codec="libx264", heard="aac", rate=RATE, form=None, block=None, **how):
    """Write a file: pictures as {tick: pixels} or a list, 25 ticks a second; sound as float32 (N,) at `rate`.

    how: `options` of the video codec, `start` in ticks of both streams, and attributes of the video codec.
    """
    options, start = how.pop("options", {}), how.pop("start", 0)
    pictures = pictures if isinstance(pictures, dict) else dict(enumerate(pictures))
    with av.open(str(path), "w", format=form) as container:
        if pictures:
            first = next(iter(pictures.values()))
            video = container.add_stream(codec, rate=FPS, options={"threads": "1"} | options)
            video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
            for name, value in how.items():
                setattr(video.codec_context, name, value)
        if sound is not None:
            audio = container.add_stream(heard, rate=rate, layout="mono")
            audio.bit_rate = 128000
        for tick, pixels in pictures.items():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = start + tick, Fraction(1, FPS)
            container.mux(video.encode(frame))
        resampler = sound is not None and av.AudioResampler(audio.format.name, "mono", rate)
        for at in range(0, 0 if sound is None else len(sound), block or 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, at : at + (block or 1024)], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = at + start * rate // FPS
            for part in resampler.resample(frame):
                container.mux(audio.encode(part))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


def clicks(seconds, rate=RATE):
    """10 ms of a tone at the start of each second but the first: float32 (N,)."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.8 * np.sin(2 * np.pi * 1000 * t) * (t % 1 < 0.01) * (t >= 1)).astype(np.float32)


def onsets(wave, rate=16000):
    """Seconds at which clicks start."""
    loud = (wave.abs() > 0.3).nonzero().flatten()
    return [i.item() / rate for i in loud if not (loud < i).any() or i - loud[loud < i].max() > rate // 2]


def assert_windows_equal_the_whole(path, step=7):
    """Every window that an index would offer can be read, and shows and sounds as when read from the start."""
    whole = torch.stack(list(iter_frames(path, FPS)))
    assert len(whole) == probe(path).frames(FPS)
    for start in (*range(0, len(whole) - 4, step), len(whole) - 4):
        assert torch.equal(read_frames(path, start, 4, FPS), whole[start : start + 4]), start
    if probe(path).has_audio:
        wave = read_audio(path)
        for start in range(0, len(wave) - 2000, 7001):
            torch.testing.assert_close(read_audio(path, start, 2000), wave[start : start + 2000], rtol=0, atol=1e-4)
    return whole


# -------------------------------------------------------------------------------------------------- how it is shown

ORIENTATIONS = {  # a, b, c, d of the display matrix: quarters as players show them, of one stored as "RG" over "BW"
    (1, 0, 0, 1): "RG BW",
    (-1, 0, 0, 1): "GR WB",
    (1, 0, 0, -1): "BW RG",
    (-1, 0, 0, -1): "WB GR",
    (0, 1, 1, 0): "RB GW",
    (0, -1, 1, 0): "GW RB",
    (0, 1, -1, 0): "BR WG",
    (0, -1, -1, 0): "WG BR",
}
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def quarters(layout, height, width):
    """A picture of four colours."""
    rows = [np.stack([COLOURS[letter] for letter in row]) for row in layout.split()]
    return np.stack(rows).repeat(height // 2, 0).repeat(width // 2, 1).astype(np.uint8)


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=ORIENTATIONS.get)
def test_turned_and_mirrored_pictures_are_shown_upright(tmp_path, matrix):
    a, b, c, d = (65536 * entry for entry in matrix)
    data = bytearray(write(tmp_path / "a.mp4", [quarters("RG BW", 48, 64)] * 3).read_bytes())
    at = data.index(b"tkhd") + 44  # version and flags, times, track, layer, volume
    assert struct.unpack_from(">9i", data, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 2**30)
    (tmp_path / "a.mp4").write_bytes(data)
    info, frame = probe(tmp_path / "a.mp4"), read_frames(tmp_path / "a.mp4", 1, 1, FPS)[0]
    assert frame.shape == (info.height, info.width, 3) == ((48, 64, 3) if matrix[0] else (64, 48, 3))
    expected = torch.from_numpy(quarters(ORIENTATIONS[matrix], *frame.shape[:2])).float()
    inside = [slice(4, 20), slice(-20, -4)]  # chroma is blurred where colours meet
    for y in inside:
        for x in inside:
            assert (frame[y, x].float() - expected[y, x]).abs().max() < 40
    assert frame.is_contiguous()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("aspect, width", [((4, 3), 80), ((3, 4), 45), ((1, 1), 60), ((20, 1), 60), ((1, 20), 60)])
def test_pixels_come_out_square_and_a_damaged_shape_is_ignored(tmp_path, suffix, aspect, width):
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:30, 45:] = 255
    path = write(tmp_path / f"a{suffix}", [pixels] * 3, sample_aspect_ratio=Fraction(*aspect))
    frame = read_frames(path, 0, 1, FPS)[0]
    assert (probe(path).width, probe(path).height) == (width, 60) and frame.shape == (60, width, 3)
    edge = 3 * width // 4
    assert frame[10, edge + 4 :].min() > 230 and frame[10, : edge - 4].max() < 25 and frame[40].max() < 25


@pytest.mark.parametrize("trc, name", [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_by_name_with_the_remedy(tmp_path, trc, name):
    path = write(tmp_path / "a.mp4", [numbered(k) for k in range(20)], clicks(1), color_trc=trc)
    for read in (probe, lambda path: read_frames(path, 0, 1)):
        with pytest.raises(MediaError, match=rf"a\.mp4 is an HDR video \({name}\).*convert it to SDR"):
            read(path)
    assert "HDR" in examine(tmp_path, path.relative_to(tmp_path), 10, 16000, "mean").problem
    assert len(read_audio(path)) > 12000


@pytest.mark.parametrize("matrix, full", [(1, False), (5, False), (1, True)])
def test_colours_come_out_by_the_matrix_and_range_that_a_file_names(tmp_path, matrix, full):
    """A plane of Y'CbCr numbers, against the definition of the two matrices."""
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}[matrix]
    r, g, b = 200, 60, 30
    luma, scale = kr * r + (1 - kr - kb) * g + kb * b, 1 if full else 224 / 255
    levels = [
        luma if full else 16 + luma * 219 / 255,
        128 + scale * (b - luma) / (2 - 2 * kb),
        128 + scale * (r - luma) / (2 - 2 * kr),
    ]
    planes = [np.full(n, round(level), np.uint8) for n, level in zip((1024, 256, 256), levels)]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"qp": "0"})
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        video.codec_context.colorspace, video.codec_context.color_range = matrix, 1 + full
        frame = av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(48, 32), format="yuv420p")
        frame.colorspace, frame.color_range = matrix, 1 + full
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
    shown = read_frames(tmp_path / "a.mp4", 0, 1, FPS)[0].float()
    assert (shown - torch.tensor([r, g, b])).abs().max() <= 3


# -------------------------------------------------------------------------------------------------- when it is shown

REORDERED = {
    "x264": dict(codec="libx264", options={"bf": "3", "g": "12"}),
    "open groups": dict(codec="libx264", options={"bf": "3", "x264-params": "open-gop=1:keyint=12"}),
    "mpeg4": dict(codec="mpeg4", options={"bf": "2", "g": "12"}, bit_rate=10**6),
    "in order": dict(codec="mpeg4", options={"bf": "0", "g": "12"}, bit_rate=10**6),
}


@pytest.mark.parametrize("kind", REORDERED)
def test_pictures_of_avi_are_shown_in_order_each_once(tmp_path, kind):
    path = write(tmp_path / "a.avi", [numbered(k) for k in range(60)], clicks(2.4), heard="mp3", **REORDERED[kind])
    expected = list(range(60)) if kind != "in order" else [0, *range(60)]  # FFmpeg writes an empty chunk as the second
    assert numbers(assert_windows_equal_the_whole(path)) == expected


def test_a_hole_in_avi_stays_where_it_was(tmp_path):
    pictures = {k: numbered(k) for k in range(60) if not 20 < k < 28}
    path = write(tmp_path / "a.avi", pictures, options={"bf": "3", "g": "12"})
    assert numbers(assert_windows_equal_the_whole(path)) == [k if not 20 < k < 28 else 20 for k in range(60)]


def test_pictures_without_times_are_not_copied_out_of_order(tmp_path):
    pictures, song = [numbered(k) for k in range(30)], write(tmp_path / "a.m4a", sound=clicks(2))
    disordered = write(tmp_path / "b.avi", pictures, options={"bf": "3"})
    with pytest.raises(MediaError, match=r"b\.avi has packets without a time; convert it to mp4"):
        mux(disordered, song, tmp_path / "out.mp4")
    ordered = write(tmp_path / "c.avi", pictures, options={"bf": "0"})
    shown = list(iter_frames(ordered, FPS))
    out = mux(ordered, song, tmp_path / "out.mp4")
    assert numbers(torch.stack(list(iter_frames(out, FPS)))) == numbers(torch.stack(shown))
    assert abs(onsets(read_audio(out))[0] - 1) < 0.001


def test_a_last_picture_that_the_decoder_swallows_leaves_the_one_before(tmp_path):
    path = write(tmp_path / "a.mkv", [numbered(k) for k in range(24)], codec="mpeg2video", bit_rate=10**6)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"\0\0\1\0") + 3] = 0xB2  # the code of a picture becomes that of a comment
    path.write_bytes(data)
    assert numbers(assert_windows_equal_the_whole(path)) == [*range(23), 22]


@pytest.mark.parametrize("suffix, codec, heard", [(".mkv", "libx264", "aac"), (".wmv", "wmv2", "wmav2")])
def test_a_file_that_starts_late_is_whole(tmp_path, suffix, codec, heard):
    pictures = [numbered(k) for k in range(50)]
    path = write(tmp_path / f"a{suffix}", pictures, clicks(2), codec, heard, start=4 * FPS, bit_rate=10**6)
    assert abs(probe(path).seconds - 2) < 0.002 and probe_audio(path).seconds > 1.9
    assert numbers(assert_windows_equal_the_whole(path)) == list(range(50))


def test_a_file_that_starts_late_and_is_cut_is_still_found_out(tmp_path):
    path = write(tmp_path / "a.mkv", [numbered(k) for k in range(50)], clicks(2), start=4 * FPS)
    (tmp_path / "cut.mkv").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match="is cut or damaged"):
        probe(tmp_path / "cut.mkv")


def test_program_streams_are_read_at_any_place(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 3), np.uint8)  # fills packets, as films do
    pictures = [np.concatenate([numbered(k)[:28], noise]) for k in range(75)]
    how = dict(codec="mpeg2video", heard="mp2", form="mpeg", options={"bf": "2"}, bit_rate=2 * 10**6)
    path = write(tmp_path / "a.mpg", pictures, clicks(3), **how)
    assert numbers(assert_windows_equal_the_whole(path)) == list(range(75))
    assert np.allclose(onsets(read_audio(path)), [1, 2], atol=0.02)  # less than a packet


def test_pictures_without_any_time_are_refused(tmp_path):
    path = write(tmp_path / "a.mpg", [numbered(k) for k in range(60)], form="mpeg", options={"bf": "3"})
    with pytest.raises(MediaError, match=r"a\.mpg tells no time of \d+ of its 60 pictures; encode it as mp4"):
        probe(path)


# -------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("heard, block", [("wavpack", 48000), ("wavpack", 120000), ("alac", None)])
def test_sound_in_packets_that_tell_no_length_is_whole(tmp_path, heard, block):
    sound = clicks(5)
    path = write(tmp_path / "a.mkv", [numbered(k) for k in range(125)], sound, heard=heard, block=block)
    assert abs(probe_audio(path).seconds - 5) < 0.002 and probe(path).gaps["audio"].seconds < 0.1
    wave = read_audio(path)
    assert len(wave) == 5 * 16000 and np.allclose(onsets(wave), [1, 2, 3, 4], atol=0.001)
    assert not examine(tmp_path, path.relative_to(tmp_path), 10, 16000, "mean").problem


def test_a_hole_between_such_packets_is_still_a_gap(tmp_path):
    second = clicks(1) + 0.1
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height = 64, 48
        audio = container.add_stream("wavpack", rate=RATE, layout="mono")
        for k in range(6 * FPS):
            frame = av.VideoFrame.from_ndarray(numbered(k).copy(), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, FPS)
            container.mux(video.encode(frame))
        for at in (0, 1, 5):
            frame = av.AudioFrame.from_ndarray(second[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), at * RATE
            container.mux(audio.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    gap = probe(tmp_path / "a.mkv").gaps["audio"]
    assert (gap.seconds, gap.at) == (3, 2)


def test_wma_is_read_whole_and_in_sync(tmp_path):
    pictures = [numbered(k) for k in range(75)]
    path = write(tmp_path / "a.wmv", pictures, clicks(3), "wmv2", "wmav2", bit_rate=10**6)
    wave = read_audio(path)
    assert abs(len(wave) / 16000 - 3) < 0.1 and np.allclose(onsets(wave), [1, 2], atol=0.005)
    assert numbers(assert_windows_equal_the_whole(path)) == list(range(75))

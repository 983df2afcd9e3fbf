"""Real files, written and read back: frames by their times, sound to the sample, and what is said of broken files."""

import json
import wave as wavefile
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from data.av import (
    MediaError,
    Writer,
    grid_length,
    iter_frames,
    probe,
    read_audio,
    read_frames,
    select_frames,
    to_int16,
    write_clip,
)
from data.captions import Captioned
from data.clips import ClipDataset
from tests.closeness import assert_close_by_size


def flashes(seconds, fps=10, sample_rate=16000, every=2, size=64):
    """Dark noise with a white frame every `every` seconds, and a 10 ms click that starts with each of them."""
    frames = torch.randint(0, 60, (round(seconds * fps), size, size, 3), dtype=torch.uint8)
    sound = torch.zeros(round(seconds * sample_rate))
    click = 0.8 * torch.sin(2 * torch.pi * 1000 * torch.arange(sample_rate // 100) / sample_rate)
    for second in range(1, int(seconds), every):
        frames[round(second * fps)] = 255
        sound[second * sample_rate : second * sample_rate + len(click)] = click
    return frames, sound


def offsets(path, fps=10):
    """Seconds by which each click comes after its flash."""
    light = torch.stack([frame[..., 1].float().mean() for frame in iter_frames(path, fps)])
    sound = read_audio(path).abs()
    found = []
    for j in (light > 128).nonzero().flatten().tolist():
        lo = round((j / fps - 0.3) * 16000)
        onset = lo + (sound[lo : lo + 9600] > 0.1).nonzero()[0].item()
        found.append(onset / 16000 - j / fps)
    return torch.tensor(found)


def record(path, times, sound=None, rate=16000, late=0, codec="aac", channels=1, rotation=0, gap=None):
    """Write a foreign file: frame k at times[k] (in 1/30000 s), sound (C,N) from sample `late` on, with a gap.

    Frame k has a red top left quarter, and k in binary as eight black or white blocks below.
    """
    faststart = {"movflags": "faststart"} if path.suffix == ".mp4" else {}  # a file that can be cut and still opens
    with av.open(str(path), "w", options=faststart) as container:
        video = container.add_stream("libx264", rate=30, options={"g": "20"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 30000)
        if rotation:
            video.set_display_rotation(rotation)
        if sound is not None:
            layout, options = "stereo" if channels == 2 else "mono", {"aac_pns": "0"} if codec == "aac" else {}
            audio = container.add_stream(codec, rate=rate, layout=layout, options=options)
        for k, time in enumerate(times):
            pixels = np.zeros((48, 64, 3), dtype=np.uint8)
            pixels[:24, :32, 0] = 255
            pixels[32:] = 255 * np.repeat(k >> np.arange(8) & 1, 8)[:, None]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30000)
            container.mux(video.encode(frame))
        for at in range(0, 0 if sound is None else sound.shape[1], 1024):
            form = audio.codec_context.format.name
            block = np.ascontiguousarray(sound[:, at : at + 1024])
            block = block if form == "fltp" else (block.T.reshape(1, -1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format=form, layout=audio.layout.name)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = late + at + (gap[1] if gap and at >= gap[0] else 0)
            container.mux(audio.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


def numbers(frames):
    """The k that `record` painted into each frame."""
    return ((frames[:, 40, 4::8, 0] > 128) * 2 ** torch.arange(8)).sum(1).tolist()


def tone(samples, rate, channels=1):
    """Two tones and a little noise, another one in each channel: float32 (C,N)."""
    t = np.arange(samples) / rate
    rng = np.random.default_rng(0)
    waves = [
        0.3 * np.sin(2 * np.pi * 330 * (c + 1) * t)
        + 0.1 * np.sin(2 * np.pi * 2100 * t)
        + 0.01 * rng.standard_normal(samples)
        for c in range(channels)
    ]
    return np.stack(waves).astype(np.float32)


def even(seconds, rate=30):
    """Times in 1/30000 s of a constant rate."""
    return [round(k * 30000 / rate) for k in range(int(seconds * rate))]


# --------------------------------------------------------------------------------------------------- the frame grid


def test_selection_equals_the_official_one_at_every_rate(parity):
    for case in json.loads(parity("frame_selection").path.read_text()):
        count, window = case["source_frames"], case["window"]
        rate = Fraction(case["source_fps"]).limit_denominator(1000)
        total = grid_length(count / rate, float(rate), 10)
        timed = [(k / rate, k) for k in range(count)] + [(Fraction(total, 10), None)]
        shown = list(select_frames(timed, 10))
        assert [shown[j : j + window] for j in range(total - window + 1)] == case["clips"], case["source_fps"]
        assert list(select_frames(timed, 10, start=3)) == shown[3:]


def test_an_incomplete_last_group_counts_only_at_a_whole_stride():
    assert [grid_length(n / 30, 30, 10) for n in (43, 44, 45, 46)] == [15, 15, 15, 16]
    assert [grid_length(n / 25, 25, 10) for n in (37, 38, 39, 40)] == [14, 15, 15, 16]
    assert grid_length(3.999, 25, 10) == 40  # Matroska's millisecond


def test_the_first_frame_is_shown_from_the_start_even_if_it_is_late():
    timed = [(Fraction(3, 100), "a"), (Fraction(1, 10), "b"), (Fraction(1, 2), None)]
    assert list(select_frames(timed, 10)) == ["a", "b", "b", "b", "b"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_any_stretch_equals_the_same_stretch_read_from_the_start(tmp_path, suffix):
    path = record(tmp_path / f"a{suffix}", even(4), tone(64000, 16000))
    whole = torch.stack(list(iter_frames(path)))
    assert numbers(whole) == list(range(0, 120, 3)) and probe(path).frames() == 40
    for start in (1, 7, 20, 39):
        assert torch.equal(read_frames(path, start, min(3, 40 - start)), whole[start : start + 3])


def test_variable_rate_is_read_by_time_stamps(tmp_path):
    steps = [1000, 3000, 1500, 1100, 2900] * 16
    times = np.concatenate([[0], np.cumsum(steps)]).tolist()
    path = record(tmp_path / "vfr.mp4", times)
    expected = [max(k for k, time in enumerate(times) if time <= j * 3000) for j in range(probe(path).frames())]
    assert len(expected) == (times[-1] + 2900) // 3000
    assert numbers(torch.stack(list(iter_frames(path)))) == expected
    assert numbers(read_frames(path, 30, 8)) == expected[30:38]


def test_a_low_rate_repeats_frames_and_a_high_rate_of_the_grid_too(tmp_path):
    path = record(tmp_path / "slow.mp4", even(4, rate=5))
    assert numbers(read_frames(path, 0, 6)) == [0, 0, 1, 1, 2, 2]
    assert numbers(read_frames(path, 12, 6, fps=15)) == [4, 4, 4, 5, 5, 5]


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_is_honoured(tmp_path, rotation):
    path = record(tmp_path / "turned.mp4", even(1), rotation=rotation)
    info, frame = probe(path), read_frames(path, 9, 1)[0]
    assert frame.shape == (info.height, info.width, 3) == ((48, 64, 3) if rotation == 180 else (64, 48, 3))
    row, column = {90: (-8, 8), -90: (8, -8), 180: (-8, -8)}[rotation]  # counter-clockwise: top left goes bottom left
    assert frame[row, column, 0] > 200 and frame[-row, -column, 0] < 100 and frame.is_contiguous()


def test_frames_have_memory_of_their_own(tmp_path):
    path = record(tmp_path / "a.mp4", even(2, rate=5))  # every picture is shown twice
    first, second = (frame for _, frame in zip(range(2), iter_frames(path)))
    copy = second.clone()
    first.zero_()
    assert torch.equal(second, copy)


# ------------------------------------------------------------------------------------------------------------ sound


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
@pytest.mark.parametrize(
    "codec, suffix", [("aac", ".mp4"), ("pcm_s16le", ".mov"), ("aac", ".mkv"), ("pcm_s16le", ".mkv"), ("aac", ".ts")]
)
def test_slices_equal_the_whole(tmp_path, rate, codec, suffix):
    sound = tone(rate * 3, rate)
    path = record(tmp_path / f"a{suffix}", even(3), sound, rate, codec=codec)
    whole = read_audio(path)
    end = len(whole)
    if codec != "aac":
        torch.testing.assert_close(whole, resample(torch.tensor(sound[0]), rate, 16000), rtol=0, atol=1e-4)
    for start, count in [
        (0, 1600),
        (1, 5000),
        (15999, 3201),
        (31111, 16),
        (end - 700, 2000),
        (end + 50, 9),
        (end + 99999, 5),
        (-300, 900),
        (-50, 20),
    ]:
        expected = torch.zeros(count)
        inside = whole[max(start, 0) : max(start + count, 0)]
        expected[max(-start, 0) : max(-start, 0) + len(inside)] = inside
        assert_close_by_size(read_audio(path, start, count), expected)
    assert_close_by_size(read_audio(path, 40000), whole[40000:])
    assert len(read_audio(path, end + 9999)) == 0


def test_a_slice_far_inside_decodes_only_its_neighbourhood(tmp_path, monkeypatch):
    path = record(tmp_path / "a.mp4", even(4), tone(16000 * 60, 16000))
    decoded = []

    class Counter:
        def resample(self, frame):
            decoded.append(frame.samples)
            return [frame]

    monkeypatch.setattr("data.av.sound.av.AudioResampler", lambda **kw: Counter())
    assert read_audio(path, 800000, 1600).std() > 0.1
    assert sum(decoded) < 16000


def test_both_channels_are_mixed_or_the_first_is_taken(tmp_path):
    sound = tone(48000, 48000, channels=2)
    path = record(tmp_path / "a.mov", even(1), sound, 48000, codec="pcm_s16le", channels=2)
    mixed, first = (resample(torch.tensor(w), 48000, 16000) for w in (sound.mean(0), sound[0]))
    torch.testing.assert_close(read_audio(path), mixed, rtol=0, atol=1e-4)
    torch.testing.assert_close(read_audio(path, 3200, 800, channels="first"), first[3200:4000], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="'second', expected 'mean' or 'first'"):
        read_audio(path, channels="second")


@pytest.mark.parametrize("suffix, exact", [(".mp4", 0), (".mkv", 16)])
def test_a_late_track_is_padded_and_a_gap_keeps_sync(tmp_path, suffix, exact):
    burst = np.zeros((1, 32768), dtype=np.float32)
    burst[0, 4096] = burst[0, 20480] = 0.9
    path = record(tmp_path / f"late{suffix}", even(4), burst, late=8000, gap=(16384, 12000), codec="aac")
    whole = read_audio(path)
    found = [whole[:20000].abs().argmax().item(), 20000 + whole[20000:].abs().argmax().item()]
    assert abs(found[0] - 12096) <= exact and abs(found[1] - 40480) <= exact
    assert whole[:7000].eq(0).all()
    assert_close_by_size(read_audio(path, 39000, 3000), whole[39000:42000])


def test_a_late_picture_sets_the_clock_and_earlier_sound_is_cut(tmp_path):
    burst = np.zeros((1, 48000), dtype=np.float32)
    burst[0, 2000] = burst[0, 12000] = 0.9
    path = record(tmp_path / "late.mov", [6000 + time for time in even(2)], burst, codec="pcm_s16le")  # 0.2 s late
    whole = read_audio(path)
    assert whole.nonzero().flatten().tolist() == [12000 - 3200] and len(whole) == 48000 - 3200
    assert numbers(read_frames(path, 0, 3)) == [0, 3, 6] and probe(path).frames() == 20


def test_sound_without_picture_starts_with_itself(tmp_path):
    sound = torch.tensor(tone(20000, 16000)[0])
    with wavefile.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(to_int16(sound).numpy().tobytes())
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), sound, rtol=0, atol=1e-4)
    with pytest.raises(MediaError, match="has no video stream"):
        probe(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["audio_22050hz_2ch_4f", "audio_16000hz_1ch_4f", "audio_8000hz_1ch_3f"])
def test_prepared_sound_equals_the_official_one(parity, tmp_path, name):
    case = parity(name)
    sound, expected = case.tensors["in.audio"], case.tensors["out.wave"]
    rate, channels = case.config["sample_rate"], case.config["channels"]
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="stereo" if channels == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1).contiguous().numpy(), "flt", stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    wave = read_audio(tmp_path / "a.mov", 0, len(expected), channels="first")
    torch.testing.assert_close(wave, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("fps", [10, Fraction(30000, 1001)])
def test_picture_and_sound_stay_together(tmp_path, fps):
    frames, sound = flashes(30, 10, every=2, size=32)
    if fps != 10:  # the same clicks, each with the frame that is shown when it starts
        frames = frames[[int(k / fps * 10 + Fraction(1, 3)) for k in range(int(30 * fps))]]
    write_clip(tmp_path / "a.mp4", frames, sound, fps)
    late = offsets(tmp_path / "a.mp4")
    assert probe(tmp_path / "a.mp4").frames() == (300 if fps == 10 else 299)
    assert len(late) >= 14 and late.abs().max() < 0.005 and (late[-1] - late[0]).abs() < 0.0005


def test_a_written_clip_has_its_frames_and_samples(tmp_path):
    frames, sound = flashes(3)
    write_clip(tmp_path / "a.mp4", frames, torch.cat([sound, torch.ones(5000)]))
    read = torch.stack(list(iter_frames(tmp_path / "a.mp4")))
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.fps, info.seconds) == (64, 64, 10, 3)
    assert (info.sample_rate, info.channels, info.has_audio) == (16000, 1, True)
    assert read.shape == frames.shape and (read.float() - frames.float()).abs().mean() < 20
    with wavefile.open(str(tmp_path / "a.wav")) as file:
        stored = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    assert torch.equal(stored, to_int16(sound))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.wav"]


def test_short_sound_is_padded_to_the_picture(tmp_path):
    write_clip(tmp_path / "a.mp4", flashes(1.1)[0], torch.ones(100))
    with wavefile.open(str(tmp_path / "a.wav")) as file:
        assert file.getnframes() == 17600


def test_chunks_make_the_same_bytes_as_one_piece(tmp_path):
    frames, sound = flashes(3)
    write_clip(tmp_path / "whole.mp4", frames, sound)
    with Writer(tmp_path / "chunks.mp4", 64, 64) as writer:
        for k in range(0, 30, 5):
            writer.write(frames[k : k + 5], sound[:0])
            writer.write(frames[:0], sound[k * 1600 : (k + 5) * 1600])
    assert torch.equal(
        torch.stack(list(iter_frames(tmp_path / "whole.mp4"))), torch.stack(list(iter_frames(tmp_path / "chunks.mp4")))
    )
    assert torch.equal(read_audio(tmp_path / "whole.mp4"), read_audio(tmp_path / "chunks.mp4"))
    assert (tmp_path / "whole.wav").read_bytes() == (tmp_path / "chunks.wav").read_bytes()
    write_clip(tmp_path / "again.mp4", frames, sound)
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_odd_sides_get_their_last_row_and_column_twice(tmp_path):
    frames = torch.full((4, 31, 45, 3), 200, dtype=torch.uint8)
    write_clip(tmp_path / "odd.mp4", frames, torch.zeros(6400))
    read = read_frames(tmp_path / "odd.mp4", 0, 4)
    assert read.shape == (4, 32, 46, 3) and (read.int() - 200).abs().max() <= 3


def test_an_exception_leaves_nothing_and_spares_the_old_file(tmp_path):
    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "a.mp4", 64, 64) as writer:
        writer.write(*flashes(1))
        raise KeyboardInterrupt
    with pytest.raises(MediaError, match=r"got 0 frames and 0 samples"), Writer(tmp_path / "a.mp4", 64, 64):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_text() == "old"


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path):
    for arguments, message in [
        ((tmp_path / "a.avi", 64, 64), r"should end in \.mp4"),
        ((tmp_path / "no" / "a.mp4", 64, 64), "folder does not exist"),
        ((tmp_path / "a.mp4", 64, 64, 10, 12345), "12345 Hz"),
    ]:
        with pytest.raises(MediaError, match=message):
            Writer(*arguments)
    with pytest.raises(MediaError, match=r"float32 \(10, 64, 64, 3\)"), Writer(tmp_path / "a.mp4", 64, 64) as writer:
        writer.write(torch.zeros(10, 64, 64, 3), torch.zeros(16000))
    assert not list(tmp_path.iterdir())


def test_int16_equals_the_expected_one(parity):
    case = parity("int16_conversion")
    assert torch.equal(to_int16(case.tensors["in.wav"]).flatten(), case.tensors["out.expected"].flatten())


# ------------------------------------------------------------------------------------------------------ broken files


def test_each_kind_of_useless_file_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a film")
    (tmp_path / "empty.mp4").touch()
    record(tmp_path / "mute.mp4", even(1))
    for name in ("missing.mp4", "text.mp4", "empty.mp4"):
        message = "does not exist" if name == "missing.mp4" else "cannot be read"
        for read in (probe, read_audio, lambda path: read_frames(path, 0, 1)):
            with pytest.raises(MediaError, match=rf"{name} {message}"):
                read(tmp_path / name)
    assert not probe(tmp_path / "mute.mp4").has_audio
    with pytest.raises(MediaError, match=r"mute\.mp4 has no audio stream"):
        read_audio(tmp_path / "mute.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cut_file_is_reported_and_never_freezes(tmp_path, suffix):
    whole = record(tmp_path / f"whole{suffix}", even(4), tone(64000, 16000))
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    assert probe(whole).frames() == 40
    with pytest.raises(MediaError, match="is cut or damaged"):
        probe(cut)
    with pytest.raises(MediaError, match="is cut or damaged"):
        list(iter_frames(cut))
    assert numbers(read_frames(cut, 5, 3)) == [15, 18, 21]  # what is there can be read
    with pytest.raises(MediaError, match=r"frames asked for|cannot be read"):
        read_frames(cut, 10, 30)
    with pytest.raises(MediaError, match=r"cannot be read|0 of the 2"):
        read_frames(cut, 37, 2)


def test_past_the_end_is_an_error_and_not_the_last_frame_again(tmp_path):
    path = record(tmp_path / "a.mp4", even(2))
    for start, count in [(19, 2), (20, 1), (500, 3)]:
        with pytest.raises(MediaError, match=rf"of the {count} frames asked for from frame {start} at 10 fps"):
            read_frames(path, start, count)
    with pytest.raises(ValueError, match="start is -1"):
        read_frames(path, -1, 2)


# --------------------------------------------------------------------------------------------- clips of 2 s, SyncFlow's


def test_clips_of_a_30_fps_stereo_file_have_32_frames_and_96000_samples_at_their_times_and_one_caption(tmp_path):
    """Row S23: 16 fps and 48 kHz mono, from any frame of the grid; picture and sound within 1/32 s of their times."""
    sound, begins = tone(4 * 44100, 44100, channels=2), 1.5  # s
    sound[:, : round(begins * 44100)] = 0
    (tmp_path / "train").mkdir()
    record(tmp_path / "train/a.mov", even(4), sound, 44100, codec="pcm_s16le", channels=2)
    (tmp_path / "train/a.txt").write_text("three tones")
    data = ClipDataset(tmp_path, "train", 32, 64, fps=16, sample_rate=48000)
    assert len(data) == 4 * 16 - 32 + 1
    captioned = Captioned(data, data.captions(), data.folder, 32, 16)
    for start in (0, 13, 21):
        item, times = captioned[start], (start + torch.arange(32)) / 16
        assert item["frames"].shape == (32, 3, 64, 64) and item["wave"].shape == (96_000,) and item["y"].tolist() == [0]
        picture = numbers(((item["frames"] + 1) * 127.5)[:, :1, 8:56].movedim(1, -1))  # of 48 rows, padded to 64
        assert (torch.tensor(picture) / 30 - times).abs().max() <= 1 / 32
        first = (item["wave"].abs() > 0.1).nonzero()[0].item()
        assert abs(start / 16 + first / 48000 - begins) <= 1 / 32

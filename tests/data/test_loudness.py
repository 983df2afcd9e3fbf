"""How loud a file is, and why one cannot be used: channels that cancel each other, samples that are no numbers."""

import math
from pathlib import Path

import av
import pytest
import torch

from data.av import MediaError, write_clip
from data.clips import examine
from data.loudness import lost_in_mono, peak_of, usable_peak
from tests.gaps import write_heard
from tests.given import tone, write_sound

RATE = 16000


def stereo(left: float, right: float):
    """A tone of 300 Hz in two channels, (2,N)."""
    return torch.tensor([[left], [right]]) * tone(1)


def filmed(path: Path, sound: Path) -> Path:
    """A video of ten grey frames with the very sound of a file."""
    write_clip(path.with_suffix(".mp4"), torch.full((10, 16, 16, 3), 99, dtype=torch.uint8), torch.zeros(0))
    with av.open(path.with_suffix(".mp4")) as film, av.open(sound) as song, av.open(path, "w") as container:
        sources = film.streams.video[0], song.streams.audio[0]
        for source, target in [(s, container.add_stream_from_template(s, opaque=True)) for s in sources]:
            for packet in source.container.demux(source):
                if packet.size:
                    packet.stream = target
                    container.mux(packet)
    path.with_suffix(".mp4").unlink()
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.m4a", "aac"), ("a.flac", "flac")])
def test_mean_of_opposite_phases_is_no_silence_but_lost_and_the_other_way_is_named(tmp_path, name, codec):
    path = write_sound(tmp_path / name, stereo(1, -1), RATE, codec, 2)
    mean, first = (peak_of(path, RATE, channels) for channels in ("mean", "first"))
    assert mean < 0.002 and first == pytest.approx(tone(1).abs().max().item(), abs=0.02)
    assert lost_in_mono(path, mean, RATE, "mean") == "silent with --channels mean, not with --channels first"
    with pytest.raises(MediaError, match=rf"{name} is silent with --channels mean, not with --channels first"):
        usable_peak(path, RATE, "mean")
    assert usable_peak(path, RATE, "first") == first
    folder = filmed(tmp_path / "film.mkv", path).parent
    for channels, problem in (("mean", "silent with --channels mean, not with --channels first"), ("first", "")):
        assert examine(folder, Path("film.mkv"), 10, RATE, channels).problem == problem


@pytest.mark.parametrize(
    ("left", "right", "channels", "problem"),
    [
        (0, 1, "first", "silent with --channels first, not with --channels mean"),
        (0, 1, "mean", ""),
        (1, -0.8, "mean", ""),  # a tenth is left
        (1, -0.998, "mean", "silent with --channels mean, not with --channels first"),  # as a lossy codec leaves them
        (0, 0, "mean", "silent"),
        (0.002, 0.002, "mean", ""),  # faint, and so is each channel
    ],
)
def test_only_what_mono_loses_is_lost(tmp_path, left, right, channels, problem):
    filmed(tmp_path / "film.mkv", write_sound(tmp_path / "a.wav", stereo(left, right), RATE, "pcm_s16le", 2))
    assert examine(tmp_path, Path("film.mkv"), 10, RATE, channels).problem == problem


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("second", [0.5, 65.2])
def test_sample_that_is_no_finite_number_is_named_with_its_file_and_second(tmp_path, broken, second):
    wave = torch.full((70 * 1000,), 0.1)
    wave[round(second * 1000)] = broken
    path = write_sound(tmp_path / "a.wav", wave, 1000, "pcm_f32le")
    with pytest.raises(MediaError, match=rf"a\.wav has sound that is NaN or infinite at {second} s"):
        peak_of(path, 1000, "mean")
    assert peak_of(path, 1000, "mean", samples=400) == pytest.approx(0.1)  # what is not used does not matter


def test_video_whose_sound_is_not_finite_is_skipped_with_that_reason(tmp_path):
    wave = tone(1)
    wave[8000] = math.nan
    filmed(tmp_path / "film.mkv", write_sound(tmp_path / "a.wav", wave, RATE, "pcm_f32le"))
    problem = examine(tmp_path, Path("film.mkv"), 10, RATE, "mean").problem
    assert problem.startswith("unreadable: ") and "film.mkv has sound that is NaN or infinite at 0.5 s" in problem


@pytest.mark.parametrize(
    ("begin", "end", "problem"),
    [
        (0, 1, "too long gaps: no sound for 7.0 s from 1.0 s on"),
        (5, 8, "too long gaps: no sound for 5.0 s from 0.0 s on"),
        (1.5, 6.5, ""),
        (0, 8, ""),
    ],
)
def test_sound_that_is_missing_at_an_end_of_the_picture_is_a_gap_like_one_in_the_middle(tmp_path, begin, end, problem):
    write_heard(tmp_path / "a.mov", begin, end)
    assert examine(tmp_path, Path("a.mov"), 10, RATE, "mean").problem == problem

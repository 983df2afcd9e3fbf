"""sample_a2v.py and sample_v2a.py on files that are not as they should be: what is mended, told, or skipped by name."""

import json
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from data.av import encode_film, iter_frames, mux, probe, read_audio, write_clip
from pipeline.conditional import Job
from pipeline.film import RealClip
from tests.gaps import write_heard
from tests.given import packets, pictures, records, run, samples_of, tiny, tone, write_sound

RATE = 16000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    tiny().save(folder)
    return folder


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def blank_sheet(monkeypatch):
    """Drawing takes longer than sampling here."""
    monkeypatch.setattr("contact.contact_sheets", lambda clips, path: path.write_bytes(b""))


def write_pictures(path: Path, shown, codec: str, fps: float = 10, pix_fmt: str = "rgb24") -> Path:
    """A video without sound, uint8 (T,H,W,3)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = shown.shape[2], shown.shape[1], pix_fmt
        for picture in shown.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def skipped(folder: Path) -> list[str]:
    """Why inputs were skipped."""
    return [reason for _, reason in json.loads((folder / "run.json").read_text())["skipped"]]


def mu_law(code: np.ndarray) -> np.ndarray:
    """16-bit samples of G.711's mu-law codes."""
    code = ~code.astype(np.uint8)
    size = ((((code & 15).astype(int) << 3) + 132) << ((code >> 4) & 7)) - 132
    return np.where(code & 128, -size, size)


# --------------------------------------------------------------------------------------------------------------- sound


def test_sound_that_mono_loses_is_skipped_by_name_and_channels_first_takes_it(
    checkpoint, inputs, tmp_path, blank_sheet
):
    left = tone(0.4)
    write_sound(inputs / "opposite.wav", torch.stack([left, -left]), RATE, "pcm_s16le", 2)
    write_sound(inputs / "same.wav", left, RATE, "pcm_s16le", 2)
    out = run("a2v", checkpoint, tmp_path / "mean", "--input", inputs)
    assert [r["input"] for r in records(out)] == [str(inputs / "same.wav")]
    assert "opposite.wav is silent with --channels mean, not with --channels first" in skipped(out)[0]
    out = run("a2v", checkpoint, tmp_path / "first", "--input", inputs, "--channels", "first")
    for record in records(out):
        made = samples_of((out / record["file"]).with_suffix(".wav"))
        assert (made.float() / 32768 - left).abs().max() < 1e-4
    assert len(records(out)) == 2 and json.loads((out / "run.json").read_text())["spec"]["channels"] == "first"


def test_sound_that_is_not_finite_is_skipped_by_name_though_it_is_past_what_is_sampled(
    checkpoint, inputs, tmp_path, blank_sheet, caplog
):
    late = tone(61, 1000)
    late[60500] = math.nan
    write_sound(inputs / "late.wav", late, 1000, "pcm_f32le")
    write_sound(inputs / "whole.wav", tone(0.5), RATE, "pcm_f32le")
    out = run("a2v", checkpoint, tmp_path / "out", "--input", inputs, "--video-length", 3)
    assert [(r["file"], r["frames"]) for r in records(out)] == [("sample_00001_whole.mkv", 3)]
    assert "late.wav has sound that is NaN or infinite at 60.5 s" in skipped(out)[0] and skipped(out)[0] in caplog.text


def test_sound_that_no_film_can_hold_becomes_flac_without_loss_and_the_others_are_copied(
    checkpoint, inputs, tmp_path, blank_sheet, caplog
):
    write_sound(inputs / "a.mp3", tone(0.4), RATE, "mp3")
    write_sound(inputs / "b.wav", tone(0.4), RATE, "pcm_s16le")
    coded = write_sound(inputs / "c.wav", torch.stack([tone(0.4, 8000), tone(0.4, 8000, 500)]), 8000, "pcm_mulaw", 2)
    out = run("a2v", checkpoint, tmp_path / "out", "--input", inputs)
    assert [r["file"] for r in records(out)] == ["sample_00000_a.mp4", "sample_00001_b.mkv", "sample_00002_c.mkv"]
    with av.open(out / "sample_00002_c.mkv") as film:
        assert film.streams.audio[0].codec_context.name == "flac"
        heard = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in film.decode(audio=0)])
    codes = np.frombuffer(b"".join(data for data, _ in packets(coded, "audio")), np.uint8).reshape(-1, 2)
    assert len(heard) == 3200 and (heard == mu_law(codes)).all()
    (note,) = records(out)[2]["notes"]
    assert "c.wav cannot be copied" in note and "pcm_mulaw" in note and "FLAC" in note and note in caplog.text
    assert "notes" not in records(out)[0] and skipped(out) == []


def test_flac_ends_with_the_film_and_keeps_sound_where_it_was(tmp_path):
    write_clip(tmp_path / "film.mp4", pictures(10, 16, 16), torch.zeros(0))
    write_heard(tmp_path / "late.mov", begin=0.5, end=4, seconds=4)
    for seconds, end in ((None, 4), (1, 1)):
        out = mux(tmp_path / "film.mp4", tmp_path / "late.mov", tmp_path / "out.mp4", seconds, flac=True)
        wave, source = read_audio(out), read_audio(tmp_path / "late.mov")
        assert out.suffix == ".mkv" and abs(len(wave) / RATE - end) < 0.1
        torch.testing.assert_close(wave[: end * RATE - 1600], source[: end * RATE - 1600], rtol=0, atol=1e-4)


def test_hole_in_the_given_sound_is_told(checkpoint, inputs, tmp_path, blank_sheet, caplog):
    write_heard(inputs / "late.mov", begin=0.3, end=0.8, seconds=0.8)
    write_heard(inputs / "whole.mov", begin=0, end=0.5, seconds=0.5)
    out = run("a2v", checkpoint, tmp_path / "out", "--input", inputs)
    late, whole = records(out)
    assert late["notes"] == [f"{inputs / 'late.mov'} has no sound for 0.3 s from 0.0 s on"]
    assert late["notes"][0] in caplog.text and "notes" not in whole


@pytest.mark.parametrize(("end", "told"), [(1.6, True), (1.95, False)])
def test_clip_to_extend_whose_sound_ends_early_is_told(tmp_path, caplog, end, told):
    write_heard(tmp_path / "clip.mov", begin=0, end=end, seconds=2)
    assert RealClip.open(tmp_path / "clip.mov", tiny().codec).frames == 20
    assert ("clip.mov has no sound for 0.4 s from 1.6 s on" in caplog.text) == told == bool(caplog.text)


@pytest.mark.parametrize(("right", "said"), [(-1, "not with --channels first"), (math.nan, "NaN or infinite at 0.0 s")])
def test_clip_to_extend_whose_sound_cannot_be_used_is_refused_by_name(tmp_path, right, said):
    sound = write_sound(tmp_path / "clip.wav", torch.stack([tone(1), right * tone(1)]), RATE, "pcm_f32le", 2)
    write_clip(tmp_path / "film.mp4", pictures(10), torch.zeros(0))
    clip = mux(tmp_path / "film.mp4", sound, tmp_path / "clip.mkv")
    with pytest.raises(ValueError, match=f"clip.mkv .*{said}"):
        RealClip.open(clip, tiny().codec)


# ------------------------------------------------------------------------------------------------------------- picture


def test_picture_that_no_film_can_hold_becomes_h264_and_the_others_are_copied(
    checkpoint, inputs, tmp_path, blank_sheet, caplog
):
    shown = pictures(6)
    codecs = {"a.mov": "png", "b.avi": "huffyuv", "c.mp4": "libx264"}
    formats = {"png": "rgb24", "huffyuv": "yuv422p", "libx264": "yuv420p"}
    for name, codec in codecs.items():
        write_pictures(inputs / name, shown, codec, pix_fmt=formats[codec])
    out = run("v2a", checkpoint, tmp_path / "out", "--input", inputs)
    assert [r["file"] for r in records(out)] == [f"sample_0000{i}_{'abc'[i]}.mp4" for i in range(3)]
    for record, codec in zip(records(out), codecs.values()):
        film = out / record["file"]
        with av.open(film) as container:
            assert container.streams.video[0].codec_context.name == "h264"
        seen = torch.stack(list(iter_frames(film)))
        assert (seen.float() - shown.float()).abs().mean() < 12  # 24 px wide, of random colours in 4:2:0
        made, heard = samples_of(film.with_suffix(".wav")).float(), read_audio(film, 0, 6 * 1600)
        assert len(made) == 6 * 1600 and torch.corrcoef(torch.stack([heard, made]))[0, 1] > 0.8
        assert ("notes" in record) == (codec != "libx264")
    assert "a.mov cannot be copied" in caplog.text and "png" in caplog.text and "H.264" in caplog.text


@pytest.mark.parametrize("fps", [0.5, 10, 30000 / 1001])
def test_film_encoded_anew_has_every_picture_and_all_sound(tmp_path, fps):
    shown = pictures(5, 17, 15)  # odd sides
    write_pictures(tmp_path / "in.mov", shown, "png", fps)
    wave = tone(5 / fps)
    write_sound(tmp_path / "in.wav", wave, RATE, "pcm_s16le")
    encode_film(tmp_path / "in.mov", tmp_path / "in.wav", tmp_path / "out.mp4")
    times = [time for _, time in packets(tmp_path / "out.mp4", "video")]
    assert sorted(times) == pytest.approx([k / fps for k in range(5)], abs=1e-3)
    heard = read_audio(tmp_path / "out.mp4", 0, len(wave))
    assert torch.corrcoef(torch.stack([heard, wave]))[0, 1] > 0.99
    encode_film(tmp_path / "in.mov", tmp_path / "in.wav", tmp_path / "cut.mp4", seconds=1.5 / fps)
    assert len(packets(tmp_path / "cut.mp4", "video")) == 2


def test_single_picture_that_lasts_a_second_lasts_it_in_its_film_and_is_on_the_sheet(
    checkpoint, inputs, tmp_path, monkeypatch
):
    sheet = []
    monkeypatch.setattr("contact.contact_sheets", lambda clips, path: sheet.extend(clips))
    source = write_pictures(inputs / "still.webm", pictures(1), "libvpx", fps=1, pix_fmt="yuv420p")
    out = run("v2a", checkpoint, tmp_path / "out", "--input", source)
    assert probe(out / "sample_00000_still.mkv").seconds == pytest.approx(1)
    assert [len(clip.frames) for clip in sheet] == [10]
    assert len(samples_of(out / "sample_00000_still.wav")) == RATE


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "film"),
    [
        ("ball_00001.mp4", "sample_00007_ball_00001"),
        ("a b: c?.mp4", "sample_00007_a_b_c"),
        ("cafe\u0301\n\x1b[2J.mp4", "sample_00007_caf\u00e9_2J"),
        ("../..\\up.wav", "sample_00007_up"),
        ("-.-\udcff.mp4", "sample_00007_-.-"),
        ("?.mp4", "sample_00007"),
        ("ж" * 200 + ".mp4", "sample_00007_" + "ж" * 40),
    ],
)
def test_film_bears_its_inputs_name_as_far_as_every_system_takes_it(name, film):
    assert Job(7, SimpleNamespace(path=Path(name)), None).name == film

"""sample_a2v.py and sample_v2a.py on a tiny checkpoint: any length, the input's own track, and what they refuse."""

import functools
import json
import resource
import shlex
import wave
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cli
import conditional
import sample_a2v
from data.av import MediaError, Writer, iter_frames, probe, read_audio, read_frames, to_int16
from data.clips import clip_sound
from data.frames import fit
from diffusion.noise import Modality
from models import FLAV
from pipeline import Streams
from pipeline.conditional import choose_inputs, conditioned_streams, find_inputs, folder_labels
from pipeline.sources import BLOCK, PictureSource, SoundSource
from tests.given import (
    NAMES,
    SCRIPTS,
    WINDOW,
    packets,
    records,
    run,
    samples_of,
    tiny,
    tone,
    write_sound,
    write_video,
)

RELEASED_A2V = """--model-ckpt MaverickAlex/R-FLAV-B-1-AIST --results-dir results --video-length 16 --num-videos 2048
    --num-timesteps 2 --data-path D"""


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    pipe.save(folder)
    return folder


@pytest.fixture(autouse=True)
def blank_sheet(monkeypatch, request):
    """Drawing takes longer than sampling here; one test looks at a real sheet."""
    if "real_sheet" not in request.fixturenames:
        monkeypatch.setattr("contact.contact_sheets", lambda clips, path: path.write_bytes(b""))


@pytest.fixture
def real_sheet():
    """Asks for a contact sheet that is drawn."""


def assert_same_packets(one, two, kind, count=None):
    """The track of `two` is that of `one`, byte for byte and at the same times up to the clock of Matroska."""
    (data, times), (copied, copied_times) = (zip(*packets(path, kind)) for path in (one, two))
    assert copied == data[: count or len(data)] and len(copied) > 0
    start, copied_start = times[0], copied_times[0]
    gaps = [(t - start) - (c - copied_start) for t, c in zip(times, copied_times)]
    assert max(map(abs, gaps)) <= 0.001


# ---------------------------------------------------------------------------------------------------- a sound is given


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels", "film"),
    [
        ("pcm.wav", "pcm_s16le", 44100, 2, "sample_00000_pcm.mkv"),
        ("song.mp3", "mp3", 44100, 2, "sample_00000_song.mp4"),
        ("song.flac", "flac", 22050, 1, "sample_00000_song.mkv"),
        ("song.m4a", "aac", 48000, 1, "sample_00000_song.mp4"),
    ],
)
def test_sound_file_gets_a_picture_and_keeps_its_own_track(checkpoint, tmp_path, name, codec, rate, channels, film):
    source = write_sound(tmp_path / name, tone(0.73, rate), rate, codec, channels)
    out = run("a2v", checkpoint, tmp_path / "out", "--input", source)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [film, Path(film).with_suffix(".wav").name, "samples.jsonl", "run.json", "contact_sheet.png"]
    )
    assert_same_packets(source, out / film, "audio")
    info = probe(out / film)
    assert (info.frames(10), info.width, info.height) == (7, 16, 16) and info.sample_rate == rate
    beside, expected = samples_of((out / film).with_suffix(".wav")), to_int16(read_audio(source, 0, 7 * 1600))
    assert len(beside) == len(expected) and (beside.int() - expected.int()).abs().max() <= 1
    assert records(out) == [{"file": film, "sample": 0, "input": str(source), "frames": 7}]


def test_video_gives_its_sound_and_gets_another_picture(checkpoint, tmp_path, real_sheet):
    source = write_video(tmp_path / "film.mp4", 5)
    out = run("a2v", checkpoint, tmp_path / "out", "--input", source)
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert_same_packets(source, out / "sample_00000_film.mp4", "audio")
    assert len(samples_of(out / "sample_00000_film.wav")) == 5 * 1600
    assert probe(out / "sample_00000_film.mp4").frames(10) == 5


def test_folder_may_hold_other_files_and_a_wav_beside_its_film_counts_once(checkpoint, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "notes.txt").write_text("")
    (inputs / ".hidden.wav").write_text("")
    write_sound(inputs / "b.wav", tone(0.5), 16000, "pcm_s16le")
    write_sound(inputs / "a.flac", tone(0.3), 16000, "flac")
    write_video(inputs / "c.mp4", 2)
    assert [path.name for path in sorted(inputs.glob("c.*"))] == ["c.mp4", "c.wav"]
    out = run("a2v", checkpoint, tmp_path / "out", "--input", inputs)
    assert [(Path(r["input"]).name, r["frames"]) for r in records(out)] == [("a.flac", 3), ("b.wav", 5), ("c.mp4", 2)]


def test_silence_gets_a_picture(checkpoint, tmp_path):
    source = write_sound(tmp_path / "silence.wav", torch.zeros(8000), 16000, "pcm_s16le")
    out = run("a2v", checkpoint, tmp_path / "out", "--input", source)
    assert read_frames(out / "sample_00000_silence.mkv", 0, 5).float().std() > 0
    assert not samples_of(out / "sample_00000_silence.wav").any()


# -------------------------------------------------------------------------------------------------- a picture is given


@pytest.mark.parametrize(("fps", "frames", "seen", "sound"), [(25, 18, 7, False), (10, 5, 5, True), (10, 1, 1, False)])
def test_video_gets_a_sound_and_keeps_its_own_picture(checkpoint, tmp_path, fps, frames, seen, sound):
    source = write_video(tmp_path / "film.mp4", frames, fps, sound)
    out = run("v2a", checkpoint, tmp_path / "out", "--input", source)
    assert_same_packets(source, out / "sample_00000_film.mp4", "video")
    made = samples_of(out / "sample_00000_film.wav")
    assert len(made) == seen * 1600 and made.float().std() > 10
    heard = read_audio(out / "sample_00000_film.mp4", 0, seen * 1600)
    assert torch.corrcoef(torch.stack([heard, made.float()]))[0, 1] > 0.8


# ------------------------------------------------------------------------------------------------- length, batch, seed


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four videos of 3 to 11 frames, shorter and longer than the window, in class folders."""
    folder = tmp_path_factory.mktemp("films")
    for i, (name, frames) in enumerate((("blue", 6), ("green", 3), ("red", 11), ("red", 5))):
        (folder / "test" / name).mkdir(parents=True, exist_ok=True)
        write_video(folder / "test" / name / f"{i}.mp4", frames, seed=i)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_inputs_of_different_lengths_share_the_model(checkpoint, films, tmp_path, monkeypatch, script):
    rows, step = [], Streams.step
    monkeypatch.setattr(Streams, "step", lambda self: rows.append(len(self.rows)) or step(self))
    out = run(script, checkpoint, tmp_path, "--data-path", films, "--batch-size", 2, "--method=replace")
    assert set(rows) == {1, 2} and rows.index(1) > 2 * (WINDOW + 6)  # a place is never free while an input waits
    assert [(r["file"], r["frames"], r["class"]) for r in records(out)] == [
        (f"sample_{i:05d}_{i}.mp4", frames, name)
        for i, (frames, name) in enumerate(((6, "blue"), (3, "green"), (11, "red"), (5, "red")))
    ]
    for i, frames in enumerate((6, 3, 11, 5)):
        assert len(samples_of(out / f"sample_{i:05d}_{i}.wav")) == frames * 1600
        assert probe(out / f"sample_{i:05d}_{i}.mp4").frames(10) == frames
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def made(pipe, given, method, paths, batch, seed=0, most=0, scale=25.0):
    """The latents generated for each input, `batch` side by side."""
    kind, latents = (SoundSource, "v") if given == "sound" else (PictureSource, "a")
    streams = conditioned_streams(pipe, given, method, scale, num_timesteps=2, cfg_scale=1.0)
    sources, parts = [kind(path, pipe.codec, WINDOW, most) for path in paths], [[] for _ in paths]
    waiting = list(enumerate(sources))
    while waiting or streams.rows:
        while waiting and len(streams.rows) < batch:
            i, source = waiting.pop(0)
            streams.join(i, pipe.new_stream(i, i % 3, seed), source.frames, {source.modality: source})
        for i, chunk in streams.step():
            parts[i].append(getattr(chunk, latents))
    return [torch.cat(part) for part in parts]


@pytest.mark.parametrize("given, method", [("sound", "guide"), ("picture", "replace"), ("sound", "clean")])
def test_sample_does_not_depend_on_its_neighbours(pipe, films, given, method):
    paths = sorted(films.rglob("*.mp4"))[:3]  # the third joins where the second ends, beside the first
    one_by_one, two_by_two = (made(pipe, given, method, paths, batch, most=7) for batch in (1, 2))
    for alone, together in zip(one_by_one, two_by_two):
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)


@pytest.mark.parametrize("given", ["sound", "picture"])
def test_every_method_hears_or_sees_what_is_given_and_does_it_its_own_way(pipe, films, given):
    one, two = (films / "test" / name for name in ("blue/0.mp4", "red/2.mp4"))
    bases = []
    for method in ("guide", "replace", "clean"):
        base, other = (made(pipe, given, method, [path], 1, most=3)[0] for path in (one, two))
        assert (base - other).abs().max() > 1e-3
        bases.append(base)
    assert all((a - b).abs().max() > 1e-6 for a, b in combinations(bases, 2))


def test_guidance_scale_0_is_replace(pipe, films):
    path = [films / "test/red/2.mp4"]
    torch.testing.assert_close(
        *made(pipe, "sound", "guide", path, 1, most=5, scale=0.0), *made(pipe, "sound", "replace", path, 1, most=5)
    )


@pytest.mark.parametrize("method", ["replace", "clean"])
def test_first_frames_of_a_film_do_not_depend_on_its_length(pipe, films, method):
    """Of a causal model; the gradient looks ahead, as far as the window."""
    path = [films / "test/red/2.mp4"]
    (long,), (short,) = (made(pipe, "sound", method, path, 1, most=most) for most in (8, 5))
    torch.testing.assert_close(long[:5], short, rtol=0, atol=1e-10)


@pytest.mark.parametrize("given", ["sound", "picture"])
def test_clean_shows_the_given_side_at_time_1_and_the_other_on_its_way(pipe, films, monkeypatch, given):
    seen, forward = [], FLAV.forward

    def spied(self, v, a, t, y, t_a, **conditions):
        seen.append((t, t_a))
        return forward(self, v, a, t, y, t_a, **conditions)

    monkeypatch.setattr(FLAV, "forward", spied)
    made(pipe, given, "clean", [films / "test/red/2.mp4"], 1, most=6)
    for t, t_a in seen:
        shown, generated = (t_a, t) if given == "sound" else (t, t_a)
        assert shown.eq(1).all() and (generated < 1).all()
    assert len(seen) == 2 * WINDOW + 2 * (6 - 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_same_seed_gives_the_same_files_and_another_gives_others(checkpoint, films, tmp_path, script):
    more = ("--data-path", films, "--num-videos", 2, "--video-length", 2)
    one, two = (run(script, checkpoint, tmp_path / name, *more) for name in ("one", "two"))
    assert {path.name for path in one.iterdir() if path.read_bytes() != (two / path.name).read_bytes()} == {"run.json"}
    other = run(script, checkpoint, tmp_path / "other", *more, "--seed", 1)
    assert (other / "sample_00000_0.mp4").read_bytes() != (one / "sample_00000_0.mp4").read_bytes()


def test_video_length_cuts_both_tracks(checkpoint, tmp_path):
    source = write_video(tmp_path / "film.mp4", 20, 25)
    out = run("v2a", checkpoint, tmp_path / "out", "--input", source, "--video-length", 3)
    assert len(samples_of(out / "sample_00000_film.wav")) == 3 * 1600
    assert abs(probe(out / "sample_00000_film.mp4").seconds - 0.3) < 1 / 25 + 0.001
    sound = write_sound(tmp_path / "sound.wav", tone(2), 16000, "pcm_s16le")
    out = run("a2v", checkpoint, tmp_path / "out", "--input", sound, "--video-length", 3)
    packet = len(packets(sound, "audio")[0][0]) / 2 / 16000
    assert abs(sum(len(data) for data, _ in packets(out / "sample_00000_sound.mkv", "audio")) / 32000 - 0.3) <= packet


# ------------------------------------------------------------------------------------------------------------- sources


def test_mel_of_a_long_sound_is_that_of_the_whole_file_however_it_is_read(pipe, tmp_path):
    frames = 2 * BLOCK + 7
    path = write_sound(tmp_path / "long.wav", tone(frames / 10 + 0.05), 16000, "pcm_s16le")
    how = dict(total=frames, fps=10, sample_rate=16000, context=pipe.codec.context, channels="mean")
    whole = clip_sound(path, 0, frames, **how)
    expected = pipe.codec.encode_sound((whole * (0.95 / tone(frames / 10).abs().max()))[None])[0]
    source, cut = SoundSource(path, pipe.codec, WINDOW), SoundSource(path, pipe.codec, WINDOW, most=BLOCK)
    assert (source.frames, cut.frames, source(frames), cut(BLOCK)) == (frames, BLOCK, None, None)
    torch.testing.assert_close(torch.stack([source(k) for k in range(frames)]), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.stack([cut(k) for k in range(BLOCK)]), expected[:BLOCK], rtol=0, atol=1e-3)


def test_sound_that_ends_before_its_last_packet_says_is_filled_with_silence(pipe, tmp_path, monkeypatch):
    path = write_sound(tmp_path / "short.wav", tone(0.5), 16000, "pcm_s16le")
    monkeypatch.setattr("pipeline.sources.iter_audio", lambda path, samples, *_: iter(tone(0.42).split(samples)))
    source = SoundSource(path, pipe.codec, WINDOW)
    written = torch.cat([source.film(n, torch.zeros(n, 16, 16, 3), None)[1] for n in (2, 3)])
    assert len(written) == 5 * 1600 and source(4) is not None and not written[6720:].any()
    assert written[:6720].equal(tone(0.42))


def test_picture_is_fitted_as_in_training_and_only_a_window_is_kept(pipe, films):
    source, path = PictureSource(films / "test/red/2.mp4", pipe.codec, WINDOW), films / "test/red/2.mp4"
    for k, picture in enumerate(iter_frames(path, 10)):
        assert source(k).equal(pipe.codec.frames.encode(fit(picture[None], 16)[None])[0][0, 0])
        assert source(max(0, k - WINDOW + 1)) is not None and len(source._kept) <= WINDOW
    assert source(0) is None and source(11) is None and source.modality is Modality.VIDEO


def test_three_minutes_of_sound_take_no_more_memory_than_one(pipe, tmp_path):
    minute = tone(60)
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        for _ in range(3):
            file.writeframes(to_int16(minute).numpy().tobytes())
    source = SoundSource(tmp_path / "long.wav", pipe.codec, WINDOW)
    assert source.frames == 1800
    for k in range(600):
        source(k)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for k in range(600, 1800):
        assert source(k) is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * 1024  # two minutes take 7.7 MB as float


# ---------------------------------------------------------------------------------------- arguments, labels, bad input


def test_released_line_parses_as_printed():
    args = sample_a2v.parse(shlex.split(RELEASED_A2V))
    assert (args.video_length, args.num_videos, args.num_timesteps) == (16, 2048, 2)
    assert (args.data_path, args.split, args.results_dir) == (Path("D"), "test", Path("results"))
    conditional.settle(args, SimpleNamespace(model=tiny().model), "sound")
    assert (args.method, args.guidance_scale) == ("guide", 25.0)


def test_folder_is_the_class_by_name_or_for_a_released_model_by_order(films):
    path = films / "test"
    files, skipped = find_inputs(path, "picture")
    assert folder_labels(files, path, NAMES) == folder_labels(files, path, ("0", "1", "2")) == [0, 1, 2, 2]
    assert folder_labels(files, path, ()) == [None] * 4 and not skipped
    assert folder_labels([files[0]], files[0], NAMES) == folder_labels([files[0]], files[0].parent, NAMES) == [None]


def test_classes_overrule_the_folders(checkpoint, films, tmp_path):
    more = ("--data-path", films, "--video-length", 1)
    out, plain = (
        run("a2v", checkpoint, tmp_path / "out", *more, "--classes", "green,0"),
        run("a2v", checkpoint, tmp_path / "plain", *more),
    )
    assert [r["class"] for r in records(out)] == ["green", "blue", "green", "blue"]
    same = [(out / r["file"]).read_bytes() == (plain / r["file"]).read_bytes() for r in records(out)]
    assert same == [False] * 4  # the class is not only on record


def test_files_that_cannot_be_used_are_named_and_skipped(checkpoint, tmp_path, capsys):
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "a.mp4").write_bytes(b"no video" * 100)
    write_video(inputs / "b.mp4", 5)
    write_video(inputs / "c.mp4", 5, sound=False)
    out = run("a2v", checkpoint, tmp_path / "out", "--input", inputs)
    assert [r["file"] for r in records(out)] == ["sample_00001_b.mp4"]
    first, second = json.loads((out / "run.json").read_text())["skipped"]
    assert first[0] == str(inputs / "a.mp4") and "a.mp4 cannot be read" in first[1]
    assert second[0] == str(inputs / "c.mp4") and "c.mp4 has no audio" in second[1]
    assert "skipped 2 inputs: 1 cannot be read, 1 has no audio stream" in capsys.readouterr().out


def complaint(capsys, script, *command) -> str:
    """The last line of stderr with which a script refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(SCRIPTS[script].main, [str(part) for part in command]))
    out, err = capsys.readouterr()
    assert end.value.code == 2 and "Traceback" not in err and not out
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "make", "said"),
    [
        ("a2v", lambda p: write_video(p / "mute.mp4", 5, sound=False), "mute.mp4 has no audio stream"),
        ("v2a", lambda p: write_sound(p / "song.wav", tone(1), 16000, "pcm_s16le"), "song.wav has no video stream"),
        ("a2v", lambda p: write_sound(p / "click.wav", tone(0.05), 16000, "pcm_s16le"), "shorter than one frame"),
        ("v2a", lambda p: write_video(p / "still.mp4", 1, 25), "still.mp4 is shorter than one frame of 0.1 s"),
        ("a2v", lambda p: p / "nothing.wav", "nothing.wav does not exist; give a file, or a folder"),
        ("v2a", lambda p: p, "has no files with picture (.3gp, .avi, "),
    ],
)
def test_input_that_cannot_be_used_is_refused(checkpoint, tmp_path, capsys, script, make, said):
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    line = complaint(capsys, script, "--model-ckpt", checkpoint, "--results-dir", tmp_path / "out", "--input", path)
    assert said in line and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_garbage_and_folders_that_are_no_classes_are_refused(checkpoint, films, tmp_path, capsys, script):
    (tmp_path / "g").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "g" / name).write_bytes(b"no video" * 100)
    base = ("--model-ckpt", checkpoint, "--results-dir", tmp_path / "out")
    assert "a.mp4 cannot be read" in complaint(capsys, script, *base, "--input", tmp_path / "g" / "a.mp4")
    assert "none of 2 files can be used" in complaint(capsys, script, *base, "--input", tmp_path / "g")
    (tmp_path / "d" / "test").mkdir(parents=True)
    (tmp_path / "d" / "test" / "purple").symlink_to(films / "test" / "red")
    line = complaint(capsys, script, *base, "--data-path", tmp_path / "d")
    assert "has folders purple, but the classes of this model are blue, green, red" in line


def test_track_that_no_film_can_hold_is_refused_before_the_first_step(checkpoint, films, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise MediaError("film.mp4 has packets without a time; convert it to mp4 first")

    monkeypatch.setattr("pipeline.sources.mux", refuse)
    monkeypatch.setattr("pipeline.sources.encode_film", refuse)
    monkeypatch.setattr(Streams, "step", lambda self: pytest.fail("long work had begun"))
    command = ("--model-ckpt", checkpoint, "--results-dir", tmp_path, "--input", films / "test" / "red" / "2.mp4")
    assert "packets without a time" in complaint(capsys, "v2a", *command)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "one of the arguments --input --data-path is required"),
        (["--input", "a", "--data-path", "b"], "not allowed with argument"),
        (["--input", "a", "--method", "magic"], "--method"),
        (["--input", "a", "--video-length", "-1"], "--video-length"),
    ],
)
def test_wrong_arguments_are_refused(capsys, more, said):
    assert said in complaint(capsys, "a2v", "--model-ckpt", "nothing", *more)


def test_failure_leaves_whole_films_only(checkpoint, films, tmp_path, capsys, monkeypatch):
    write = Writer.write

    def full(self, frames, wave):
        if self.frames == 4:
            raise OSError(28, "No space left on device", str(self.path))
        write(self, frames, wave)

    monkeypatch.setattr(Writer, "write", full)
    line = complaint(capsys, "a2v", "--model-ckpt", checkpoint, "--results-dir", tmp_path, "--data-path", films)
    assert "No space left on device" in line  # after the film of three frames, in the middle of the others
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample_00001_1.mp4", "sample_00001_1.wav"]
    assert probe(tmp_path / "sample_00001_1.mp4").frames(10) == 3


def test_some_inputs_of_many_are_of_every_class(tmp_path):
    """Not the first by name, which would all be of one class."""
    files = [tmp_path / c / f"{k}.wav" for c in ("blue", "green", "red") for k in range(5)]
    chosen, labels = choose_inputs(files, [k // 5 for k in range(15)], tmp_path, 6, seed=0)
    assert sorted(labels) == [0, 0, 1, 1, 2, 2] and [file.parent.name for file in chosen] == [
        ("blue", "green", "red")[label] for label in labels
    ]
    assert choose_inputs(files, [None] * 15, tmp_path, 15, seed=0) == (files, [None] * 15)

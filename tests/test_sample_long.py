"""sample_long.py on a tiny checkpoint: endless films, stopped, killed, resumed, forked, steered, extended."""

import json
import os
import signal
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
import sample_long
from data.av import probe, read_audio, read_frames, write_clip
from models import FLAV
from models.codec import Pixels
from pipeline import AVCodec, AVPipeline, AVSpec, StreamState
from tests.processes import Script
from tests.randomised import randomised
from vocoder import GriffinLim

NAMES = ("blue", "green", "red")
STATE = "long_00000.state.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """16 px pictures, 20 mel bins, a window of 4 frames, three classes, random weights."""
    spec = AVSpec(n_mels=20, audio_scale=2.0, image_size=16, codec="pixels", class_names=NAMES)
    model = randomised(FLAV(latent_size=16, patch_size=8, in_channels=3, n_mels=20, num_classes=3, hidden_size=32,
                            depth=1, num_heads=2, predict_frames=4), 0.2)  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    AVPipeline(model, AVCodec(spec, Pixels(), GriffinLim(20))).save(folder)
    return folder


def argv(checkpoint, folder, *more):
    return ["--model-ckpt", str(checkpoint), "--device", "cpu", "--results-dir", str(folder), *map(str, more)]


def run(checkpoint, folder, *more):
    sample_long.main(argv(checkpoint, folder, *more))
    return folder


def process(checkpoint, folder, *more, **how):
    return Script("sample_long.py", *argv(checkpoint, folder, *more), **how)


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """An uninterrupted film of 16 frames."""
    return run(checkpoint, tmp_path_factory.mktemp("whole"), "--frames", 16, "--save-latents", "--classes", "red")


def sound(path):
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def await_frame(folder, process, frame):
    """Wait until the state on disk has reached a frame."""
    state = folder / STATE
    process.until(lambda: state.exists() and StreamState.load(state)[0].frame >= frame)


def test_a_film_has_exactly_its_frames_and_their_samples(whole):
    film = whole / "long_00000.mp4"
    assert probe(film).frames(10) == 16
    assert len(sound(film.with_suffix(".wav"))) == 16 * 1600
    record = json.loads((whole / "run.json").read_text())
    assert record["p50_s"] > 0 and record["p99_s"] >= record["p50_s"] and record["median_last_s"] > 0
    assert load_file(whole / "long_00000.latents.safetensors")["v"].shape == (16, 3, 16, 16)


def test_with_overlap_all_files_are_the_same(checkpoint, whole, tmp_path):
    run(checkpoint, tmp_path, "--frames", 16, "--save-latents", "--classes", "red", "--overlap")
    names = {path.name for path in whole.iterdir()} - {"run.json"}
    assert len(names) == 4 and all((tmp_path / name).read_bytes() == (whole / name).read_bytes() for name in names)


@pytest.mark.parametrize("frame", [0, 13])  # 0: while it still pre-rolls, or little later
def test_a_killed_film_goes_on_bit_for_bit(checkpoint, tmp_path, frame):
    killed = process(checkpoint, tmp_path, "--frames", 0, "--save-state", 1, "--classes", "red")
    await_frame(tmp_path, killed, frame)
    killed.kill()
    killed.wait()
    at = StreamState.load(tmp_path / STATE)[0].frame
    if frame:  # it plays up to at most a second before the kill
        assert probe(tmp_path / "long_00000.mp4").frames(10) >= at - 10

    end = ("--frames", at + 8, "--save-latents")
    resumed = run(checkpoint, tmp_path, "--resume", tmp_path / STATE, *end) / f"long_00000_from_{at:06d}"
    whole = run(checkpoint, tmp_path / "whole", "--classes", "red", *end) / "long_00000"
    got, expected = (load_file(f"{name}.latents.safetensors") for name in (resumed, whole))
    assert all(torch.equal(got[k], expected[k][at:]) for k in ("v", "a"))
    assert np.array_equal(sound(f"{resumed}.wav"), sound(f"{whole}.wav")[at * 1600 :])
    assert probe(f"{resumed}.mp4").frames(10) == 8


def test_film_that_ended_and_its_continuation_join_to_the_uninterrupted_one(checkpoint, whole, tmp_path):
    """No frame is there twice, and the sound has no seam."""
    run(checkpoint, tmp_path, "--frames", 8, "--save-latents", "--classes", "red")
    run(checkpoint, tmp_path, "--resume", tmp_path / STATE, "--frames", 16, "--save-latents")
    parts = [tmp_path / name for name in ("long_00000", "long_00000_from_000008")]
    assert [probe(f"{part}.mp4").frames(10) for part in parts] == [8, 8]
    film = {k: torch.cat([load_file(f"{part}.latents.safetensors")[k] for part in parts]) for k in ("v", "a")}
    assert all(torch.equal(film[k], x) for k, x in load_file(whole / "long_00000.latents.safetensors").items())
    assert np.array_equal(np.concatenate([sound(f"{part}.wav") for part in parts]), sound(whole / "long_00000.wav"))


def test_film_goes_on_with_the_class_guidance_that_it_began_with(checkpoint, tmp_path):
    def arguments():
        return json.loads((tmp_path / "run.json").read_text())["arguments"]

    run(checkpoint, tmp_path, "--frames", 3, "--classes", "red", "--cfg-scale", 3)
    run(checkpoint, tmp_path, "--resume", tmp_path / STATE, "--frames", 4)
    assert arguments()["cfg_scale"] == 3
    run(checkpoint, tmp_path, "--fork", tmp_path / STATE, "--frames", 4, "--cfg-scale", 1)
    assert arguments()["cfg_scale"] == 1


def test_files_of_a_film_have_the_mode_of_other_files(whole, tmp_path):
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in whole.iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_sigterm_ends_the_file_saves_the_state_and_says_how_to_go_on(checkpoint, tmp_path):
    stopped = process(checkpoint, tmp_path, "--frames", 0, "--save-state", 1)
    await_frame(tmp_path, stopped, 3)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 0 and f"--resume {tmp_path / STATE}" in stopped.said
    film, state = tmp_path / "long_00000.mp4", StreamState.load(tmp_path / STATE)[0]
    assert probe(film).frames(10) == state.frame == len(sound(film.with_suffix(".wav"))) // 1600


def test_a_stop_before_the_first_frame_leaves_a_state_and_no_film(checkpoint, whole, tmp_path, monkeypatch):
    init = cli.Stop.__init__
    monkeypatch.setattr(cli.Stop, "__init__", lambda stop: (init(stop), setattr(stop, "asked", True))[0])
    run(checkpoint, tmp_path, "--classes", "red")
    assert {path.name for path in tmp_path.iterdir()} == {STATE, "run.json"}
    monkeypatch.undo()
    run(checkpoint, tmp_path, "--resume", tmp_path / STATE, "--frames", 16, "--save-latents")
    film = load_file(tmp_path / "long_00000_from_000000.latents.safetensors")["v"]
    assert torch.equal(film, load_file(whole / "long_00000.latents.safetensors")["v"])


def test_a_fork_is_the_film_itself_until_new_noise_enters(checkpoint, whole, tmp_path):
    stopped = run(checkpoint, tmp_path / "first", "--frames", 5, "--classes", "red")
    state = stopped / STATE
    at = StreamState.load(state)[0].frame
    film = load_file(whole / "long_00000.latents.safetensors")["v"][at:]
    forks = {}
    for seed in (0, 7):
        run(checkpoint, tmp_path, "--fork", state, "--seed", seed, "--frames", 16, "--save-latents")
        forks[seed] = load_file(tmp_path / f"long_00000_seed_{seed}_from_{at:06d}.latents.safetensors")["v"]
    assert torch.equal(forks[0], film)
    inside = int(StreamState.load(state)[0].window.first) + 4 - at  # frames that are in the window already
    assert torch.equal(forks[7][:inside], film[:inside]) and not torch.equal(forks[7][inside], film[inside])


def test_a_class_schedule_changes_nothing_before_its_frame(checkpoint, whole, tmp_path):
    run(checkpoint, tmp_path, "--frames", 16, "--class-schedule", "0:red,9:blue", "--save-latents")
    v, plain = (load_file(folder / "long_00000.latents.safetensors")["v"] for folder in (tmp_path, whole))
    same = (v == plain).flatten(1).all(1)
    assert same[:9].all() and not same[9:].any()


def test_two_films_side_by_side_are_those_made_alone(checkpoint, whole, tmp_path):
    run(checkpoint, tmp_path, "--num-videos", 2, "--classes", "red,blue", "--frames", 16, "--save-latents")
    together = load_file(tmp_path / "long_00000.latents.safetensors")
    alone = load_file(whole / "long_00000.latents.safetensors")
    assert all((together[k] - alone[k]).abs().max() < 1e-4 for k in alone)
    assert probe(tmp_path / "long_00001.mp4").frames(10) == 16


@pytest.mark.parametrize("length", [2, 9])
def test_an_extended_film_begins_with_the_clip_and_is_longer(checkpoint, tmp_path, length):
    clip, rng = tmp_path / "clip.mp4", np.random.default_rng(0)
    pictures = torch.from_numpy(np.repeat(rng.integers(0, 255, (length, 1, 1, 3), np.uint8), 24, 1).repeat(32, 2))
    noise = torch.from_numpy(rng.uniform(-0.5, 0.5, length * 1600).astype(np.float32))
    write_clip(clip, pictures, noise)
    run(checkpoint, tmp_path / "out", "--extend", clip, "--frames", 12)
    film = tmp_path / "out" / "long_00000.mp4"
    assert probe(film).frames(10) == 12 and len(sound(film.with_suffix(".wav"))) == 12 * 1600
    seen, middle = read_frames(film, 0, length).float(), read_frames(clip, 0, length).float()[:, 12, 16]
    assert (seen[:, 8, 8] - middle).abs().max() < 12  # padded to a square, through the codecs of two files
    given, heard = (
        read_audio(clip)[: length * 1600 - 320],
        sound(film.with_suffix(".wav"))[: length * 1600 - 320] / 32768,
    )
    assert np.corrcoef(given, heard)[0, 1] > 0.999


def test_a_film_on_stdout_is_read_by_another_process_and_a_reader_that_leaves_is_no_error(checkpoint, tmp_path):
    sender = process(checkpoint, tmp_path, "--frames", 12, "--out", "-", piped=True)
    (tmp_path / "got.mp4").write_bytes(sender.stdout.read())
    assert sender.wait() == 0
    assert probe(tmp_path / "got.mp4").frames(10) == 12

    sender = process(checkpoint, tmp_path, "--frames", 0, "--out", "-", piped=True)
    sender.stdout.read(100)
    sender.stdout.close()
    assert sender.wait() == 0 and "Traceback" not in sender.said, sender.said


def test_matroska_preview_and_page(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path, "--frames", 6, "--container", "mkv", "--preview", "--html", tmp_path / "live.html")
    assert probe(tmp_path / "long_00000.mkv").frames(10) == 6
    assert 'src="live.png"' in (tmp_path / "live.html").read_text() and (tmp_path / "live.png").stat().st_size > 1000
    assert "▀" in capsys.readouterr().err
    page = (tmp_path / "live.html").read_text()
    assert "ended at" in page and "refresh" not in page


def test_page_that_would_replace_a_file_of_another_is_refused_before_the_film_begins(checkpoint, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(b"a photo")
    (tmp_path / "mine.html").write_text("<!doctype html><p>mine</p>")
    for name, said in (
        ("photo.png", "ends in .html"),
        ("photo.html", "photo.png exists"),
        ("mine.html", "mine.html ex"),
    ):
        assert said in complaint(capsys, argv(checkpoint, tmp_path, "--frames", 3, "--html", tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "photo.png"]
    assert (tmp_path / "photo.png").read_bytes() == b"a photo" and "mine" in (tmp_path / "mine.html").read_text()


def test_film_that_is_there_in_another_container_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "long_00000.mp4").write_bytes(b"a film")
    line = complaint(capsys, argv(checkpoint, tmp_path, "--frames", 3, "--container", "mkv"))
    assert "long_00000.mp4 exists and an endless film replaces no file" in line
    assert (tmp_path / "long_00000.mp4").read_bytes() == b"a film"


def complaint(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: sample_long.main(arguments))
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "Traceback" not in "".join(said)
    return said[-1]


def test_mistakes_are_one_sentence(checkpoint, whole, tmp_path, capsys):
    def says(*more):
        return complaint(capsys, argv(checkpoint, tmp_path, *more))

    assert "leaves nothing to make" in says("--resume", whole / STATE, "--frames", 3)
    assert "class 'pink' does not exist" in says("--class-schedule", "0:red,3:pink")
    assert "from frame 0 on" in says("--class-schedule", "5:red")
    assert "does not exist; give a file" in says("--resume", tmp_path / "nothing")
    assert "for one film" in says("--out", "-", "--num-videos", 2)
    assert "give --frames" in says("--save-latents", "--frames", 0)
    cut = tmp_path / "cut.state.safetensors"
    cut.write_bytes((whole / STATE).read_bytes()[:-100])
    assert "no complete stream state" in says("--resume", cut)


def test_a_state_of_another_checkpoint_is_refused(checkpoint, whole, tmp_path, capsys):
    pipe = AVPipeline.from_pretrained(checkpoint)
    with torch.no_grad():
        next(pipe.model.parameters()).view(-1)[0] += 1
    pipe.save(tmp_path / "other")
    line = complaint(capsys, argv(tmp_path / "other", tmp_path, "--resume", whole / STATE))
    assert "saved with another checkpoint" in line


def test_a_full_disk_ends_in_one_sentence_with_a_film_that_plays_and_a_state(checkpoint, tmp_path, capsys, monkeypatch):
    from data.av import Writer

    write, count = Writer.write, 0

    def failing(self, frames, wave):
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(28, "No space left on device", str(self.path))
        write(self, frames, wave)

    monkeypatch.setattr(Writer, "write", failing)
    line = complaint(capsys, argv(checkpoint, tmp_path, "--frames", 0))
    assert "No space left" in line
    assert StreamState.load(tmp_path / STATE)[0].frame == 6 == probe(tmp_path / "long_00000.mp4").frames(10)


@pytest.mark.slow
def test_memory_is_flat_over_2000_frames(checkpoint, tmp_path):
    running = process(checkpoint, tmp_path, "--frames", 2000, "--save-state", 40)

    def resident():
        return int(Path(f"/proc/{running.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    await_frame(tmp_path, running, 240)
    early = late = resident()
    while StreamState.load(tmp_path / STATE)[0].frame < 1960:  # what the report at the end takes, every length takes
        late = max(late, resident())
        time.sleep(0.2)
    assert running.wait() == 0
    assert late - early < 10, "MiB"
    assert len(sound(tmp_path / "long_00000.wav")) == 2000 * 1600

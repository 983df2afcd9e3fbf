"""sample.py on a tiny checkpoint: the files it writes, the same clips for any batch, and what it refuses."""

import functools
import json
import os
import shutil
import subprocess
import sys
import wave

import pytest
import torch
from safetensors.torch import load_file

import cli
import sample
from data.av import probe, read_audio, read_frames, to_int16
from models import FLAV
from models.codec import Pixels
from pipeline import AVCodec, AVPipeline, AVSpec
from tests.processes import ENV, LIMIT, ROOT, run_ranks
from tests.randomised import randomised
from vocoder import GriffinLim

NAMES = ("blue", "green", "red")
CONFIG = dict(latent_size=16, patch_size=8, in_channels=3, n_mels=20, num_classes=3, hidden_size=32, depth=2,
              num_heads=2, predict_frames=4)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as train.py exports it: 16 px pictures, 20 mel bins, three classes, random weights."""
    spec = AVSpec(n_mels=20, audio_scale=2.0, image_size=16, codec="pixels", class_names=NAMES, step=5)
    model = randomised(FLAV(**CONFIG), 0.2)
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    AVPipeline(model, AVCodec(spec, Pixels(), GriffinLim(20))).save(folder)
    return folder


def argv(checkpoint, folder, *more):
    flags = dict(model_ckpt=checkpoint, results_dir=folder, num_videos=5, video_length=3, batch_size=2)
    return [*(f"--{name}={value}" for name, value in flags.items()), "--save-latents", *map(str, more)]


def run(checkpoint, folder, *more):
    sample.main(argv(checkpoint, folder, "--device=cpu", *more))
    return folder


@pytest.fixture
def no_sheet(monkeypatch):
    """The picture takes longer than all the rest."""
    monkeypatch.setattr("contact.contact_sheets", lambda clips, path: path.write_bytes(b"sheet"))


@pytest.fixture(scope="module")
def results(checkpoint, tmp_path_factory):
    return run(checkpoint, tmp_path_factory.mktemp("results") / "new" / "folder")


def latents(folder):
    return [load_file(path) for path in sorted(folder.glob("*.latents.safetensors"))]


def records(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def assert_same_latents(one, two, close=0.0):
    assert len(latents(one)) == len(latents(two)) > 0
    for a, b in zip(latents(one), latents(two)):
        torch.testing.assert_close(a["v"], b["v"], rtol=0, atol=close)
        torch.testing.assert_close(a["a"], b["a"], rtol=0, atol=close)


def test_folder_holds_the_clips_and_their_record_and_nothing_else(results):
    kinds = (".latents.safetensors", ".mp4", ".wav")
    clips = [f"sample_{i:05d}{kind}" for i in range(5) for kind in kinds]
    assert sorted(p.name for p in results.iterdir()) == sorted(
        [*clips, "contact_sheet.png", "run.json", "samples.jsonl"]
    )


def test_clip_has_the_frames_asked_for_and_exactly_their_sound(results):
    for i in range(5):
        info = probe(results / f"sample_{i:05d}.mp4")
        assert (info.frames(10), info.width, info.height, info.sample_rate, info.channels) == (3, 16, 16, 16000, 1)
        with wave.open(str(results / f"sample_{i:05d}.wav")) as file:
            assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (3 * 1600, 16000, 1)
            assert file.getsampwidth() == 2
    assert read_frames(results / "sample_00000.mp4", 0, 3).shape == (3, 16, 16, 3)


def samples_of(path):
    with wave.open(str(path)) as file:
        return torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)


def test_mp4_and_wav_hold_the_same_sound(results):
    for i in range(5):
        plain = samples_of(results / f"sample_{i:05d}.wav").float()
        coded = read_audio(results / f"sample_{i:05d}.mp4", 0, 4800)
        assert torch.corrcoef(torch.stack([plain, coded]))[0, 1] > 0.8  # AAC keeps much of noise, and its place


def test_picture_and_sound_are_those_of_the_latents_beside_them(checkpoint, results):
    codec = AVCodec.load(checkpoint)
    for i, pair in enumerate(latents(results)):
        frames, sound = codec.decode(pair["v"][None], pair["a"][None])
        assert (to_int16(sound[0]).int() - samples_of(results / f"sample_{i:05d}.wav").int()).abs().max() <= 1
        shown = read_frames(results / f"sample_{i:05d}.mp4", 0, 3).float()
        assert torch.corrcoef(torch.stack([shown.flatten(), frames.float().flatten()]))[0, 1] > 0.5  # 4:2:0 and H.264


def test_record_names_each_clip_with_its_class(results):
    assert records(results) == [
        {"file": f"sample_{i:05d}.mp4", "sample": i, "frames": 3, "y": i % 3, "class": NAMES[i % 3]} for i in range(5)
    ]


def test_run_json_has_arguments_and_the_facts_of_the_checkpoint(results):
    run = json.loads((results / "run.json").read_text())
    assert run["arguments"]["num_videos"] == 5 and run["spec"]["step"] == 5 and run["seconds"] > 0


def test_contact_sheet_is_a_picture(results):
    assert (results / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_summary_is_one_line(checkpoint, tmp_path, capsys, no_sheet):
    run(checkpoint, tmp_path, "--num-videos", 1)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "1 clips, 0.3 s of film" in out


def test_same_seed_gives_the_same_latents_and_another_gives_others(checkpoint, results, tmp_path, no_sheet):
    assert_same_latents(results, run(checkpoint, tmp_path / "same"))
    other = latents(run(checkpoint, tmp_path / "other", "--seed", 1, "--num-videos", 2))
    assert not any(a["v"].allclose(b["v"]) for a, b in zip(latents(results), other))


@pytest.mark.parametrize("batch", [1, 64])
def test_batch_size_changes_no_clip(checkpoint, results, tmp_path, batch, no_sheet):
    assert_same_latents(results, run(checkpoint, tmp_path, "--batch-size", batch), close=1e-4)
    for name in (f"sample_{i:05d}.wav" for i in range(5)):
        one, two = samples_of(results / name).double(), samples_of(tmp_path / name).double()
        assert (one - two).norm() < 1e-3 * one.norm()  # -60 dB


def test_number_of_clips_changes_no_clip(checkpoint, results, tmp_path, no_sheet):
    run(checkpoint, tmp_path, "--num-videos", 2)
    assert [path.name for path in sorted(tmp_path.glob("*.mp4"))] == ["sample_00000.mp4", "sample_00001.mp4"]
    for a, b in zip(latents(results), latents(tmp_path)):
        torch.testing.assert_close(a["v"], b["v"], rtol=0, atol=1e-4)


def test_longer_clip_begins_with_the_shorter_one(checkpoint, results, tmp_path, no_sheet):
    run(checkpoint, tmp_path, "--video-length", 5, "--num-videos", 2)
    assert [len(clip["v"]) for clip in latents(tmp_path)] == [5, 5]
    for a, b in zip(latents(results), latents(tmp_path)):
        torch.testing.assert_close(a["v"], b["v"][:3], rtol=0, atol=1e-4)


def test_classes_by_name_and_number_are_the_same(checkpoint, tmp_path, no_sheet):
    names, numbers = (
        run(checkpoint, tmp_path / text, "--classes", text, "--num-videos", 3) for text in ("red,blue", "2,0")
    )
    assert [record["class"] for record in records(names)] == ["red", "blue", "red"]
    assert records(names) == records(numbers)
    assert_same_latents(names, numbers)


def test_class_guidance_and_float64_run(checkpoint, results, tmp_path, no_sheet):
    guided = run(checkpoint, tmp_path / "guided", "--cfg-scale", 3, "--num-videos", 1)
    assert not latents(guided)[0]["v"].allclose(latents(results)[0]["v"])
    exact = latents(run(checkpoint, tmp_path / "exact", "--dtype", "float64", "--num-videos", 1))
    assert exact[0]["v"].dtype == torch.float64
    torch.testing.assert_close(exact[0]["v"].float(), latents(results)[0]["v"], rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------- several processes, interruption


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def modified(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("sample_*")}


def assert_same_clips(one, two, but=()):
    """To the byte: every sound, every latent, every encoded picture, the record and the sheet."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    differ = {path.name for path in one.iterdir() if path.read_bytes() != (two / path.name).read_bytes()}
    assert differ == {"run.json", *but}


def test_two_processes_make_the_clips_of_one_to_the_byte(checkpoint, results, tmp_path):
    first, second = run_ranks(2, "sample.py", *argv(checkpoint, tmp_path / "two"))
    assert facts(tmp_path / "two")["processes"] == 2 and facts(results)["processes"] == 1
    assert_same_clips(results, tmp_path / "two")
    assert "| 3/3 [" in first.said  # the first process makes the first and the third batch
    assert first.printed.count("\n") == 1 and "5 clips, 1.5 s of film" in first.printed and not second.printed


@pytest.mark.slow
def test_two_processes_go_on_with_the_interrupted_run_of_one(checkpoint, results, tmp_path):
    """Both of the two batches that are left are made, though one process alone would be due for both."""
    folder = shutil.copytree(results, tmp_path / "two")
    for name in ("samples.jsonl", "contact_sheet.png", "run.json", "sample_00000.mp4", "sample_00004.wav"):
        (folder / name).unlink()
    kept = {name: made for name, made in modified(folder).items() if name[:12] in ("sample_00002", "sample_00003")}
    first, _ = run_ranks(2, "sample.py", *argv(checkpoint, folder, "--skip-existing"))
    assert facts(folder)["processes"] == 2 and facts(folder)["made"] == 3
    assert_same_clips(results, folder)
    assert kept.items() <= modified(folder).items() and "| 2/2 [" in first.said


@pytest.mark.slow
def test_process_that_fails_ends_the_other_and_says_why(checkpoint, tmp_path):
    """The second process cannot give its clip the name of a folder; the first has nothing more to do but wait."""
    (tmp_path / "sample_00002.mp4" / "in the way").mkdir(parents=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "sample.py"]
    command = [*launch, *argv(checkpoint, tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENV, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode != 0
    assert "sample.py: error: " in done.stderr and "sample_00002.mp4" in done.stderr
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("lost", [".mp4", ".wav", ".latents.safetensors"])
def test_batch_of_which_a_file_is_missing_is_made_again_and_no_other(checkpoint, results, tmp_path, lost, no_sheet):
    folder = shutil.copytree(results, tmp_path / "some")
    (folder / f"sample_00003{lost}").unlink()
    before = modified(folder)
    run(checkpoint, folder, "--skip-existing")
    assert_same_clips(results, folder, but={"contact_sheet.png"})
    again = {name[:12] for name, made in modified(folder).items() if made != before.get(name)}
    assert again == {"sample_00002", "sample_00003"} and facts(folder)["made"] == 2


def test_interrupted_run_goes_on_to_the_files_of_an_uninterrupted_one(checkpoint, results, tmp_path, monkeypatch):
    """The interruption comes while the third clip is written: between its sound and its picture, which come last."""
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupting(os.replace, after=8))
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("sample_*.mp4")) == ["sample_00000.mp4", "sample_00001.mp4"]
    assert not any((tmp_path / name).exists() for name in ("run.json", "samples.jsonl", "contact_sheet.png"))
    run(checkpoint, tmp_path, "--skip-existing")
    assert_same_clips(results, tmp_path)
    assert facts(tmp_path)["made"] == 3


def interrupting(call, after):
    """`call` that works `after` times; then it is as if the user pressed Ctrl-C."""
    calls = iter(range(after))

    def stopped(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return call(*args)

    return stopped


def test_finished_run_is_left_as_it_is(checkpoint, results, tmp_path, monkeypatch):
    folder = shutil.copytree(results, tmp_path / "all")
    before = modified(folder)
    monkeypatch.setattr(AVPipeline, "sample", None)
    run(checkpoint, folder, "--skip-existing")
    assert modified(folder) == before and facts(folder)["made"] == 0
    assert_same_clips(results, folder)


# ---------------------------------------------------------------------------------------------------------- bad input


def complaint(capsys, *command) -> str:
    """The one line of stderr with which sample.py refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(sample.main, [str(part) for part in command]))
    out, err = capsys.readouterr()
    assert end.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err and not out
    return err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--classes", "purple"], "class 'purple' does not exist; choose blue, green, red or 0 to 2"),
        (["--classes", "3"], "class '3' does not exist"),
        (["--video-length", 0], "--video-length: 0 is not a whole number of 1 or more"),
        (["--num-videos", 0], "--num-videos: 0 is not a whole number of 1 or more"),
        (["--audio-scale", 3], "audio scale 3.0 contradicts the checkpoint's 2.0"),
        (["--vocoder", "hifigan"], "it is not the config of a HiFi-GAN generator"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_argument_that_cannot_be_is_refused_and_no_clip_is_written(checkpoint, tmp_path, capsys, more, said):
    assert said in complaint(capsys, "--model-ckpt", checkpoint, "--results-dir", tmp_path, *more)
    assert not list(tmp_path.iterdir())


def test_file_in_the_way_of_the_results(checkpoint, tmp_path, capsys):
    (tmp_path / "results").write_text("")
    line = complaint(capsys, "--model-ckpt", checkpoint, "--results-dir", tmp_path / "results")
    assert "cannot be written" in line and "choose another output folder" in line


@pytest.mark.parametrize("source", ["MaverickAlex/R-FLAV-B-1-AIST", "runs/demo/nothing", "nothing"])
def test_hub_id_without_network_says_how_to_point_to_a_folder(tmp_path, capsys, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)  # where nothing has a name that is near
    line = complaint(capsys, "--model-ckpt", source, "--results-dir", tmp_path)
    assert f"{source} is no local folder and could not be had from the hub" in line and "give its local folder" in line


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A copy of the checkpoint to be spoilt, and an edit of one of its JSON files."""
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")

    def edit(name, **facts):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return folder, edit


def test_missing_files_of_a_checkpoint_are_named(damaged, tmp_path, capsys):
    folder, _ = damaged
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        assert f"no {name}" in complaint(capsys, "--model-ckpt", folder, "--results-dir", tmp_path / "out")


def test_missing_vocoder_is_named(damaged, tmp_path, capsys):
    folder, edit = damaged
    edit("pipeline.json", vocoder="hifigan")
    shutil.rmtree(folder / "vocoder")
    line = complaint(capsys, "--model-ckpt", folder, "--results-dir", tmp_path / "out")
    assert "vocoder/config.json does not exist; give the folder of a HiFi-GAN" in line


def test_checkpoint_of_another_shape_is_refused(damaged, tmp_path, capsys):
    folder, edit = damaged
    edit("config.json", hidden_size=64)
    line = complaint(capsys, "--model-ckpt", folder, "--results-dir", tmp_path / "out")
    assert "does not fit this model" in line and "check its config.json" in line
    edit("config.json", hidden_size=32)
    edit("pipeline.json", image_size=32)
    line = complaint(capsys, "--model-ckpt", folder, "--results-dir", tmp_path / "out")
    assert "take the codec and the image size the model was trained with" in line


def test_cut_weights_are_refused(damaged, tmp_path, capsys):
    path = damaged[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    line = complaint(capsys, "--model-ckpt", damaged[0], "--results-dir", tmp_path / "out")
    assert str(path) in line and "damaged" in line


@pytest.mark.parametrize("name", ["config.json", "pipeline.json"])
def test_cut_json_is_refused_by_name(damaged, tmp_path, capsys, name):
    (damaged[0] / name).write_text('{"cut')
    assert name in complaint(capsys, "--model-ckpt", damaged[0], "--results-dir", tmp_path / "out")

"""train.py on real mp4 files: what it writes, that killed and divided runs end alike, what it refuses."""

import functools
import json
import math
import shutil
import signal
from dataclasses import replace

import diffusers
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import HfApi
from safetensors.torch import load_file

import cli
import prepare
import train
import training.learner
from data.av import MediaError, probe, read_audio
from data.clips import ClipDataset
from data.latents import LatentDataset
from data.synthetic import write_dataset
from pipeline import AVPipeline, AVSpec
from tests.closeness import assert_close_by_size
from tests.kills import kill_when, lines
from tests.processes import Script, run
from training.storage import checkpoints

pytestmark = pytest.mark.usefixtures("small_preset")
SMALL = {"image-size": 64, "codec": "patch-pca", "n-mels": 64, "model": "FLAV-mini", "sample-every": 0, "log-every": 1}


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Three mp4 files in three classes, 7 clips each."""
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=3, test=0, frames=16)
    return root


@pytest.fixture(scope="module")
def latents(balls, tmp_path_factory):
    """The same videos, encoded by prepare.py: for runs that are about something else."""
    out = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main([f"--data-path={balls}", f"--out={out}", "--codec=patch-pca", "--image-size=64", "--n-mels=64"])
    return out


def argv(data, experiment, *more) -> list[str]:
    """Arguments of a small run."""
    flags = {"data-path": data, "experiment-dir": experiment, **SMALL}
    return [*(f"--{name}={value}" for name, value in flags.items()), *map(str, more)]


def log_of(experiment) -> list[dict]:
    return [json.loads(line) for line in (experiment / "log.jsonl").read_text().splitlines()]


def losses(experiment) -> list[float]:
    return [record["loss"] for record in log_of(experiment)]


def state(experiment, step) -> dict[str, torch.Tensor]:
    """Model, averaged weights and optimiser of a checkpoint, by name."""
    folder = experiment / "checkpoints" / f"step_{step:07d}"
    ema = torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)
    optimiser = torch.load(folder / "optimizer.bin", weights_only=True)
    return {
        **load_file(folder / "model.safetensors"),
        **{f"ema {i}": p for i, p in enumerate(ema["shadow_params"])},
        "ema calls": torch.tensor(ema["optimization_step"]),
        **{f"adam {i} {key}": x for i, of in optimiser["state"].items() for key, x in of.items()},
    }


def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys() and len(one) > 100
    assert [name for name in one if not one[name].equal(two[name])] == []


# ------------------------------------------------------------------------------------------ a run from end to end


@pytest.fixture(scope="module")
def finished(balls, tmp_path_factory):
    """A run with checkpoints, an export and previews; and which clips it saw."""
    experiment, seen = tmp_path_factory.mktemp("finished"), []
    cut = LatentDataset.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentDataset, "__getitem__", lambda self, i: seen.append(i) or cut(self, i))
        saved = (
            "--ckpt-every",
            2,
            "--ckpt-limit",
            2,
            "--sample-every",
            5,
            "--video-length",
            12,
            "--results-dir",
            "shown",
        )
        train.main(argv(balls, experiment, "--cache-latents", "--batch-size", 3, "--max-steps", 7, *saved))
    return experiment, seen


def test_every_clip_is_seen_once_per_epoch(finished):
    """21 clips in 7 batches of 3."""
    assert sorted(finished[1]) == list(range(21))


def test_all_files_of_a_run_have_the_mode_of_other_files(finished):
    kinds = [path for path in finished[0].rglob("*") if path.is_file()]
    assert {path.name for path in kinds} >= {"model.safetensors", "codec.safetensors", "log.jsonl"}
    assert {path.stat().st_mode for path in kinds} == {(finished[0] / "log.jsonl").stat().st_mode}


def test_newest_checkpoints_are_kept_and_the_last_step_has_one(finished):
    kept = sorted(path.name for path in (finished[0] / "checkpoints").iterdir())
    assert kept == ["step_0000006", "step_0000007"]


def test_log_has_every_step_with_both_modalities_and_time_bins(finished):
    log = log_of(finished[0])
    assert [record["step"] for record in log] == list(range(1, 8))
    for record in log:
        assert record["loss"] == pytest.approx(record["loss_video"] + record["loss_audio"])
        assert len(record["video_at"]) == len(record["audio_at"]) == 10
        assert record["images_per_s"] > 0 and 0 <= record["data_wait"] <= 1 and record["skipped_steps"] == 0
        assert 0 < record["mfu_of_matmul"] < 1.5 and "mfu_of_data_sheet" not in record
    assert list((finished[0] / "tensorboard").rglob("events.*"))


def test_log_has_the_loss_of_each_batch_by_the_weights_and_by_their_average(finished):
    """The average is the weights themselves until the first step, and lags behind them afterwards."""
    first, *later = log_of(finished[0])
    assert first["batch_loss_ema"] == pytest.approx(first["batch_loss"], rel=1e-5)
    assert all(record["batch_loss"] == pytest.approx(record["loss"], rel=1e-6) for record in (first, *later))
    assert later[-1]["batch_loss_ema"] != pytest.approx(later[-1]["batch_loss"], rel=1e-5)


def test_previews_are_clips_of_the_length_asked_for_with_a_contact_sheet(finished):
    folder = finished[0] / "shown" / "step_0000005"
    clips = sorted(folder.glob("*.mp4"))
    assert [clip.name for clip in clips] == [f"sample_{i:05d}.mp4" for i in range(4)]
    assert probe(clips[0]).frames(10) == 12 and read_audio(clips[0], 0, 19200).abs().max() > 0
    assert (folder / "contact_sheet.png").stat().st_size > 1000 and len(list(folder.parent.iterdir())) == 1


def test_export_is_the_averaged_model_and_describes_itself(finished):
    pipe = AVPipeline.from_pretrained(finished[0] / "export")
    saved = state(finished[0], 7)
    for i, weight in enumerate(pipe.model.parameters()):
        assert weight.equal(saved[f"ema {i}"])
    assert (pipe.spec.step, pipe.spec.class_names, pipe.spec.image_size) == (7, ("blue", "green", "red"), 64)
    assert pipe.sample([0], 1, y=0).frames.shape == (1, 1, 64, 64, 3)


def test_audio_scale_is_measured_and_stored(finished, balls):
    from vocoder import CONTEXT, log_mel, to_model

    spec, files = AVSpec.load(finished[0] / "export"), ClipDataset(balls, context=CONTEXT)
    waves = torch.stack([files.file(i)["wave"] for i in range(3)])
    scaled = to_model(log_mel(waves, 64, padded=True), spec.audio_scale)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)


def test_run_json_has_the_arguments_and_the_number_of_processes(finished):
    run = json.loads((finished[0] / "run.json").read_text())
    assert run["processes"] == 1 and run["arguments"]["batch_size"] == 3 and run["parameters"] > 1e5
    assert run["skipped"] == []


def test_nothing_half_written_is_left(finished):
    assert not [path for path in finished[0].rglob("*") if path.suffix in (".part", ".old")]


def test_finished_run_does_nothing_when_started_again(finished, balls):
    before = state(finished[0], 7)
    train.main(argv(balls, finished[0], "--cache-latents", "--batch-size", 3, "--max-steps", 7))
    assert_same(before, state(finished[0], 7))
    assert len(log_of(finished[0])) == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_videos_while_training_gives_the_losses_of_cached_latents(finished, balls, tmp_path, workers):
    train.main(argv(balls, tmp_path, "--num-workers", workers, "--batch-size", 3, "--max-steps", 2))
    assert losses(tmp_path) == pytest.approx(losses(finished[0])[:2], rel=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_latents_give_the_losses_of_their_videos_without_repeating_facts(finished, latents, tmp_path, workers):
    train.main(["--data-path", str(latents), "--experiment-dir", str(tmp_path), "--model=FLAV-mini", "--batch-size=3",
                "--max-steps=2", "--log-every=1", "--sample-every=0", f"--num-workers={workers}"])  # fmt: skip
    assert losses(tmp_path) == pytest.approx(losses(finished[0])[:2], rel=1e-2)  # kept in float16
    spec, videos = (AVPipeline.from_pretrained(folder / "export").spec for folder in (tmp_path, finished[0]))
    assert spec.audio_scale == pytest.approx(videos.audio_scale, rel=1e-3)
    assert replace(spec, audio_scale=1, step=0) == replace(videos, audio_scale=1, step=0)


@pytest.mark.parametrize(("flag", "value", "was"), [("--image-size", 32, 64), ("--codec", "pixels", "patch-pca")])
def test_fact_that_contradicts_prepared_latents_is_refused(latents, tmp_path, capsys, flag, value, was):
    line = complaint(capsys, [f"--data-path={latents}", f"--experiment-dir={tmp_path}", f"{flag}={value}"])
    assert f"{flag} {value} contradicts {latents}, prepared with {was}; leave it out" in line


# --------------------------------------------------------------------------------------------------- killed and resumed

LONG = ("--cache-latents", "--batch-size", 4, "--max-steps", 9, "--ckpt-every", 3, "--lr", 1e-3)
LINGERS = 4  # the step after which a process waits for what strikes it, between two checkpoints


@pytest.fixture(scope="module")
def killed(balls, tmp_path_factory):
    """A run that was killed between checkpoints, its log by then, and what it says when it is started again."""
    experiment = tmp_path_factory.mktemp("killed")
    command, log = ("tests/small_train.py", *argv(balls, experiment, *LONG)), experiment / "log.jsonl"
    first = Script(*command, LINGERS=LINGERS)
    assert kill_when(first, lambda: lines(log) >= LINGERS), first.said
    text = log.read_text()
    half = experiment / "checkpoints" / ".step_0000006.part"
    half.mkdir(exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")
    with log.open("a") as file:
        file.write('{"step": 1')  # as a kill in mid-write leaves it
    return experiment, text, run(*command)


@pytest.fixture(scope="module")
def ended(killed):
    """The state in which it ended."""
    return state(killed[0], 9)


def test_kill_struck_between_checkpoints(killed):
    assert LINGERS <= killed[1].count("\n") < 6


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(killed, ended, balls, tmp_path):
    experiment, _, again = killed
    assert again.poll() == 0, again.said
    train.main(argv(balls, tmp_path, *LONG))
    assert_same(ended, state(tmp_path, 9))
    assert losses(experiment) == losses(tmp_path)


def test_log_of_a_killed_run_has_each_step_once(killed):
    assert [record["step"] for record in log_of(killed[0])] == list(range(1, 10))


def test_half_written_checkpoint_is_ignored_with_a_warning(killed):
    assert ".step_0000006.part was left half-written and is ignored" in killed[2].said
    assert "steps 3 to 9" in killed[2].said
    assert not list((killed[0] / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--freeze", "blocks.0.*"], "was trained with freeze [], not"),
        (["--seed", 1], "was trained with seed 0, not 1"),
        (["--batch-size", 5], "was trained with global_batch 3, not 5"),
        (["--fusion", "none"], "was trained with fusion c, not none"),
        (["--model", "FLAV-tiny"], "was trained with model FLAV-mini, not FLAV-tiny"),
        (["--predict-frames", 8], "was trained with predict_frames 10, not 8"),
        (["--n-mels", 32], "was made with n_mels 64, not 32"),
        (["--num-classes", 0], "was made with class_names ('blue', 'green', 'red'), not ()"),
        (["--audio-scale", 2.5], "was made with audio_scale"),
    ],
)
def test_resuming_with_other_facts_is_refused_in_one_sentence(finished, balls, capsys, more, said):
    before = (finished[0] / "log.jsonl").read_text()
    line = complaint(capsys, argv(balls, finished[0], "--cache-latents", "--batch-size", 3, "--max-steps", 9, *more))
    assert said in line and "choose another --experiment-dir" in line
    assert (finished[0] / "log.jsonl").read_text() == before


def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on_to_the_same_weights(ended, balls, tmp_path):
    told = Script("tests/small_train.py", *argv(balls, tmp_path, *LONG), LINGERS=LINGERS)
    told.until(lambda: lines(tmp_path / "log.jsonl") >= LINGERS)
    told.send_signal(signal.SIGTERM)
    assert told.wait() == 0 and "stopped with a checkpoint at step" in told.said
    stopped = checkpoints(tmp_path)[-1].name
    assert int(stopped[5:]) < 9 and (tmp_path / "export/model.safetensors").exists()
    train.main(argv(balls, tmp_path, *LONG))
    assert_same(state(tmp_path, 9), ended)
    assert [record["step"] for record in log_of(tmp_path)] == list(range(1, 10))


@pytest.mark.parametrize(
    "names", [("model.safetensors", "optimizer.bin"), ("custom_checkpoint_0.pkl", "facts.json")], ids="-".join
)
def test_damaged_newest_checkpoints_give_way_to_the_one_before(killed, ended, balls, tmp_path, caplog, names):
    for folder in ("pipeline", "checkpoints"):
        shutil.copytree(killed[0] / folder, tmp_path / folder)
    _, *newest = checkpoints(tmp_path)
    for folder, name in zip(newest, names, strict=True):
        damaged = bytearray((folder / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (folder / name).write_bytes(damaged)
    train.main(argv(balls, tmp_path, *LONG))
    assert all(f"{folder} is damaged" in caplog.text for folder in newest) and "steps 3 to 9" in caplog.text
    assert_same(state(tmp_path, 9), ended)


def test_no_checkpoint_that_is_whole_is_one_sentence(killed, balls, tmp_path, capsys):
    for folder in ("pipeline", "checkpoints"):
        shutil.copytree(killed[0] / folder, tmp_path / folder)
    for folder in checkpoints(tmp_path):
        (folder / "facts.json").write_text("{}")
    assert "is whole; remove them to start anew" in complaint(capsys, argv(balls, tmp_path, *LONG))


def test_full_disk_while_a_checkpoint_is_written_keeps_the_one_before(latents, tmp_path, capsys, monkeypatch):
    """As torch tells it: with a RuntimeError, in mid-file."""
    save = Accelerator.save_state
    command = argv(latents, tmp_path, "--num-workers=0", "--batch-size=4", "--ckpt-every=1", "--max-steps=2")

    def full(accelerator, folder):
        save(accelerator, folder)
        if "step_0000002" in folder:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nmore")

    monkeypatch.setattr(Accelerator, "save_state", full)
    line = complaint(capsys, command, quiet=False)
    assert "file write failed); free some disk; the same command goes on from" in line and "step_0000001" in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_0000001"]
    monkeypatch.setattr(Accelerator, "save_state", save)
    train.main(command)
    assert [record["step"] for record in log_of(tmp_path)] == [1, 2]


def test_micro_batches_give_the_weights_of_the_whole_batch(latents, tmp_path):
    how = ("--num-workers", 0, "--max-steps", 3, "--lr", 1e-3, "--dtype", "float64", "--batch-size", 6)
    for parts in (1, 3):
        train.main(argv(latents, tmp_path / str(parts), *how, "--micro-batches", parts))
    one, three = (load_file(tmp_path / f"{parts}/checkpoints/step_0000003/model.safetensors") for parts in (1, 3))
    assert max((one[name] - three[name]).abs().max().item() for name in one) < 1e-10
    assert losses(tmp_path / "3") == pytest.approx(losses(tmp_path / "1"), rel=1e-10)
    bins = [[record["video_at"] for record in log_of(tmp_path / parts)] for parts in ("1", "3")]
    assert [x for row in bins[0] for x in row] == pytest.approx([x for row in bins[1] for x in row], rel=1e-10)


def test_dry_run_says_what_a_run_would_take_and_leaves_nothing(balls, tmp_path, capsys):
    train.main(argv(balls, tmp_path, "--cache-latents", "--batch-size", 3, "--max-steps", 1000, "--dry-run"))
    said = capsys.readouterr().out
    assert "21 clips, 7.0 steps per epoch of 3 clips on each of 1 process" in said
    assert "1000 steps would take" in said and "s per step, peak memory" in said
    assert "planned for a GPU in fp32: 0.0" in said and "activations 0.0" in said
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch):
    """Calls that the hub would get."""
    calls = []
    for name in ("whoami", "create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, *args, name=name, **how: calls.append((name, args, how)))
    return calls


def test_export_goes_to_the_hub_after_the_last_step(latents, tmp_path, hub):
    train.main(argv(latents, tmp_path, "--num-workers=0", "--batch-size=1", "--max-steps=1", "--push-to-hub=me/balls"))
    (login, *_), create, (upload, _, what) = hub
    assert login == "whoami" and create[:2] == ("create_repo", ("me/balls",)) and upload == "upload_folder"
    assert what == {"repo_id": "me/balls", "folder_path": tmp_path / "export", "path_in_repo": ""}


def test_hub_that_fails_after_training_costs_an_upload_and_nothing_else(latents, tmp_path, hub, monkeypatch, caplog):
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **how: (_ for _ in ()).throw(OSError("no route")))
    train.main(argv(latents, tmp_path, "--num-workers=0", "--batch-size=1", "--max-steps=1", "--push-to-hub=me/balls"))
    assert "export was not uploaded (no route); try `hf upload me/balls" in caplog.text
    assert AVPipeline.from_pretrained(tmp_path / "export").spec.step == 1


def test_hub_without_login_is_refused_before_training(balls, tmp_path, capsys):
    line = complaint(capsys, argv(balls, tmp_path, "--push-to-hub=me/balls"))
    assert "cannot log in to upload to me/balls" in line and "hf auth login" in line


# -------------------------------------------------------------------------------------------------------- fine-tuning


def test_lora_trains_an_adapter_of_the_base_resumes_and_is_loaded_beside_it(finished, latents, tmp_path):
    base = finished[0] / "export"
    how = ("--num-workers=0", "--batch-size=3", "--lr=1e-2", "--init-from", base, "--lora-rank=4", "--ckpt-every=1")
    train.main(argv(latents, tmp_path / "stopped", *how, "--max-steps", 1))
    for name in ("stopped", "whole"):
        train.main(argv(latents, tmp_path / name, *how, "--max-steps", 2))
    trained, whole = (AVPipeline.from_pretrained(tmp_path / name / "export").model for name in ("stopped", "whole"))
    beside = AVPipeline.from_pretrained(base, adapter=tmp_path / "stopped/adapter").model
    plain = AVPipeline.from_pretrained(base).model
    weights = trained.state_dict()
    assert all(x.equal(weights[name]) for name, x in whole.state_dict().items())
    for name, x in beside.state_dict().items():
        assert_close_by_size(x, weights[name])
    moved = [name for name, x in plain.state_dict().items() if not x.equal(weights[name])]
    assert {name.split(".")[-2] for name in moved} == {"qkv", "proj", "fc1", "fc2"}


def test_run_begins_with_the_codec_and_weights_of_another_and_keeps_what_is_frozen(finished, latents, tmp_path, caplog):
    base = finished[0] / "export"
    train.main(argv(latents, tmp_path, "--num-workers", 0, "--batch-size", 3, "--max-steps", 2, "--init-from", base,
                    "--predict-frames", 8, "--freeze", "blocks.0.*", "video_*"))  # fmt: skip
    assert "the first 8 of 10 frames fill 8 of 8" in caplog.text
    old, new = (AVPipeline.from_pretrained(folder) for folder in (base, tmp_path / "export"))
    assert new.spec.audio_scale == old.spec.audio_scale
    before, after = old.model.state_dict(), new.model.state_dict()
    same = {name for name, x in after.items() if x.equal(before[name])}
    frozen = {name for name in after if name.startswith(("blocks.0.", "video_")) and "frame" not in name}
    assert frozen <= same and not any(name.startswith("blocks.1.") for name in same)


# ---------------------------------------------------------------------------------------------------------- it learns


def test_fresh_model_more_than_halves_its_loss_on_two_clips(tmp_path):
    write_dataset(tmp_path / "two", train=2, test=0, frames=10)
    train.main(argv(tmp_path / "two", tmp_path / "run", "--cache-latents", "--batch-size", 4, "--max-steps", 36,
                    "--lr", 2e-3, "--log-every", 12))  # fmt: skip
    log = log_of(tmp_path / "run")
    for name in ("loss", "loss_video", "loss_audio"):
        assert log[-1][name] < 0.5 * log[0][name]


def test_released_training_line_runs_with_tiny_substitutes(balls, tmp_path):
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vae = diffusers.AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    vae.save_pretrained(tmp_path / "vae")
    released = f"""--data-path {balls} --num-classes 3 --experiment-dir {tmp_path / "E"} --results-dir results/
        --sample-every 20000 --ckpt-every 5000 --log-every 100 --video-length 50 --predict-frames 10 --sampling logit
        --num-workers 16 --grad-ckpt --causal-attn --use_sd_vae --audio-scale 3.5"""
    substitutes = f"""--model FLAV-tiny --image-size 64 --batch-size 2 --num-workers 1 --max-steps 2
        --codec-source {tmp_path / "vae"}"""
    train.main([*released.split(), *substitutes.split()])
    spec = AVSpec.load(tmp_path / "E" / "export")
    assert (spec.codec, spec.audio_scale, spec.n_mels, spec.step) == ("sd-vae", 3.5, 256, 2)
    assert AVPipeline.from_pretrained(tmp_path / "E" / "export").sample([0], 1, y=2).frames.shape == (1, 1, 64, 64, 3)


# -------------------------------------------------------------------------------------------------- not a finite loss


def test_step_whose_loss_is_not_finite_is_skipped_and_counted(latents, tmp_path, monkeypatch):
    step, flow_loss = iter(range(100)), training.learner.flow_loss

    def sometimes(*args, **how):
        loss = flow_loss(*args, **how)
        training = torch.is_grad_enabled()  # and not the loss of the averaged weights, for the log
        return loss._replace(total=loss.total * math.nan) if training and next(step) == 2 else loss

    monkeypatch.setattr(training.learner, "flow_loss", sometimes)
    train.main(argv(latents, tmp_path, "--num-workers", 0, "--batch-size", 2, "--max-steps", 4, "--ckpt-every", 1,
                    "--ckpt-limit", 4))  # fmt: skip
    before, after, later = (state(tmp_path, n) for n in (2, 3, 4))
    names = [name for name in before if not name.startswith("ema")]
    assert all(before[name].equal(after[name]) for name in names)
    assert not all(after[name].equal(later[name]) for name in names)
    assert all(x.isfinite().all() for x in later.values())
    log = log_of(tmp_path)
    assert [record["skipped_steps"] for record in log] == [0, 0, 1, 1] and log[2]["loss"] is None
    assert [record["skipped_in_a_row"] for record in log] == [0, 0, 1, 0]


def test_training_stops_when_no_step_is_finite_and_says_where_and_what_is_left(latents, tmp_path, capsys):
    """At this rate the first step loses the weights; skipped ones change nothing, so any checkpoint is as good."""
    command = argv(latents, tmp_path, "--num-workers", 0, "--batch-size", 2, "--max-steps", 40, "--ckpt-every", 4,
                   "--log-every", 3, "--lr", 1e30)  # fmt: skip
    line = complaint(capsys, command, quiet=False)
    assert "not finite since step 1 " in line and "lower --lr" in line
    assert line.count(".mp4") in (1, 2) and str(latents) in line
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert f"last good checkpoint of {tmp_path} is {kept[0]}" in line
    assert log_of(tmp_path)[-1]["skipped_in_a_row"] in (10, 11, 12)


# ---------------------------------------------------------------------------------------------------------- bad input


def complaint(capsys, command, quiet=True) -> str:
    """The line with which a command refuses; it is all that stderr gets, if `quiet`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(train.main, command))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.endswith("\n") and "Traceback" not in err
    assert err.count("\n") == 1 or not quiet
    return err.splitlines()[-1]


def test_empty_data_folder(tmp_path, capsys):
    assert "has no folder 'train'" in complaint(capsys, argv(tmp_path, tmp_path / "E"))
    (tmp_path / "train").mkdir()
    assert "has no videos" in complaint(capsys, argv(tmp_path, tmp_path / "E"))
    assert "nowhere does not exist" in complaint(capsys, argv(tmp_path / "nowhere", tmp_path / "E"))


def test_folder_of_corrupt_files_only(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    for i in range(2):
        (tmp_path / "train" / f"{i}.mp4").write_bytes(b"no video" * 100)
    line = complaint(capsys, argv(tmp_path, tmp_path / "E"))
    assert "no usable video: 2 unreadable" in line and "0.mp4" in line


def test_cuts_between_clips_without_labels_are_refused(balls, tmp_path, capsys):
    line = complaint(capsys, argv(balls, tmp_path, "--num-classes", 0, "--cuts", 0.1, "--num-workers", 0))
    assert "--cuts joins clips of different classes or texts, and this model has none; leave it out" in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--num-classes", 5], "--num-classes 5 contradicts the 3 class folders"),
        (["--image-size", 60], "not a multiple of the 8 of codec patch-pca; resize them to 56 or 64"),
        (["--model", "FLAV-B/3"], "--model FLAV-B/3 is unknown; choose one of FLAV-XL/2"),
        (["--fusion", "d"], "--fusion d is unknown; choose one of none, a, b, c, c_norm"),
        (["--codec", "vqgan"], "--codec vqgan is unknown; choose one of sd-vae, dc-ae"),
        (["--codec", "sd-vae"], "stabilityai/sd-vae-ft-ema cannot be read"),
        (["--codec", "dc-ae"], "give the local directory"),
        (["--codec", "taesd", "--codec-source", "nowhere"], "nowhere cannot be read (no such directory)"),
        (["--vocoder", "nowhere"], "--vocoder nowhere has no config.json"),
        (["--predict-frames", 17], "no usable video: 3 shorter than 17 frames"),
        (["--lr-schedule", "linear"], "--lr-schedule"),
        (["--batch-size", 0], "--batch-size: 0 is not a whole number of 1 or more"),
    ],
)
def test_argument_that_cannot_be_is_refused_before_training(balls, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("training.encode.measure_audio_scale", lambda *_: pytest.fail("long work had begun"))
    assert said in complaint(capsys, argv(balls, tmp_path / "E", *more))
    assert not (tmp_path / "E" / "checkpoints").exists() and not (tmp_path / "E" / "pipeline").exists()


@pytest.mark.parametrize("name", ["model", "fusion", "codec", "vocoder"])
def test_unknown_name_is_refused_before_a_video_is_read(tmp_path, capsys, name):
    """There are no videos: that would be the complaint otherwise."""
    assert f"--{name} nonsense" in complaint(capsys, argv(tmp_path, tmp_path / "E", f"--{name}", "nonsense"))


def test_experiment_dir_that_cannot_be_written(balls, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in complaint(capsys, argv(balls, tmp_path / "file" / "E"))


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_vanishes_while_training_is_named_in_one_line(balls, tmp_path, capsys, monkeypatch, workers):
    def gone(self, index):
        raise MediaError("ball.mp4 does not exist; check the path")

    monkeypatch.setattr(ClipDataset, "__getitem__", gone)
    line = complaint(capsys, argv(balls, tmp_path, "--num-workers", workers, "--max-steps", 2), quiet=False)
    assert line.endswith(": error: ball.mp4 does not exist; check the path")


def test_codec_weights_of_another_kind(balls, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    more = ("--codec", "sd-vae", "--codec-source", tmp_path)
    assert "holds a AutoencoderTiny, codec sd-vae needs a AutoencoderKL" in complaint(
        capsys, argv(balls, tmp_path / "E", *more)
    )

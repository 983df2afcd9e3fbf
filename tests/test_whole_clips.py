"""Models of whole clips through the scripts: prepared, trained in stages, sampled from text and for pictures."""

import functools
import hashlib
import json
import shutil
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import cli
import prepare
import sample
import sample_a2v
import sample_long
import sample_v2a
import train
from data.av import probe, read_audio, read_frames
from data.captions import Captioned
from data.clips import ClipDataset
from data.order import ClipOrder
from data.prepared import PreparedDataset
from data.synthetic import write_dataset
from diffusion.flow import flow_loss, uniform_weight
from diffusion.noise import Modality, frame_noise
from models import load_model
from models.codec import BlockPCA
from models.syncflow import SyncFlow
from models.text import Words
from pipeline import AVCodec, AVPipeline, ClipPipeline
from tests.closeness import assert_close_by_size
from tests.kills import kill_when, lines
from tests.processes import Script, run_ranks
from tests.small_audioldm import write_audioldm
from training.draws import ClipDraws
from training.opening import run_costs
from training.texts import prepared_texts

pytestmark = pytest.mark.usefixtures("small_preset")

CLIP, LENGTH, SIZE = 8, 22, 32  # frames of a clip and of the videos; px


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=3, test=2, frames=LENGTH, captions=True)
    return root


@pytest.fixture(scope="module")
def latents(balls, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockPCA, "kept", 4)
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main(prepare_argv(balls, out))
    return out


def prepare_argv(data, out, *more):
    flags = {"data-path": data, "out": out, "codec": "block-pca", "image-size": SIZE, "n-mels": 20, "clip-frames": CLIP}
    return [*(f"--{name}={value}" for name, value in flags.items()), "--text-encoder=words", "--device=cpu", *more]


def train_argv(data, experiment, *more):
    flags = {"data-path": data, "experiment-dir": experiment, "model": "SyncFlow-mini", "text-encoder": "words"}
    flags |= {"batch-size": 4, "num-workers": 0, "sample-every": 0, "log-every": 1, "lr": 1e-2}
    return [*(f"--{name}={value}" for name, value in flags.items()), *map(str, more)]


@pytest.fixture(scope="module")
def stages(latents, tmp_path_factory):
    """Stage -> experiment, each begun with the one before."""
    runs, source = {}, ()
    for stage, steps in (("video", 2), ("audio", 3), ("joint", 2)):
        runs[stage] = tmp_path_factory.mktemp(stage)
        train.main(train_argv(latents, runs[stage], "--stage", stage, "--max-steps", steps, *source))
        source = ("--init-from", runs[stage] / "export")
    return runs


@pytest.fixture(scope="module")
def checkpoint(stages):
    return stages["audio"] / "export"


def complaint(capsys, main, *command) -> str:
    """The last line of stderr with which a script refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(main, [str(part) for part in command]))
    err = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in err
    return err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------- prepared


def test_clips_overlap_by_half_and_each_is_encoded_alone_with_its_own_sound(balls, latents):
    data = PreparedDataset(latents, clip_frames=CLIP, audio_scale=1.0)
    codec = AVCodec.load(latents / "pipeline")
    codec.spec = replace(codec.spec, audio_scale=1.0)
    videos = ClipDataset(balls, "train", CLIP, SIZE, context=codec.context)
    a_file = (LENGTH - CLIP) // (CLIP // 2) + 1
    assert len(data) == 3 * a_file and len(videos) == 3 * (LENGTH - CLIP + 1)
    for k in (0, 1, a_file - 1, a_file):
        item, file, start = data[k], k // a_file, k % a_file * (CLIP // 2)
        video = videos[file * (LENGTH - CLIP + 1) + start]
        mean, std, a = codec.encode(video["frames"][None], video["wave"][None])
        assert item["start"] == start and item["mean"].shape == (CLIP // 4, 4, SIZE // 8, SIZE // 8)
        assert item["a"].shape == (CLIP * 10, 20) and not item["std"].any() and not std.any()
        torch.testing.assert_close(item["mean"], mean[0], rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(item["a"], a[0], rtol=1e-3, atol=1e-3)


def test_index_of_clips_tells_their_number_scale_and_quality(latents):
    index, data = json.loads((latents / "prepared.json").read_text()), PreparedDataset(latents, clip_frames=CLIP)
    assert [e["clips"] for e in index["splits"]["train"]["files"]] == [4, 4, 4] and index["facts"][
        "clip_frames"
    ] == CLIP
    sound, picture = (torch.stack([data[k][name] for k in range(len(data))]) for name in ("a", "mean"))
    assert sound.std().item() == pytest.approx(1, rel=1e-3)
    stored = torch.tensor(index["statistics"]["latents"]["std"])
    torch.testing.assert_close(picture.transpose(1, 2).transpose(0, 1).flatten(1).std(1), stored, rtol=1e-2, atol=1e-3)
    quality = json.loads((latents / "report.json").read_text())["quality"]["train"]
    assert 10 < quality["psnr_db"] < 60 and 0 < quality["mel_mean_db"] < quality["mel_max_db"] < 0.03
    assert "clip of 8 frames in the middle" in quality["covered"]


def test_folder_of_clips_is_prepared_once(balls, latents, capsys):
    prepare.main(prepare_argv(balls, latents))
    assert "all were prepared before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--clip-frames", 10], "10 frames are not a multiple of 4, which codec block-pca takes; cut clips of 8 or 12"),
        (["--clip-frames", 0], "codec block-pca is one of whole clips"),
        (["--image-size", 36], "36"),
        (["--sample-rate", 16001], "16001 Hz is not a whole number of samples per frame"),
        (["--sound", "oobleck"], "codec oobleck needs weights; give --sound-source"),
        (["--sound", "audioldm", "--sound-source", "/nowhere"], "codec audioldm: /nowhere is no directory"),
        (["--sound", "opus"], "sound 'opus' is unknown; choose one of mel, oobleck, audioldm"),
        (["--clip-frames", 24], "shorter than 24 frames"),
    ],
)
def test_clips_that_cannot_be_are_refused(balls, tmp_path, capsys, more, said):
    assert said in complaint(capsys, prepare.main, *prepare_argv(balls, tmp_path, *more))


def test_sound_becomes_tokens_of_an_autoencoder_from_its_own_folder_and_may_move(balls, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(BlockPCA, "kept", 4)
    monkeypatch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
    write_audioldm(tmp_path / "sound")
    command = prepare_argv(balls, out := tmp_path / "out", "--sound=audioldm", f"--sound-source={tmp_path / 'sound'}")
    prepare.main(command)
    codec, data = AVCodec.load(out / "pipeline"), PreparedDataset(out, clip_frames=CLIP)
    video = ClipDataset(balls, "train", CLIP, SIZE, context=codec.context)[0]
    torch.testing.assert_close(data[0]["a"], codec.encode_sound(video["wave"][None])[0], rtol=1e-3, atol=1e-3)
    assert data[0]["a"].shape == (CLIP * 1600 // 640, 12) and codec.facts["audio_rate"] == 25
    quality = json.loads((out / "report.json").read_text())["quality"]["train"]
    assert 10 < quality["psnr_db"] < 60 and 3 < quality["mel_mean_db"] < quality["mel_max_db"]
    capsys.readouterr()
    prepare.main(command)
    assert "all were prepared before" in capsys.readouterr().out
    train.main(train_argv(out, tmp_path / "run", "--max-steps", 1))
    (tmp_path / "sound").rename(tmp_path / "moved")
    films = [f"--model-ckpt={tmp_path / 'run/export'}", "--prompt=x", "--num-timesteps=1", "--num-videos=1",
             "--device=cpu", f"--results-dir={tmp_path / 'films'}"]  # fmt: skip
    assert "could not be had from the hub" in complaint(capsys, sample.main, *films)
    sample.main([*films, f"--sound-source={tmp_path / 'moved'}"])
    assert read_audio(tmp_path / "films/sample_00000.mp4", 0, CLIP * 1600).std() > 0
    write_audioldm(tmp_path / "sound", vae={"scaling_factor": 0.5})
    assert "was prepared with another sound_sha256" in complaint(capsys, prepare.main, *command)


def test_other_clips_in_a_prepared_folder_are_refused(balls, latents, capsys):
    line = complaint(capsys, prepare.main, *prepare_argv(balls, latents, "--clip-frames", 12))
    assert "was prepared with clip_frames 8, not 12" in line


# --------------------------------------------------------------------------------------------------------------- stages


def tower(experiment, name) -> str:
    """SHA-256 of a tower of the exported model."""
    weights = load_file(experiment / "export/model.safetensors")
    digest = hashlib.sha256()
    for key in sorted(key for key in weights if key.startswith(name)):
        digest.update(weights[key].numpy().tobytes())
    return digest.hexdigest()


def test_each_stage_trains_its_own_tower_and_joint_both(stages):
    assert tower(stages["video"], "video.") == tower(stages["audio"], "video.") != tower(stages["joint"], "video.")
    assert len({tower(stages[stage], "sound.") for stage in stages}) == 3
    facts = json.loads((stages["audio"] / "export/config.json").read_text())
    assert (facts["system"], facts["video_rate"], facts["audio_rate"]) == ("syncflow", 2.5, 100.0)


def test_sound_of_the_video_stage_is_as_it_was_drawn(stages):
    weights = load_file(stages["video"] / "export/model.safetensors")
    assert not weights["sound.head.weight"].any() and weights["video.head.weight"].any()


def test_optimiser_and_average_hold_what_the_stage_trains_alone(stages):
    folder = stages["audio"] / "checkpoints/step_0000003"
    moments = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    shadows = torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)["shadow_params"]
    sound = list(load_model(stages["audio"] / "export").sound.parameters())
    assert len(moments) == len(shadows) == len(sound)


def test_log_tells_the_share_of_the_device_that_each_stage_uses(stages):
    for stage, run in stages.items():
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert all(0 < record["mfu_of_matmul"] < 1.5 for record in records)
        args = Namespace(**json.loads((run / "run.json").read_text())["arguments"])
        costs = run_costs(args, AVCodec.load(run / "export"), None)
        assert (costs.stage, *costs.clip[:4]) == (stage, CLIP // 4, SIZE // 8, SIZE // 8, CLIP * 10)
        assert costs.trained == load_model(run / "export").set_stage(stage)


def test_dry_run_plans_a_gpu_for_the_stage_and_leaves_nothing(latents, stages, tmp_path, capsys):
    train.main(
        train_argv(latents, tmp_path, "--stage", "audio", "--init-from", stages["video"] / "export", "--dry-run")
    )
    said = capsys.readouterr().out
    assert "planned for a GPU in fp32, stage audio: 0.0" in said and "activations 0.0" in said
    assert list(tmp_path.iterdir()) == []


def test_stage_that_was_killed_ends_with_the_weights_of_an_undisturbed_one(latents, stages, tmp_path):
    """Killed after its second step, of which there is no checkpoint, in mid-stage."""
    command = train_argv(latents, tmp_path, "--stage", "audio", "--max-steps", 3, "--ckpt-every", 1, "--init-from",
                         stages["video"] / "export")  # fmt: skip
    log, first = tmp_path / "log.jsonl", Script("tests/small_train.py", *command, LINGERS=2)
    assert kill_when(first, lambda: lines(log) >= 2), first.said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_0000001"]
    train.main(command)
    ours, theirs = (
        load_file(run / "checkpoints/step_0000003/model.safetensors") for run in (tmp_path, stages["audio"])
    )
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_loss_on_held_out_clips_is_of_the_exported_weights_and_changes_nothing(latents, stages, tmp_path):
    """By hand: the loss of export/ on 64 test clips, with the times and noise of the first steps."""
    start = ("--stage", "audio", "--init-from", stages["video"] / "export", "--max-steps", 3, "--validate")
    train.main(train_argv(latents, tmp_path, *start))
    ours, theirs = (load_file(run / "export/model.safetensors") for run in (tmp_path, stages["audio"]))
    assert all(ours[name].equal(theirs[name]) for name in ours)

    model, spec = load_model(tmp_path / "export"), AVCodec.load(tmp_path / "export").spec
    data = PreparedDataset(latents, "test", CLIP, spec.audio_scale)
    clips = Captioned(data, data.captions(), data.folder, CLIP, spec.fps)
    shapes, texts = (data[0]["mean"].shape, data[0]["a"].shape), prepared_texts(data, "words", None)
    draws = ClipDraws(0, range(4), shapes, -1, texts, 0.1, pairing=4)
    found = []
    for step, places in enumerate(ClipOrder(len(clips), 4, 0, 0, 16)):
        mean, std, a, y = (torch.stack([clips[k][name] for k in places]) for name in ("mean", "std", "a", "y"))
        with torch.no_grad():
            found.append(torch.stack(flow_loss(model, **draws(step, mean, std, a, y), weight=uniform_weight)[:3]))
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    told = [last[f"held_out_loss{side}"] for side in ("", "_video", "_audio")]
    assert told == pytest.approx(torch.stack(found).mean(0).tolist(), rel=1e-4)


def test_held_out_clips_that_are_not_there_are_told_before_training(balls, tmp_path, capsys):
    shutil.copytree(balls / "train", tmp_path / "data/train")
    facts = ("--codec", "block-pca", "--image-size", SIZE, "--n-mels", 20, "--predict-frames", CLIP, "--audio-scale", 2)
    line = complaint(capsys, train.main, *train_argv(tmp_path / "data", tmp_path / "run", *facts, "--validate"))
    assert "has no folder 'test'" in line and not (tmp_path / "run/checkpoints").exists()


def test_two_processes_train_a_stage_to_the_weights_of_one(latents, stages, tmp_path):
    """The noise is paired within groups that lie in one process."""
    how = ("--stage", "audio", "--max-steps", 2, "--init-from", stages["video"] / "export", "--dtype", "float64",
           "--validate")  # fmt: skip
    train.main(train_argv(latents, tmp_path / "one", *how, "--pairing", 2))
    two = train_argv(latents, tmp_path / "two", *how, "--pairing", 2, "--batch-size", 2)
    run_ranks(2, "tests/small_train.py", *two)
    one, two = (load_file(tmp_path / name / "checkpoints/step_0000002/model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-10
    one, two = (json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("one", "two"))
    assert one["held_out_loss_audio"] == pytest.approx(two["held_out_loss_audio"], rel=1e-9)


def test_videos_that_nobody_prepared_train_the_same_model(balls, tmp_path):
    facts = ("--image-size", SIZE, "--n-mels", 20, "--audio-scale", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockPCA, "kept", 4)
        train.main(train_argv(balls, tmp_path, "--codec", "block-pca", "--predict-frames", CLIP, "--max-steps", 1,
                              *facts))  # fmt: skip
    model = load_model(tmp_path / "export")
    assert (model.in_channels, model.audio_channels, AVCodec.load(tmp_path / "export").spec.clip_frames) == (
        4,
        20,
        CLIP,
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stage", "audio"], "--stage audio goes on from trained weights; give them with --init-from"),
        (["--stage", "sound"], "--stage sound is none of SyncFlow-mini; choose one of video, audio, joint"),
        (["--variant", "mute"], "--variant mute is none of SyncFlow-mini; choose one of no-adaptor, text-only"),
        (
            ["--sampling", "logit-noise"],
            "--sampling logit-noise draws no times of whole clips; choose",
        ),
        (["--cuts", 0.1], "--cuts is of frames that have texts of their own, and SyncFlow-mini has one for a clip"),
        (["--pairing", 3], "--pairing 3 does not divide --batch-size 4"),
        (
            ["--logit-mean", -1],
            "--logit-mean is of times of whole clips under --sampling logit, not of SyncFlow-mini un",
        ),
        (["--sampling", "logit", "--logit-std", 0], "--logit-std 0.0 spreads no times; choose one above 0"),
        (["--sampling", "logit", "--logit-mean", "nan"], "--logit-mean nan is no place of times; choose a finite one"),
        (["--predict-frames", 12], "was prepared in clips of 8 frames, not 12"),
        (["--fps", 5], "--fps 5 contradicts"),
        (["--model", "FLAV-mini"], "was prepared for whole clips of 8 frames, which FLAV-mini does not take"),
        (["--model", "FLAV-mini", "--stage", "video"], "--stage video is none of FLAV-mini; choose one of link"),
        (
            ["--model", "FLAV-mini", "--logit-std", 2],
            "--logit-std is of times of whole clips under --sampling logit, not",
        ),
    ],
)
def test_trainings_that_cannot_be_are_refused(latents, tmp_path, capsys, more, said):
    assert said in complaint(capsys, train.main, *train_argv(latents, tmp_path, *more))


def test_checkpoint_of_another_system_is_refused_before_anything_is_made(balls, stages, tmp_path, capsys):
    facts = ("--model", "FLAV-mini", "--codec", "patch-pca", "--image-size", SIZE, "--n-mels", 20)
    line = complaint(capsys, train.main, *train_argv(balls, tmp_path, *facts, "--init-from",
                                                     stages["video"] / "export"))  # fmt: skip
    assert "is a model of syncflow, not of r-flav, as FLAV-mini is; begin with one of the same" in line
    assert not (tmp_path / "pipeline").exists()


def test_checkpoint_of_other_data_leaves_no_folder_behind(stages, tmp_path, balls, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockPCA, "kept", 4)
        prepare.main([arg for arg in prepare_argv(balls, tmp_path / "latents") if "n-mels" not in arg])
    command = train_argv(tmp_path / "latents", tmp_path / "run", "--init-from", stages["video"] / "export")
    assert "has n_mels 20, and the run asks for 256; begin with a checkpoint of such data" in complaint(
        capsys, train.main, *command
    )
    assert not (tmp_path / "run/pipeline").exists()


def test_clips_without_text_are_refused(latents, tmp_path, capsys):
    command = [part for part in train_argv(latents, tmp_path) if not part.startswith("--text-encoder")]
    assert "SyncFlow-mini follows texts; give --text-encoder" in complaint(capsys, train.main, *command)


def test_texts_of_another_width_than_the_checkpoints_are_refused_before_they_are_read(
    balls, stages, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Words, "width", 32)
    monkeypatch.setattr(Words, "encode", lambda *_: pytest.fail("encoded"))
    facts = ("--codec", "block-pca", "--image-size", SIZE, "--n-mels", 20, "--predict-frames", CLIP)
    command = train_argv(balls, tmp_path, *facts, "--stage", "audio", "--init-from", stages["video"] / "export")
    line = complaint(capsys, train.main, *command)
    assert "reads texts of width 64, text encoder words gives 32; give --text-encoder and --text-source" in line


def test_clips_that_the_models_patches_do_not_divide_are_refused(balls, pipe, tmp_path, capsys, monkeypatch):
    facts = ("--codec", "block-pca", "--image-size", 40, "--n-mels", 20, "--predict-frames", CLIP, "--audio-scale", 2)
    said = "frames are 40 pixels high, not a multiple of the 16 of codec block-pca with patches of 2 in the model"
    assert said in complaint(capsys, train.main, *train_argv(balls, tmp_path, *facts))
    monkeypatch.setattr(pipe.model, "audio_patch", 7)
    with pytest.raises(ValueError, match="a clip of 8 frames has 80 sound tokens, not a multiple of the 7 that the"):
        pipe.sample([0])


@pytest.mark.parametrize("variant", SyncFlow.variants)
def test_variant_of_an_ablation_trains_from_the_video_stage_and_samples(latents, stages, tmp_path, variant):
    """Rows S15, S30 and S31."""
    how = ("--stage", "audio", "--max-steps", 1, "--init-from", stages["video"] / "export", "--variant", variant)
    train.main(train_argv(latents, tmp_path, *how))
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config.items() >= SyncFlow.variants[variant].items() and tower(tmp_path, "video.") == tower(
        stages["video"], "video."
    )
    made = AVPipeline.from_pretrained(tmp_path / "export").sample([0], y="a red ball", num_timesteps=1)
    assert made.a.isfinite().all() and made.wave.shape == (1, CLIP * 1600)


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return AVPipeline.from_pretrained(checkpoint)


def test_checkpoint_of_clips_becomes_a_pipeline_of_clips(pipe):
    assert isinstance(pipe, ClipPipeline) and pipe.spec.clip_frames == CLIP
    assert (pipe.model.num_timesteps, pipe.cfg_scale) == (50, 6.0)
    for stream in (pipe.stream, pipe.windows, pipe.extending):
        with pytest.raises(ValueError, match="syncflow makes whole clips, not streams"):
            stream()


def test_clip_depends_on_its_seed_and_number_and_not_on_its_neighbours(pipe):
    how = dict(num_timesteps=2, cfg_scale=2)
    three = pipe.sample([4, 5, 6], y=["a red ball", "", "a blue ball"], seed=torch.tensor([1, 1, 2]), **how)
    assert three.frames.shape == (3, CLIP, SIZE, SIZE, 3) and three.wave.shape == (3, CLIP * 1600)
    for row, (number, text, seed) in enumerate([(4, "a red ball", 1), (5, "", 1), (6, "a blue ball", 2)]):
        alone = pipe.sample([number], y=text, seed=seed, **how)
        assert_close_by_size(alone.v[0], three.v[row])
        assert_close_by_size(alone.a[0], three.a[row])


def test_clip_of_an_empty_prompt_is_that_of_the_null_text(pipe):
    empty, null, red = (pipe.sample([0], num_timesteps=1, y=text) for text in (" ... ", None, "a red ball"))
    assert empty.v.equal(null.v) and empty.a.equal(null.a) and not red.v.equal(null.v)


def test_fifty_steps_with_guidance_are_a_hundred_passes_over_the_clip(pipe, monkeypatch):
    rows, forward = [], pipe.model.forward
    monkeypatch.setattr(pipe.model, "forward", lambda v, *args, **how: rows.append(len(v)) or forward(v, *args, **how))
    pipe.sample([0], frames=4, y="a red ball")
    assert rows == [2] * 50
    rows.clear()
    pipe.sample([0], frames=4, num_timesteps=3)  # of no text there is nothing to lead away from
    assert rows == [1] * 3


def test_guidance_leads_from_the_negative_text_to_the_text(pipe):
    v, a, t = torch.randn(1, 2, 4, 4, 4), torch.randn(1, 80, 20), torch.tensor([0.3], dtype=torch.float64)
    of = {text: pipe.velocity(1, text, 1)(v, a, t, t_a=t) for text in ("a red ball", "a blue ball")}
    led = pipe.velocity(1, "a red ball", 3, "a blue ball")(v, a, t, t_a=t)
    for side in (0, 1):
        red, blue = of["a red ball"][side], of["a blue ball"][side]
        assert_close_by_size(led[side], blue + 3 * (red - blue))
    with pytest.raises(ValueError, match="a negative prompt needs guidance"):
        pipe.velocity(1, "a red ball", 1, "a blue ball")


def test_given_picture_comes_out_as_it_was_and_changes_the_sound(pipe):
    picture = torch.randn(1, 2, 4, 4, 4)
    given, free = (pipe.sample([0], num_timesteps=3, given=x) for x in ({"picture": picture}, None))
    assert given.v.equal(picture) and given.frames is None and not given.a.equal(free.a)


def test_a_shorter_clip_begins_with_the_noise_of_a_longer_one(pipe):
    short, long = (pipe._noise([3], pipe.codec.shapes(frames, SIZE, SIZE), 7) for frames in (4, 12))
    for few, many in zip(short, long):
        assert few[0].equal(many[0, : len(few[0])])
    assert short[0][0].equal(frame_noise(7, 3, 0, Modality.VIDEO, (1, 4, 4, 4)))


def test_scripts_make_clips_of_text_at_any_size_and_length(checkpoint, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue ball\n")
    how = [f"--model-ckpt={checkpoint}", "--num-timesteps=2", "--device=cpu"]
    sample.main([*how, f"--prompts={prompts}", f"--results-dir={tmp_path / 'a'}"])
    sample.main([*how, "--prompt=a red ball", "--num-videos=1", "--image-size=16x48", "--video-length=12",
                 f"--results-dir={tmp_path / 'b'}"])  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == ["a red ball", "a blue ball"] and records[0]["frames"] == CLIP
    assert read_frames(tmp_path / "a/sample_00001.mp4", 0, CLIP).shape == (CLIP, SIZE, SIZE, 3)
    assert read_frames(tmp_path / "b/sample_00000.mp4", 0, 12).shape == (12, 16, 48, 3)


def test_sound_for_a_picture_is_muxed_with_the_very_picture(balls, checkpoint, tmp_path):
    sample_v2a.main([f"--model-ckpt={checkpoint}", f"--data-path={balls}", f"--results-dir={tmp_path}",
                     "--num-timesteps=2", "--device=cpu", f"--video-length={CLIP}"])  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(records) == 2 and records[0]["frames"] == CLIP
    film, original = tmp_path / records[0]["file"], balls / "test" / records[0]["input"].partition("/test/")[2]
    assert read_frames(film, 0, CLIP).equal(read_frames(original, 0, CLIP))
    assert not read_audio(film, 0, CLIP * 1600).equal(read_audio(original, 0, CLIP * 1600))
    assert probe(film).frames(10) - CLIP in (0, 1)  # a picture may follow from which others are decoded
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["method"] == "line"


def test_cascade_gives_a_picture_of_our_own_a_sound_of_our_own(checkpoint, tmp_path):
    """Row S27's stand-in for cascades of others: text to picture, then that picture to sound."""
    how = [f"--model-ckpt={checkpoint}", "--num-timesteps=2", "--device=cpu", "--prompt=a red ball"]
    sample.main([*how, "--num-videos=2", f"--results-dir={tmp_path / 'first'}"])
    sample_v2a.main([*how, f"--input={tmp_path / 'first'}", f"--results-dir={tmp_path / 'second'}"])
    made = [json.loads(line) for line in (tmp_path / "second/samples.jsonl").read_text().splitlines()]
    for record in made:
        one, two = tmp_path / "second" / record["file"], record["input"]
        assert read_frames(one, 0, CLIP).equal(read_frames(two, 0, CLIP))
        assert not read_audio(one, 0, CLIP * 1600).equal(read_audio(two, 0, CLIP * 1600))
    assert len(made) == 2


@pytest.mark.parametrize(
    ("main", "more", "said"),
    [
        (sample_long.main, ["--frames", 20], "makes whole clips and no streams; use sample.py"),
        (sample_a2v.main, ["--input", "DATA"], "is a model of syncflow, which takes no sound, only a picture"),
        (sample_v2a.main, ["--input", "DATA", "--method", "guide"], "does not fit a model of syncflow; take line"),
        (sample_v2a.main, ["--input", "DATA", "--video-length", 6], "6 frames are not a multiple of 4"),
        (sample.main, ["--video-length", 6], "6 frames are not a multiple of 4"),
        (sample.main, ["--image-size", "30"], "30"),
        (sample.main, ["--image-size", "24x32"], "24 pixels high, not a multiple of the 16 of codec block-pca with"),
        (sample.main, ["--image-size", "0x8"], "0x8 is no size in pixels; give 128, or 48x96"),
        (sample.main, ["--classes", "red"], "--classes red was given, but this model has no classes"),
    ],
)
def test_what_a_model_of_clips_cannot_do_is_one_sentence(balls, checkpoint, tmp_path, capsys, main, more, said):
    more = [str(balls / "test") if part == "DATA" else part for part in more]
    command = ["--model-ckpt", checkpoint, "--results-dir", tmp_path, "--device", "cpu", "--num-timesteps", 1, *more]
    assert said in complaint(capsys, main, *command)

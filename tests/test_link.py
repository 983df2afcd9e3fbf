"""Two frozen branches of R-FLAV and the link between them: what is drawn, what learns, and what is sampled."""

import functools
import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import cli
import prepare
import sample_a2v
import sample_v2a
import train
import training.learner
from benchmarks import conditional as benchmark
from data.synthetic import write_dataset
from diffusion.flow import flow_loss
from models import FLAV, load_model
from pipeline.conditional import conditioned_streams
from pipeline.sources import PictureSource, SoundSource
from tests.given import WINDOW, run, samples_of, tiny, write_video
from tests.processes import run_ranks
from training.draws import Draws, HeldDraws
from training.meter import Meter

pytestmark = pytest.mark.usefixtures("small_preset")

T, SHAPES, HELD = 4, ((4, 3, 2, 2), (4, 5, 6)), (0.96, 0.8)


# --------------------------------------------------------------------------------------------------------------- draws


def clips(B):
    rng = torch.Generator().manual_seed(0)
    mean, std = (torch.rand(B, *SHAPES[0], generator=rng) for _ in range(2))
    return mean, std, torch.rand(B, *SHAPES[1], generator=rng), torch.arange(B) % 3


def draws(rows, carries=("picture", "sound"), null_label=3):
    how = (0, rows, SHAPES, 0.2, 0.1, null_label)
    return HeldDraws(*how, conditioning_times=HELD, carries=carries)


def test_half_of_the_clips_have_the_picture_held_and_half_the_sound_and_the_other_rolls_as_ever():
    """Row A14: the noise share of what is given is 1 - t exactly, in every frame."""
    B = 2000
    batch = clips(B)
    inputs, plain = draws(range(B))(5, *batch), Draws(0, range(B), SHAPES, 0.2, 0.1, 3)(5, *batch)
    t, t_a = inputs["times"]
    sees, hears = (~learns for learns in inputs["shares"])  # of which the picture, the sound is given
    assert torch.equal(sees, ~hears) and sees.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert t[sees].eq(0.96).all() and t_a[hears].eq(0.8).all()
    assert torch.equal(t[hears], plain["times"][0][hears]) and torch.equal(t_a[sees], plain["times"][1][sees])
    same = ("v", "a", "y")
    assert all(torch.equal(inputs[name], plain[name]) for name in same) and inputs["y"].eq(3).any()


def test_held_sides_do_not_depend_on_rank_or_on_labels():
    batch = clips(8)
    whole, part = draws(range(8))(7, *batch), draws(range(3, 8))(7, *(x[3:] for x in batch))
    for name in ("times", "shares", "noise"):
        assert all(x[3:].equal(y) for x, y in zip(whole[name], part[name]))
    assert draws(range(8), null_label=None)(7, *batch)["shares"][0].equal(whole["shares"][0])


def test_side_that_reaches_nothing_is_never_given():
    inputs = draws(range(64), carries=("picture",))(0, *clips(64))
    assert inputs["times"][0].eq(0.96).all() and not inputs["shares"][0].any() and inputs["shares"][1].all()


def test_loss_is_of_the_side_that_learns_and_the_log_counts_its_frames_alone():
    """By hand, with a network that predicts zeros."""
    inputs = draws(range(8))(0, *clips(8))
    loss = flow_loss(lambda v, a, t, **_: (0 * v, 0 * a), **inputs, weight=lambda t: t + 1)
    learns_v, learns_a = inputs["shares"]
    error = ((inputs["v"] - inputs["noise"][0]) ** 2).flatten(2).mean(2) * (inputs["times"][0] + 1)
    assert loss.video.item() == pytest.approx((error[learns_v].sum() / error.numel()).item())
    assert not loss.error_v[~learns_v].any() and not loss.error_a[~learns_a].any() and loss.error_a[learns_a].all()
    meter = Meter(torch.device("cpu"))
    meter.add(loss, inputs["times"], torch.tensor(1.0), inputs["shares"])
    frames = meter.bins[:, 0].sum(1).tolist()
    assert frames == [T * learns_v.sum(), T * learns_a.sum()] and 0 < frames[0] < 8 * T
    assert meter.read(Accelerator(cpu=True), 1.0)["loss_video"] == pytest.approx(loss.video.item())


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    root, out = (tmp_path_factory.mktemp(name) for name in ("balls", "latents"))
    write_dataset(root, train=3, test=0, frames=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main([f"--data-path={root}", f"--out={out}", "--codec=patch-pca", "--image-size=64", "--n-mels=64"])
    return out


def argv(data, experiment, *more) -> list[str]:
    how = {"model": "FLAV-mini", "predict-frames": WINDOW, "batch-size": 4, "num-workers": 0, "sample-every": 0,
           "log-every": 1, "lr": 1e-2, "sampling": "logit-noise"}  # fmt: skip
    flags = {"data-path": data, "experiment-dir": experiment, **how}
    return [*(f"--{name}={value}" for name, value in flags.items()), *map(str, more)]


@pytest.fixture(scope="module")
def towers(latents, tmp_path_factory):
    """The export of a run in which nothing passes."""
    out = tmp_path_factory.mktemp("towers")
    train.main(argv(latents, out, "--fusion", "none", "--max-steps", 2))
    return out / "export"


def linking(towers, *more):
    return ("--fusion", "link", "--stage", "link", "--init-from", towers, *more)


@pytest.fixture(scope="module")
def linked(latents, towers, tmp_path_factory):
    out = tmp_path_factory.mktemp("linked")
    train.main(argv(latents, out, *linking(towers, "--fusion-blocks", 1, "--max-steps", 3)))
    return out


def weights_of(experiment, step):
    return load_file(experiment / f"checkpoints/step_{step:07d}/model.safetensors")


def test_towers_are_what_they_were_after_their_link_was_trained_and_the_link_is_not(linked, towers):
    """Row A1, by the bytes; of the weights and of their average."""
    before, model = load_file(towers / "model.safetensors"), load_model(linked / "export")
    for after in (load_file(linked / "export/model.safetensors"), weights_of(linked, 3)):
        own = after.keys() - before.keys()
        assert all(x.equal(after[name]) for name, x in before.items())
        assert {name.split(".fusion.")[0] for name in own} == {"blocks.1"}
        assert after["blocks.1.fusion.video.adaln.weight"].any() and after["blocks.1.fusion.audio.adaln.weight"].any()
    assert model.conditioning_times == [0.96, 0.8] and model._hub_mixin_config["fusion_blocks"] == [1]


def test_training_holds_a_side_of_each_clip_at_the_times_asked_for_and_the_export_knows_them(
    latents, towers, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(training.learner, "flow_loss", lambda *args, **how: seen.append(how) or flow_loss(*args, **how))
    times = ("--conditioning-times", 0.9, 0.7, "--batch-size", 8, "--max-steps", 1)
    train.main(argv(latents, tmp_path, *linking(towers, *times)))
    for inputs in seen:
        (t, t_a), (sees, hears) = inputs["times"], (~learns for learns in inputs["shares"])
        assert t[sees].eq(0.9).all() and t_a[hears].eq(0.7).all() and sees.any() and hears.any()
    assert seen and load_model(tmp_path / "export").conditioning_times == [0.9, 0.7]


def test_places_that_are_no_blocks_are_refused_before_a_video_is_read(towers, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.run(
            functools.partial(train.main, argv(tmp_path / "none", tmp_path, *linking(towers, "--fusion-blocks", 2)))
        )
    assert "fusion blocks [2] are not some of 2 blocks" in capsys.readouterr().err


def test_optimiser_and_average_hold_the_link_alone(linked):
    folder = linked / "checkpoints/step_0000003"
    moments = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    shadows = torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)["shadow_params"]
    link = list(load_model(linked / "export").blocks[1].fusion.parameters())
    assert len(moments) == len(shadows) == len(link)


def test_resumed_link_has_the_weights_of_an_undisturbed_one(latents, towers, linked, tmp_path):
    for steps in (1, 3):
        train.main(argv(latents, tmp_path, *linking(towers, "--fusion-blocks", 1, "--max-steps", steps)))
    ours, theirs = weights_of(tmp_path, 3), weights_of(linked, 3)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_two_processes_train_a_link_to_the_weights_of_one(latents, towers, tmp_path):
    how = linking(towers, "--max-steps", 2, "--dtype", "float64")
    train.main(argv(latents, tmp_path / "one", *how))
    run_ranks(2, "tests/small_train.py", *argv(latents, tmp_path / "two", *how, "--batch-size", 2))
    one, two = (weights_of(tmp_path / name, 2) for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-10


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stage", "link", "--fusion", "link"], "--stage link goes on from trained weights; give them with --init-f"),
        (["--conditioning-times", 0.9, 0.8], "--conditioning-times [0.9, 0.8] are of a stage that holds one side"),
        (["TOWERS", "--conditioning-times", 0, 0.8], "are not two in (0, 1], of a given picture and of a given"),
        (["TOWERS", "--conditioning-times", "uniform"], "conditioning times ['uniform'] are not two in (0, 1], of a g"),
        (["TOWERS", "--init-from", "one", "two"], "--init-from has 2 checkpoints, and FLAV-mini in stage link begins"),
        (["TOWERS", "--fusion", "none"], "and with --fusion none nothing does; take link or adaptor"),
        (["TOWERS", "--independent-times", 0.2], "--independent-times 0.2 draws times that --stage link holds"),
        (["TOWERS", "--fusion-blocks", 0, 2], "fusion blocks [0, 2] are not some of 2 blocks, each once"),
        (["TOWERS", "--model", "FLAV-tiny"], "which stage link freezes (hidden_size 32 there, 128 here; depth 2 there"),
        (["TOWERS", "--predict-frames", 6], "lacks video_frame_pos, audio_frame_pos, which stage link freezes (predi"),
    ],
)
def test_link_that_cannot_be_is_refused_before_training(latents, towers, tmp_path, capsys, more, said):
    more = [part for one in more for part in (linking(towers) if one == "TOWERS" else [one])] + ["--max-steps", 1]
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(train.main, argv(latents, tmp_path, *more)))
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said in line and not (tmp_path / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------------------ sampling


@pytest.fixture(scope="module")
def pipe():
    return tiny(fusion="link", depth=2, fusion_blocks=[1], conditioning_times=list(HELD))


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    pipe.save(folder)
    return folder


@pytest.fixture(autouse=True)
def blank_sheet(monkeypatch):
    monkeypatch.setattr("contact.contact_sheets", lambda clips, path: path.write_bytes(b""))


def made(pipe, source, given, seen=None, n=2):
    """Latents made for a source, as `conditional.py` makes them; seen gets what each call of the model saw."""
    forward = FLAV.forward

    def spied(self, v, a, t, y=None, t_a=None, *more, **conditions):
        if seen is not None:
            seen.append((v.clone(), a.clone(), t, t_a))
        return forward(self, v, a, t, y, t_a, *more, **conditions)

    streams = conditioned_streams(pipe, given, "held", 25.0, num_timesteps=n, cfg_scale=1.0)
    streams.join("one", pipe.new_stream(0, 1, 0), source.frames, {source.modality: source})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FLAV, "forward", spied)
        return torch.cat([getattr(chunk, "v" if given == "sound" else "a") for _, chunk in streams])


@pytest.mark.parametrize(("given", "kind", "at"), [("picture", PictureSource, 0.96), ("sound", SoundSource, 0.8)])
def test_given_side_is_held_in_every_frame_with_noise_that_is_drawn_once(pipe, tmp_path, given, kind, at):
    """Rows A16 and A17, in a stream: from call to call a frame of the given side is the same, until it leaves."""
    path, seen = write_video(tmp_path / "film.mp4", 9), []
    source = kind(path, pipe.codec, WINDOW)
    made(pipe, source, given, seen)
    source, first = kind(path, pipe.codec, WINDOW), 0
    frames = [source(k) for k in range(9)]
    shown, noises = 0 if given == "picture" else 1, {}
    for step, call in enumerate(seen):
        first = max(0, (step - 2 * WINDOW) // 2 + 1)
        t_held, t = call[2 + shown], call[3 - shown]
        assert t_held.eq(at).all() and t.shape == t_held.shape and (t < 1).all()
        for i, x in enumerate(call[shown][0]):
            eps = (x - at * frames[first + i].to(x)) / (1 - at)
            assert (noises.setdefault(first + i, eps) - eps).abs().max() < 1e-6
    assert len(noises) == 9 and all(0.5 < eps.std() < 1.5 for eps in noises.values())


@pytest.mark.parametrize(("given", "kind"), [("picture", PictureSource), ("sound", SoundSource)])
def test_first_frames_do_not_depend_on_what_is_given_later_or_on_frames_left_out(
    pipe, tmp_path, monkeypatch, given, kind
):
    path = write_video(tmp_path / "film.mp4", 9)
    long, short = (made(pipe, kind(path, pipe.codec, WINDOW, most), given) for most in (9, 5))
    torch.testing.assert_close(long[:5], short, rtol=0, atol=1e-10)
    monkeypatch.setattr(pipe, "skip", False)
    torch.testing.assert_close(long, made(pipe, kind(path, pipe.codec, WINDOW), given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("script", ["a2v", "v2a"])
def test_linked_model_holds_what_is_given_unless_told_otherwise(checkpoint, tmp_path, script):
    source = write_video(tmp_path / "film.mp4", 6)
    own, held, other = (run(script, checkpoint, tmp_path / str(i), "--input", source, *more)
                        for i, more in enumerate(((), ("--method=held",), ("--method=replace",))))  # fmt: skip
    films = [(folder / "sample_00000_film.mp4").read_bytes() for folder in (own, held, other)]
    assert films[0] == films[1] != films[2]
    assert json.loads((own / "run.json").read_text())["arguments"]["method"] == "held"
    assert len(samples_of(own / "sample_00000_film.wav")) == 6 * 1600


@pytest.mark.parametrize(
    ("fusion", "script", "own"),
    [("none", "v2a", "replace"), ("adaptor", "v2a", "replace"), ("adaptor", "a2v", "guide")],
)
def test_where_no_gradient_leads_to_the_made_side_none_guides_it(tmp_path, fusion, script, own):
    tiny(fusion=fusion).save(tmp_path / "export")
    write_video(tmp_path / "film.mp4", 6)
    out = run(script, tmp_path / "export", tmp_path / "out", "--input", tmp_path / "film.mp4", "--video-length", 2)
    assert json.loads((out / "run.json").read_text())["arguments"]["method"] == own


@pytest.mark.parametrize(
    ("config", "script", "more", "said"),
    [
        (
            {},
            sample_v2a,
            ["--method=held"],
            "does not fit a model of r-flav; take guide or replace or clean; held is of",
        ),
        (
            {"fusion": "link", "conditioning_times": [1, 1]},
            sample_v2a,
            ["--method=line"],
            "take held or guide or repla",
        ),
        (
            {"fusion": "adaptor", "conditioning_times": [1, 1]},
            sample_a2v,
            [],
            "takes no sound, only a picture; use sam",
        ),
        ({"fusion": "none"}, sample_a2v, ["--method=guide"], "take replace or clean; guide needs a model whose given"),
        ({"fusion": "adaptor"}, sample_v2a, ["--method=guide"], "take replace or clean; guide needs a model whose giv"),
    ],
)
def test_way_that_a_model_has_not_learnt_is_refused_with_those_it_has(tmp_path, capsys, config, script, more, said):
    tiny(**config).save(tmp_path / "export")
    write_video(tmp_path / "film.mp4", 6)
    how = [
        f"--model-ckpt={tmp_path / 'export'}",
        f"--input={tmp_path / 'film.mp4'}",
        f"--results-dir={tmp_path}",
        *more,
    ]
    with pytest.raises(SystemExit) as end:
        cli.run(functools.partial(script.main, how))
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said in line


def test_benchmark_samples_the_models_that_are_given_and_asks_for_one(tmp_path, monkeypatch, capsys):
    asked, cost = [], {"seconds": 1.0, "cpu_seconds": 1.0, "peak_mib": 1.0}

    def sampled(task, checkpoint, folder, to, cfg_scale, method, scale):
        asked.append((task, str(checkpoint), method, sum(1 for _ in folder.rglob("*.mp4"))))
        to.mkdir(exist_ok=True)
        return cost

    monkeypatch.setattr(benchmark, "sample", sampled)
    monkeypatch.setattr(benchmark, "look", lambda folder, frames: [])
    monkeypatch.setattr(benchmark, "score", lambda films, real: {"f1": 0.5})
    monkeypatch.setattr(benchmark, "memory", lambda task, args, work: {})
    write_dataset(tmp_path / "data", train=0, test=3, frames=2)
    monkeypatch.setattr(benchmark, "LONG", 3)
    arguments = ["--data-path", str(tmp_path / "data"), "--clips=3", "--out", str(tmp_path / "x.json")]
    benchmark.main(["--linked", "L", "--long=6", *arguments])
    assert asked == [(task, "L", "held", count) for task in ("a2v", "v2a") for count in (3, 6)]
    rows = json.loads((tmp_path / "x.json").read_text())["methods"]
    assert [(row["model"], row["frames"]) for row in rows] == 2 * [("linked", 32), ("linked", 3)]
    for more, said in (
        ([], "give --joint or --independent or --linked"),
        (["--linked=L", "--long=4"], "at least 6, or"),
    ):
        with pytest.raises(SystemExit):
            benchmark.main([*more, *arguments])
        assert said in capsys.readouterr().err

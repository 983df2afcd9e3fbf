"""AV-Link through train.py: towers of two checkpoints, linked in each stage; what is drawn, and what stays."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import prepare
import sample_a2v
import sample_v2a
import train
from data.synthetic import write_dataset
from diffusion.flow import flow_loss, uniform_weight
from models.avlink import TOLD, AVLink, AVLink_presets
from models.codec import BlockPCA
from models.fusion import CONDITIONING_TIMES
from models.text import padded
from pipeline import AVPipeline
from tests.processes import run_ranks
from tests.test_whole_clips import complaint, prepare_argv, train_argv
from training.learner import _parted
from training.link_draws import LinkDraws

pytestmark = pytest.mark.usefixtures("small_preset")

SHAPES = (1, 1, 1, 1), (1, 1)
TOKENS = torch.ones(1, 3)


# ------------------------------------------------------------------------------------------------------ what is drawn


def texts(places):
    return padded([TOKENS if place >= 0 else TOKENS[:0] for place in places.tolist()], 3)


def drawn(B, step=0, first=0, **more):
    draws = LinkDraws(0, range(first, first + B), SHAPES, -1, texts, **more)
    zeros = torch.zeros(B, *SHAPES[0])
    return draws(step, zeros, zeros, torch.zeros(B, *SHAPES[1]), torch.zeros(B, 1, dtype=torch.long))


@pytest.fixture(scope="module")
def many():
    return drawn(12_000, made=("sound",), conditioning_times=CONDITIONING_TIMES)


def test_made_side_is_nearer_to_noise_and_the_given_one_at_its_time(many):
    """Rows A13, A14."""
    t, t_a = many["times"]
    logit = t_a.logit()
    assert logit.mean().item() == pytest.approx(-1, abs=0.03) and logit.std().item() == pytest.approx(1, abs=0.03)
    assert t.eq(0.96).all() and many["given"] == "picture" and "shares" not in many
    t, t_a = drawn(8, made=("picture",), conditioning_times=CONDITIONING_TIMES)["times"]
    assert t_a.eq(0.8).all() and len(t.unique()) == 8
    spread = drawn(8000, made=("sound",), conditioning_times=CONDITIONING_TIMES, spread={"mean": 0.5})["times"][1]
    assert spread.logit().mean().item() == pytest.approx(0.5, abs=0.05)


def test_given_sides_time_may_be_uniform_and_independent():
    t, t_a = drawn(8000, made=("sound",))["times"]
    assert t.mean().item() == pytest.approx(0.5, abs=0.01) and t.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(torch.stack([t, t_a.logit()]))[0, 1].abs() < 0.05


def test_texts_of_the_made_side_are_dropped_in_half_of_the_clips_and_of_the_given_one_in_a_fifth(many):
    """Row A15; a tenth bypass the link, and have no text at all."""
    picture, sound, bypassed = many["text"].there, many["text_a"].there, many["bypass"]
    assert bypassed[:, 0].equal(bypassed[:, 1]) and bypassed[:, 0].float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not (picture | sound)[bypassed[:, 0]].any()
    linked = ~bypassed[:, 0]
    assert picture[linked].float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert sound[linked].float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (picture & sound)[linked].float().mean().item() == pytest.approx(0.4, abs=0.01)


def test_draws_are_a_function_of_seed_step_and_place():
    whole, part = drawn(6, step=3), drawn(3, step=3, first=3)
    for one, two in zip((*whole["times"], *whole["shares"], whole["bypass"], whole["noise"][1]),
                        (*part["times"], *part["shares"], part["bypass"], part["noise"][1])):  # fmt: skip
        assert one[3:].equal(two)
    assert not drawn(6, step=4)["noise"][0].equal(whole["noise"][0])


def test_both_sides_are_made_in_turn_each_counting_as_much_as_alone():
    even, odd = (drawn(4, step=step, conditioning_times=CONDITIONING_TIMES) for step in (0, 1))
    assert even["shares"][0].tolist() == [2, 0, 2, 0] == odd["shares"][1].tolist()
    assert even["shares"][1].tolist() == [0, 2, 0, 2] == odd["shares"][0].tolist()
    assert even["times"][1][::2].eq(0.8).all() and even["times"][0][1::2].eq(0.96).all() and "given" not in even
    deaf = drawn(200, conditioning_times=CONDITIONING_TIMES, reinject=False)["bypass"]
    bypassed = deaf.all(1)
    assert deaf[~bypassed][:, 0].equal(~(torch.arange(200) % 2 == 0)[~bypassed])  # the given side hears nothing


# ----------------------------------------------------------------------------------------------------------- the loss


def test_loss_of_a_side_that_is_not_made_is_zero_and_shares_weigh_clips():
    v, a, noise = torch.ones(2, 3, 1, 2, 2), torch.ones(2, 5, 4), (torch.zeros(2, 3, 1, 2, 2), torch.zeros(2, 5, 4))
    t = torch.full((2,), 0.5)

    def model(v, a, t, t_a, given=None):
        return None if given else torch.zeros_like(v), torch.stack([torch.zeros(5, 4), torch.full((5, 4), 3.0)])

    alone = flow_loss(model, v, a, None, (t, t), noise, weight=uniform_weight, given="picture")
    assert (alone.total, alone.video, alone.audio) == (2.5, 0, 2.5) and alone.error_v.shape == (2, 3)
    shares = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    both = flow_loss(model, v, a, None, (t, t), noise, weight=uniform_weight, shares=shares)
    assert (both.video, both.audio) == (1, 4) and both.error_a.mean(1).tolist() == [0, 4]


def test_words_of_a_batch_are_of_all_its_parts():
    parts = list(_parted({"v": torch.arange(4), "given": "picture", "shares": (torch.arange(4), torch.arange(4))}, 2))
    assert [part["given"] for part in parts] == ["picture"] * 2 and parts[1]["shares"][0].tolist() == [2, 3]


# ------------------------------------------------------------------------------------------------------------ train.py


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=3, test=1, frames=22, captions=True)
    return root


@pytest.fixture(scope="module")
def latents(balls, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockPCA, "kept", 4)
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main(prepare_argv(balls, out))
    return out


def argv(latents, run, stage, *more):
    return train_argv(latents, run, "--model=AVLink-mini", "--stage", stage, "--warmup-steps=0", *more)


@pytest.fixture(scope="module")
def towers(latents, tmp_path_factory):
    """A checkpoint whose tower of pictures is trained, and one whose tower of sound is."""
    runs = [tmp_path_factory.mktemp(stage) for stage in ("video", "audio")]
    for stage, run in zip(("video", "audio"), runs):
        train.main(argv(latents, run, stage, "--max-steps=2"))
    return [run / "export" for run in runs]


def weights(export, prefix=""):
    return {name: x for name, x in load_file(export / "model.safetensors").items() if name.startswith(prefix)}


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(x.equal(two[name]) for name, x in one.items())


def test_stage_of_a_tower_trains_it_alone(towers):
    for export, learnt, side in zip(towers, ("picture", "sound"), ("sound", "picture")):
        model = AVLink.from_pretrained(export)
        assert model.untrained == [side] and getattr(model, learnt).head.linear.weight.any()
        lines = [json.loads(line) for line in (export.parent / "log.jsonl").read_text().splitlines()]
        losses = {"picture": "loss_video", "sound": "loss_audio"}
        assert all(line[losses[learnt]] > 0 and line[losses[side]] == 0 for line in lines)


@pytest.mark.parametrize("stage", TOLD)
def test_link_of_two_checkpoints_leaves_their_towers_to_the_bit_and_goes_on_exactly(stage, latents, towers, tmp_path):
    run, begun = tmp_path / "run", tmp_path / "begun"
    command = (stage, "--init-from", *towers, "--micro-batches=2")
    train.main(argv(latents, run, *command, "--max-steps=3"))
    for export, side in zip(towers, ("picture.", "sound.")):
        assert same(weights(run / "export", side), weights(export, side))
    link = weights(run / "export", "link.")
    assert any("modulation" in name and x.any() for name, x in link.items() if name.endswith("weight"))
    train.main(argv(latents, begun, *command, "--max-steps=2"))
    train.main(argv(latents, begun, *command, "--max-steps=3"))
    assert same(weights(begun / "export"), weights(run / "export"))


def test_link_may_go_on_in_another_stage_from_one_checkpoint(latents, towers, tmp_path):
    train.main(argv(latents, tmp_path / "v2a", "v2a", "--init-from", *towers, "--max-steps=1"))
    one = tmp_path / "v2a" / "export"
    train.main(argv(latents, tmp_path / "link", "link", "--init-from", one, "--max-steps=1", "--variant=no-reinject",
                    "--conditioning-times=uniform"))  # fmt: skip
    assert same(weights(tmp_path / "link" / "export", "picture."), weights(towers[0], "picture."))


@pytest.mark.parametrize("stage", ["link"])
def test_two_processes_train_a_link_to_the_weights_of_one(stage, latents, towers, tmp_path):
    """With gradients of all that learns in every process, or they would wait for each other."""
    how = (stage, "--max-steps=2", "--dtype=float64", "--init-from", *towers)
    train.main(argv(latents, tmp_path / "one", *how))
    run_ranks(2, "tests/small_train.py", *argv(latents, tmp_path / "two", *how, "--batch-size=2"))
    one, two = (load_file(tmp_path / name / "checkpoints/step_0000002/model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-10


def test_checkpoint_makes_a_side_for_a_given_other_at_the_times_it_was_trained_at(latents, towers, balls, tmp_path):
    times = ["--conditioning-times", 0.9, 0.7]
    train.main(argv(latents, tmp_path, "link", "--init-from", *towers, "--max-steps=1", *times))
    assert AVLink.from_pretrained(tmp_path / "export").conditioning_times == [0.9, 0.7]
    for script in (sample_v2a, sample_a2v):
        out = tmp_path / script.__name__
        script.main([f"--model-ckpt={tmp_path / 'export'}", f"--data-path={balls}", f"--results-dir={out}",
                     "--prompt=a red ball", "--negative-prompt=a blue ball", "--num-timesteps=1"])  # fmt: skip
        (record,) = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
        assert record["frames"] == 22 and record["prompt"] == "a red ball" and (out / record["file"]).exists()


def test_towers_may_be_trained_without_text(latents, tmp_path):
    bare = tmp_path / "latents"
    shutil.copytree(latents, bare)
    facts = json.loads((bare / "pipeline" / "pipeline.json").read_text())
    (bare / "pipeline" / "pipeline.json").write_text(json.dumps(facts | {"text_encoder": None, "text_source": None}))
    command = [word for word in argv(bare, tmp_path / "run", "audio", "--max-steps=1") if "text-encoder" not in word]
    train.main(command)
    pipe = AVPipeline.from_pretrained(tmp_path / "run" / "export")
    assert pipe.model.text_width == 0 and pipe.sample([0], num_timesteps=2).wave.isfinite().all()


def test_optimisers_defaults_are_the_papers(latents, tmp_path):
    """Row A6; what is given counts."""
    command = [word for word in argv(latents, tmp_path, "audio", "--max-steps=1")
               if not word.startswith(("--lr=", "--warmup"))]  # fmt: skip
    train.main([*command, "--weight-decay=0"])
    ran = json.loads((tmp_path / "run.json").read_text())["arguments"]
    assert (ran["lr"], ran["warmup_steps"], ran["beta2"], ran["weight_decay"]) == (3e-4, 10_000, 0.99, 0)
    assert (ran["pairing"], ran["sampling"]) == (0, "logit")


def test_what_cannot_be_linked_is_refused(latents, towers, tmp_path, capsys, monkeypatch):
    def refused(stage, *more):
        return complaint(capsys, train.main, *argv(latents, tmp_path / "run", stage, "--max-steps=1", *more))

    assert "--stage v2a goes on from trained weights; give them with --init-from" in refused("v2a")
    told = refused("v2a", "--init-from", towers[0])
    assert (
        "have no trained tower of sound, and stage v2a links trained ones; give two, --init-from PICTURE SOUND" in told
    )
    assert "of picture and sound" in refused("link", "--init-from", *reversed(towers))
    assert "has 2 checkpoints, and AVLink-mini in stage audio begins with one" in refused(
        "audio", "--init-from", *towers
    )
    for times in ((0, 0.8), (0.9,), ("uniform", 0.8)):
        told = refused("v2a", "--init-from", towers[0], "--conditioning-times", *times)
        assert "are not two in (0, 1], of a given picture and of a given sound" in told
    told = refused("audio", "--conditioning-times", 0.9, 0.8)
    assert "are of a stage that holds one side, such as --stage link, not of AVLink-mini in stage audio" in told
    assert "--fusion-blocks [1] are of FLAV's blocks, not of AVLink-mini" in refused("video", "--fusion-blocks", 1)
    assert "--stage joint is none of AVLink-mini; choose one of video, audio, v2a, a2v, link" in refused("joint")
    other = tmp_path / "clock"
    shutil.copytree(towers[1], other)
    facts = json.loads((other / "pipeline.json").read_text())
    (other / "pipeline.json").write_text(json.dumps(facts | {"fps": 20}))
    assert "has fps 10" in (told := refused("v2a", "--init-from", towers[0], other)) and "20; link towers that" in told
    monkeypatch.setitem(AVLink_presets, "AVLink-mini", {**AVLink_presets["AVLink-mini"], "hidden_size": 48})
    told = refused("v2a", "--init-from", *towers)
    assert "has towers of other sizes (" in told and "hidden_size 32 there, 48 here" in told

"""Real processes over gloo, each with all weights (DDP) or a share of them (FSDP2): equal, killed, resumed."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors import safe_open
from safetensors.torch import load_file

import train
import training.draws
from data.synthetic import write_dataset
from tests.kills import lines
from tests.processes import ENV, LIMIT, ROOT, run_ranks
from tests.sharded_train import BROKEN, broken_step
from training.ema import EMA
from training.sharding import State, check_sharding
from training.storage import checkpoints

pytestmark = pytest.mark.usefixtures("small_preset")
GLOBAL_BATCH, STEPS = 4, 6
HOW = ("--cache-latents", f"--max-steps={STEPS}", "--ckpt-every=2", "--lr=1e-3", "--dtype=float64", "--image-size=64",
       "--codec=patch-pca", "--n-mels=64", "--model=FLAV-mini", "--sample-every=0", "--log-every=1")  # fmt: skip


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Two mp4 files in two classes, so three rows of labels, which four processes cannot share out evenly."""
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=2, test=0, frames=16)
    return root


def argv(data, experiment, processes, *more) -> list[str]:
    """Arguments of a run whose processes have the same global batch together."""
    folders = (f"--data-path={data}", f"--experiment-dir={experiment}")
    return [*folders, f"--batch-size={GLOBAL_BATCH // processes}", *HOW, *more]


def finish(data, experiment, processes, *more, script="tests/sharded_train.py") -> str:
    """Train in shards, or by `script` with whole weights, to the end; what the processes say."""
    ranks = run_ranks(processes, script, *argv(data, experiment, processes, *more))
    assert json.loads((experiment / "run.json").read_text())["processes"] == processes
    return "".join(rank.said for rank in ranks)


def kill_one_rank(data, experiment, *more, script="tests/sharded_train.py", after=BROKEN + 1) -> None:
    """SIGKILL to the last of two ranks when a step beyond a checkpoint is logged; torchrun has to end the other."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    command, env = [*launch, *argv(data, experiment, 2, *more)], os.environ | ENV
    run = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while lines(experiment / "log.jsonl") < after:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.002)
    ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(run.pid).children()}
    ranks[max(ranks)].send_signal(signal.SIGKILL)
    run.communicate(timeout=LIMIT)
    assert run.returncode != 0 and len(ranks) == 2
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks.values())


def shards(folder) -> dict[str, torch.Tensor]:
    """Tensors of a sharded checkpoint, put together here from offsets, as they are in its files."""
    whole = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        for name, part in load_file(path).items():
            whole.setdefault(name, []).append((offsets[name]["saved_offsets"], part))
    return {name: torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])]) if parts[0][1].ndim
            else parts[0][1] for name, parts in whole.items()}  # fmt: skip


def state(experiment, step=STEPS) -> dict[str, torch.Tensor]:
    """Weights, averages and moments of a whole checkpoint, under the names that a sharded one has."""
    folder = experiment / "checkpoints" / f"step_{step:07d}"
    if (folder / "shard-00001-model-00001-of-00001.safetensors").exists():
        return shards(folder)
    ema, optimiser = (
        torch.load(folder / name, weights_only=True) for name in ("custom_checkpoint_0.pkl", "optimizer.bin")
    )
    weights = load_file(folder / "model.safetensors")
    names = json.loads((experiment / "names.json").read_text())
    return {
        **{f"model.{name}": x for name, x in weights.items()},
        **{f"ema.{name}": x for name, x in zip(names, ema["shadow_params"])},
        **{f"optimiser.{names[i]}.{key}": x for i, of in optimiser["state"].items() for key, x in of.items()},
        "ema.calls": torch.tensor(ema["optimization_step"]),
    }


def furthest(one: dict, two: dict) -> float:
    """The largest difference between two sets of tensors of the same names and shapes."""
    assert one.keys() == two.keys() and len(one) > 80
    assert [name for name in one if one[name].shape != two[name].shape] == []
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def alone(balls, tmp_path_factory):
    """`alone("float64")` -> a run of one process, made once."""

    @functools.cache
    def run(dtype):
        experiment = tmp_path_factory.mktemp(f"alone_{dtype}")
        train.main(argv(balls, experiment, 1, f"--dtype={dtype}"))
        (experiment / "names.json").write_text(json.dumps(parameter_names(experiment)))
        return experiment

    return run


@pytest.fixture(scope="module")
def whole(balls, tmp_path_factory):
    """A run of one process that keeps all weights, with the step that is not finite."""
    experiment = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.draws.Draws, "__call__", broken_step(training.draws.Draws.__call__))
        train.main(argv(balls, experiment, 1))
    (experiment / "names.json").write_text(json.dumps(parameter_names(experiment)))
    return experiment


def parameter_names(experiment) -> list[str]:
    """Parameters of the exported model, in their order."""
    from models import FLAV

    return [name for name, _ in FLAV.from_pretrained(experiment / "export").named_parameters()]


@pytest.fixture(scope="module")
def sharded(balls, tmp_path_factory):
    """A run of two processes that each keep half of the weights."""
    experiment = tmp_path_factory.mktemp("sharded")
    finish(balls, experiment, 2)
    return experiment


def held(experiment) -> list[dict]:
    """What each process held."""
    return [json.loads(path.read_text()) for path in sorted((experiment / "ranks").iterdir())]


def logged(experiment, name) -> list:
    return [json.loads(line)[name] for line in (experiment / "log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------ whole weights


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("processes", "dtype", "tolerance"),
    [(2, "float64", 1e-10), slow(4, "float64", 1e-10), slow(2, "float32", 1e-4), slow(4, "float32", 1e-4)],
)
def test_processes_train_the_model_of_one_with_the_same_global_batch(
    alone, balls, tmp_path, processes, dtype, tolerance
):
    """Every clip of it counts, so the ranks cannot have seen the same data."""
    one, several, rank_0 = alone(dtype), tmp_path / "several", tmp_path / "rank_0"
    finish(balls, several, processes, f"--dtype={dtype}", script="tests/small_train.py")
    (several / "names.json").write_text((one / "names.json").read_text())
    assert furthest(state(several), state(one)) < tolerance
    assert logged(several, "loss") == pytest.approx(logged(one, "loss"), rel=tolerance)
    assert logged(several, "step") == [1, 2, 3, 4, 5, 6]
    train.main(argv(balls, rank_0, processes, f"--dtype={dtype}"))
    (rank_0 / "names.json").write_text((one / "names.json").read_text())
    assert furthest(state(several), state(rank_0)) > 1e-4


@pytest.mark.slow
def test_dead_rank_ends_a_run_with_whole_weights_and_other_numbers_of_processes_go_on_to_the_same(
    alone, balls, tmp_path
):
    kill_one_rank(balls, tmp_path, script="tests/small_train.py")
    said = finish(balls, tmp_path, 4, "--max-steps=4", script="tests/small_train.py")
    assert "steps 2 to 4, 4 processes" in said
    train.main(argv(balls, tmp_path, 1))
    (tmp_path / "names.json").write_text((alone("float64") / "names.json").read_text())
    assert furthest(state(tmp_path), state(alone("float64"))) < 1e-10
    assert logged(tmp_path, "step") == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------------------------------------------------- in shards


def test_shards_train_the_model_of_one_process(whole, sharded):
    """Weights, averages, both moments and the steps of a run whose global batch is the same, in float64."""
    assert furthest(state(sharded), state(whole)) < 1e-10
    assert furthest(state(sharded, 2), state(sharded)) > 1e-4


def test_export_of_shards_is_the_averaged_model(whole, sharded):
    one, two = (load_file(experiment / "export/model.safetensors") for experiment in (whole, sharded))
    averages = state(sharded)
    assert furthest(one, two) < 1e-10
    assert all(x.equal(averages[f"ema.{name}"]) for name, x in two.items())


def test_every_block_is_a_unit_and_every_process_holds_its_share_of_everything(sharded):
    ranks = held(sharded)
    assert [rank["world"] for rank in ranks] == [2, 2]
    for rank in ranks:
        assert rank["units"] == ["", "blocks.0", "blocks.1"]
        for kind in ("weights", "averages", "moments"):
            assert rank[kind].keys() == rank["weights"].keys() and len(rank[kind]) > 80
            assert all(total > 0 for _, total in rank[kind].values())  # -1 where it is not in shards
            here, total = (sum(sizes) for sizes in zip(*rank[kind].values()))
            assert here == pytest.approx(total / 2, rel=1e-2)
    for name, (_, total) in ranks[0]["weights"].items():
        assert sum(rank["weights"][name][0] for rank in ranks) == total


def test_step_that_is_not_finite_in_one_process_changes_no_shard(sharded):
    assert logged(sharded, "skipped_steps") == [0, 0, 1, 1, 1, 1] and logged(sharded, "loss")[BROKEN] is None
    steps = [state(sharded, step)["optimiser.audio_mel_pos.step"].item() for step in (2, 4, 6)]
    assert steps == [2, 3, 5]  # the third step is left out


@pytest.mark.slow
def test_dead_rank_ends_the_run_and_the_same_command_goes_on_from_the_last_checkpoint_that_is_whole(
    sharded, balls, tmp_path
):
    """The newest one is damaged then, so that training goes on from none of its shards."""
    kill_one_rank(balls, tmp_path, after=5)
    *_, newest = checkpoints(tmp_path)
    path = newest / "shard-00002-model-00001-of-00001.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    said = finish(balls, tmp_path, 2)
    assert f"{newest} is damaged ({path.name})" in said and f"steps {int(newest.name[5:]) - 2} to 6" in said
    assert furthest(state(tmp_path), state(sharded)) == 0
    exports = [load_file(experiment / "export/model.safetensors") for experiment in (tmp_path, sharded)]
    assert furthest(*exports) == 0
    assert logged(tmp_path, "step") == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_shards_of_two_processes_are_loaded_by_four_and_back(whole, balls, tmp_path):
    kill_one_rank(balls, tmp_path, "--micro-batches=2")
    said = finish(balls, tmp_path, 4, "--max-steps=4")
    assert "steps 2 to 4, 4 processes" in said
    assert [rank["world"] for rank in held(tmp_path)] == [4] * 4
    assert "steps 4 to 6, 2 processes" in finish(balls, tmp_path, 2, "--micro-batches=2")
    assert furthest(state(tmp_path), state(whole)) < 1e-10


@pytest.mark.slow
def test_shards_in_bf16_train_as_whole_weights_do_with_flow_times_unrounded(balls, tmp_path):
    how = ("--dtype=float32", "--mixed-precision=bf16", "--max-steps=2")
    finish(balls, tmp_path / "sharded", 2, *how)
    finish(balls, tmp_path / "whole", 1, *how, script="tests/small_train.py")
    assert [rank["times"] for rank in held(tmp_path / "sharded")] == [["torch.float64"]] * 2
    losses = [logged(tmp_path / kind, "loss") for kind in ("sharded", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_adapter_is_trained_in_shards_as_whole(whole, balls, tmp_path):
    """With previews, for which the shards are gathered too, and blocks that are computed again."""
    how = (f"--init-from={whole / 'export'}", "--lora-rank=2", "--max-steps=2", "--sample-every=2", "--video-length=2",
           "--grad-ckpt", "--lr=1e-2")  # fmt: skip
    finish(balls, tmp_path / "sharded", 2, *how)
    train.main(argv(balls, tmp_path / "whole", 1, *how))
    kinds = [load_file(tmp_path / kind / "adapter/adapter_model.safetensors") for kind in ("sharded", "whole")]
    assert max((kinds[0][name] - x).abs().max().item() for name, x in kinds[1].items()) < 1e-10
    assert len(kinds[0]) == len(kinds[1]) and len(list((tmp_path / "sharded/results/step_0000002").glob("*.mp4"))) == 4
    assert any(x.abs().max() > 1e-3 for name, x in kinds[0].items() if "lora_B" in name)


def test_shards_are_not_mistaken_for_whole_weights(sharded, balls, capsys):
    with pytest.raises(SystemExit) as end:
        train.cli.run(lambda: train.main(argv(balls, sharded, 1, "--max-steps=8")))
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "was saved in shards, and these processes keep weights whole; launch with" in said


def test_first_version_of_fsdp_is_refused():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(ValueError, match="FSDP version 1 is not supported; set fsdp_version: 2"):
        check_sharding(accelerator)


# ----------------------------------------------------------------------------------------------------- saved and loaded


def small_state(seed=0, steps=0) -> State:
    """A layer with its optimiser, averages and scaler after some steps; the scale of the last starts at `seed`."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimiser, ema = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), EMA(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (seed + 1), growth_interval=4)
    for _ in range(steps):
        scaler.scale(model(torch.ones(3)).square().sum()).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        ema.step(model.parameters())
    return State(model, optimiser, ema, scaler)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_state_that_is_loaded_goes_on_as_the_one_that_was_saved(tmp_path):
    saved, fresh = small_state(0, steps=3), small_state(1)
    saved.save(tmp_path)
    fresh.load(tmp_path)
    assert fresh.scaler.state_dict() == saved.scaler.state_dict() and fresh.ema.optimization_step == 3
    for one, two in zip(saved.ema.shadow_params, fresh.ema.shadow_params):
        assert one.equal(two)
    for one, two in zip(saved.model.parameters(), fresh.model.parameters()):
        assert one.equal(two)
        moments = saved.optimiser.state[one], fresh.optimiser.state[two]
        assert all(moments[0][name].equal(moments[1][name]) for name in ("exp_avg", "exp_avg_sq", "step"))
    assert fresh.optimiser.state[fresh.model.weight]["step"] == 3


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_state_that_cannot_be_written_or_read_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        small_state().save(tmp_path / "file" / "below")
    with pytest.raises(ValueError, match="cannot be read"):
        small_state().load(tmp_path)

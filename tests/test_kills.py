"""prepare.py and train.py killed at any moment, 50 times, or under a clock that jumps: nothing is lost or changed."""

import itertools
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

import prepare
import train
from data.synthetic import write_dataset
from tests.kills import End, after, after_lines, lines, run_until

pytestmark = pytest.mark.usefixtures("small_preset")
KILLS = 25  # of each script
ENCODING = {"image-size": 64, "codec": "patch-pca", "n-mels": 64}
TRAINING = {"model": "FLAV-mini", "sample-every": 0, "log-every": 1, "batch-size": 2, "lr": 1e-3, "ckpt-every": 1,
            "ckpt-limit": 2, "max-steps": 60}  # fmt: skip
DIFFERENT = {"report.json", "facts.json", "random_states_0.pkl"}  # from run to run: times, and random numbers of no use


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Twelve training and two test videos."""
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=12, test=2, frames=16)
    return root


def flags(**more) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]


def contents(folder: Path) -> dict[str, bytes]:
    """Each file below a folder whose bytes are the same in every run."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in DIFFERENT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_same(one: Path, two: Path) -> None:
    ours, theirs = contents(one), contents(two)
    assert ours.keys() == theirs.keys() and len(ours) > 3
    assert [name for name in ours if ours[name] != theirs[name]] == []


def finish(script: str, argv: list[str]) -> End:
    """Run a script to its end."""
    end = run_until(None, script, argv)
    assert end.code == 0, end.said[-2000:]
    return end


def half_written(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.suffix in (".part", ".old")]


# ------------------------------------------------------------------------------------------------------- prepare.py


@pytest.mark.slow
def test_kills_of_prepare_leave_no_trace(balls, tmp_path):
    """Each folder is killed five times: the files come first, the report, the sheet and the index in the last runs."""
    argv = [*flags(data_path=balls, **ENCODING), "--out"]
    whole, rng = tmp_path / "whole", random.Random(0)
    undisturbed = finish("prepare.py", [*argv, str(whole)])
    encoding, rows, folders = json.loads((whole / "report.json").read_text())["seconds"], [], []
    while sum(code == -9 for code, *_ in rows) < KILLS:
        if (i := len(rows) % 5) == 0:
            folders.append(folder := tmp_path / str(len(folders)))
        seconds = rng.uniform(0.2, 1.2) * encoding if i < 3 else rng.uniform(encoding, undisturbed.seconds)
        end = run_until(after(seconds), "prepare.py", [*argv, str(folder)])
        latents = len(list(folder.rglob("*.mp4.safetensors")))
        rows.append((end.code, end.seconds, latents, (folder / "prepared.json").exists(), half_written(folder)))
    print(f"\n{'prepare.py':12} seconds latents index half-written (undisturbed: {undisturbed.seconds:.1f} s)")
    for code, seconds, latents, index, halves in rows:
        print(f"{'killed' if code else 'ended':12} {seconds:7.2f} {latents:7} {index!s:>5} {' '.join(halves)}")
    assert any(halves for *_, halves in rows)
    for folder in folders:
        said = finish("prepare.py", [*argv, str(folder)]).said
        assert "error" not in said and not half_written(folder)
        assert_same(whole, folder)
        counts, expected = (json.loads((f / "report.json").read_text()) for f in (folder, whole))
        assert all(counts[key] == expected[key] for key in ("files", "skipped", "bytes", "quality"))


# --------------------------------------------------------------------------------------------------------- train.py


def log_of(experiment: Path) -> list[dict]:
    path = experiment / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def position(experiment: Path) -> tuple[int, int, list[str]]:
    """Lines in the log, step of the newest checkpoint (0 for none), what is half-written."""
    kept = [int(path.name[5:]) for path in (experiment / "checkpoints").glob("step_*")]
    return lines(experiment / "log.jsonl"), max(kept, default=0), half_written(experiment)


@pytest.mark.slow
def test_kills_of_training_leave_no_trace(balls, tmp_path):
    """A checkpoint and an export follow each step: most kills strike while files are written, some in the start-up."""
    argv = [*flags(data_path=balls, **ENCODING, **TRAINING), "--cache-latents", "--experiment-dir"]
    whole, broken, rng = tmp_path / "whole", tmp_path / "broken", random.Random(0)
    undisturbed = finish("tests/small_train.py", [*argv, str(whole)])
    step, rows = undisturbed.seconds / TRAINING["max-steps"], []
    for i in range(KILLS):
        newest = position(broken)[1]
        later = after_lines(broken / "log.jsonl", newest + rng.randrange(1, 3), rng.uniform(0, step))
        end = run_until(later if i % 5 else after(rng.uniform(0, 2)), "tests/small_train.py", [*argv, str(broken)])
        rows.append((end, *position(broken)))
    print(f"\n{'train.py':8} seconds logged checkpoint half-written (undisturbed: {undisturbed.seconds:.1f} s)")
    for end, logged, newest, halves in rows:
        print(f"{'killed' if end.code else 'ended':8} {end.seconds:7.2f} {logged:6} {newest:10} {' '.join(halves)}")
    assert all(end.code == -9 for end, *_ in rows), [end.said[-500:] for end, *_ in rows]
    assert any(name.startswith(".step_") for *_, halves in rows for name in halves)
    told = "".join(end.said for end, *_ in rows) + finish("tests/small_train.py", [*argv, str(broken)]).said
    assert "is damaged" not in told and "error" not in told
    assert_same(whole / "export", broken / "export")
    assert_same(whole / "checkpoints", broken / "checkpoints")
    ours, theirs = log_of(broken), log_of(whole)
    assert [record["step"] for record in ours] == list(range(1, TRAINING["max-steps"] + 1))
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]
    assert not [name for name in half_written(broken) if name.startswith(".step_")]


# --------------------------------------------------------------------------------------------------------- the clock


def short(data: Path, experiment: Path, steps: int) -> Path:
    """Train for a few steps in this process."""
    more = TRAINING | {"max-steps": steps, "ckpt-limit": 9}
    train.main([*flags(data_path=data, experiment_dir=experiment, **ENCODING, **more), "--cache-latents"])
    return experiment


@pytest.mark.slow
def test_clock_that_jumps_back_an_hour_again_and_again_changes_nothing(balls, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
    now, calls = time.time, itertools.count()
    for name in ("steady", "jumping"):
        prepare.main([*flags(data_path=balls, out=tmp_path / name / "latents", **ENCODING), "--device=cpu"])
        short(balls, tmp_path / name / "run", 3)
        monkeypatch.setattr(time, "time", lambda: now() - 3600 * next(calls))
    assert next(calls) > 3
    for part in ("latents", "run/export", "run/checkpoints"):
        assert_same(tmp_path / "steady" / part, tmp_path / "jumping" / part)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Videos, their latents, and runs of two and of three steps."""
    root = tmp_path_factory.mktemp("made")
    write_dataset(root / "data", train=2, test=1, frames=12)
    for steps in (2, 3):
        short(root / "data", root / f"run_{steps}", steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
        prepare.main([*flags(data_path=root / "data", out=root / "latents", **ENCODING), "--device=cpu"])
    return root


@pytest.mark.parametrize("seconds", [0, 2**32])
def test_times_of_files_do_not_decide_which_checkpoint_or_latents_are_read(made, tmp_path, monkeypatch, seconds):
    """The newest checkpoint seems the oldest, or all of the next century."""
    monkeypatch.setattr(prepare, "sheet", lambda compared, codec, path: path.write_bytes(b"sheet"))
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    data, run, out = (tmp_path / name for name in ("data", "run_2", "latents"))
    for path in (*out.rglob("*"), run / "checkpoints" / "step_0000002", *(run / "checkpoints").rglob("step_0000002/*")):
        os.utime(path, (seconds, seconds))
    before = contents(out)
    prepare.main([*flags(data_path=data, out=out, **ENCODING), "--device=cpu"])
    assert contents(out) == before and {path.stat().st_mtime for path in out.rglob("*.safetensors")} == {seconds}
    assert_same(short(data, run, 3) / "export", tmp_path / "run_3" / "export")
    assert [record["step"] for record in log_of(run)] == [1, 2, 3]

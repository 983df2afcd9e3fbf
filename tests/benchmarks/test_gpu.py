"""benchmarks/gpu.sh: a step that fails stops none of the others and is named; all of it runs in tiny sizes on a CPU."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import goals

ROOT = Path(__file__).parents[2]
STEPS = ["compiling", "graphs", "tests", "forward", "rolling", "clip", "stream", "train_step", "a2v", "train_step_kept"]
PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *total_memory*) echo "$GIB" ;; esac
if [ -n "$BROKEN" ]; then case "$*" in *$BROKEN*) exit 3 ;; esac; fi
"""
TIMEOUT = """#!/bin/sh
echo "$2 $4 $5" >> "$LIMITS"
if [ -n "$SLOW" ]; then case "$*" in *$SLOW*) exit 124 ;; esac; fi
shift 2
exec "$@"
"""


@pytest.fixture
def gpu_sh(tmp_path):
    """The script with `python3` and `timeout` stood in for: how it ended, what it called, and the limits, s."""
    for name, text in (("python3", PYTHON), ("timeout", TIMEOUT)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    files = {"CALLS": tmp_path / "calls", "LIMITS": tmp_path / "limits"}

    def run(*arguments, gib=139, broken="", slow=""):
        for path in files.values():
            path.write_text("")
        set_ = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "GIB": str(gib), "BROKEN": broken, "SLOW": slow}
        env = {**os.environ, **set_, **{name: str(path) for name, path in files.items()}}
        done = subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", "--out", tmp_path / "out", *arguments], env=env,
                              capture_output=True, text=True)  # fmt: skip
        calls, limits = (files[name].read_text().splitlines() for name in ("CALLS", "LIMITS"))
        return done, calls, [int(line.split()[0]) for line in limits]

    return run


def begun(done) -> list[str]:
    """Names of the steps."""
    return [line.split()[1].rstrip(",") for line in done.stdout.splitlines() if line.startswith("== ")]


def test_steps_are_of_the_gpu_and_within_nine_minutes(gpu_sh):
    done, calls, limits = gpu_sh()
    assert done.returncode == 0 and begun(done) == STEPS and not done.stderr
    measuring = [call for call in calls if "--model" in call]
    assert len(measuring) == len(STEPS) - 3 and len(limits) == len(STEPS) and max(limits) <= 110
    for call in measuring:
        assert "--model FLAV-B/1" in call and "--device cuda --dtype bfloat16" in call and "/out/gpu_" in call
        assert "compiled" in call and ("compiled+graphs" in call) == any(
            s in call for s in ("rolling", "clip", "stream")
        )
    assert "--batch-size 16" in "".join(call for call in measuring if "train_step" in call)


def test_step_that_fails_or_takes_too_long_is_named_and_the_others_are_done(gpu_sh):
    done, _, _ = gpu_sh(broken="sample_clip.py", slow="stream.py")
    assert done.returncode == 1 and begun(done) == STEPS
    assert done.stderr.splitlines() == ["gpu.sh: failed: clip (exit 3)", "gpu.sh: failed: stream (out of time)"]


@pytest.mark.parametrize("broken, ways", [("torch.compile", "--also graphs"), ("test_graphed", "--also compiled"),
                                          ("-[cm] ", "")])  # fmt: skip
def test_what_does_not_work_on_this_machine_is_left_out_of_the_measuring(gpu_sh, broken, ways):
    done, calls, _ = gpu_sh("--rehearse", broken=broken)
    (call,) = (call for call in calls if "rolling.py" in call)
    assert call.partition("--also")[2].split(" --")[0].strip() == ways.removeprefix("--also ")
    assert done.returncode == 1


def test_training_without_recomputing_needs_the_larger_gpu(gpu_sh):
    assert begun(gpu_sh(gib=79)[0]) == STEPS[:-1]


def test_results_of_another_run_do_not_stay(gpu_sh, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("gpu_clip.json", "forward_flav_s2_cpu.json"):
        (tmp_path / "out" / name).touch()
    gpu_sh()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["forward_flav_s2_cpu.json"]


def test_word_that_is_no_option_is_refused(gpu_sh):
    done, calls, _ = gpu_sh("--rehears")
    assert done.returncode == 2 and "--rehears is unknown" in done.stderr and not calls


def test_goals_are_judged_by_the_best_side_beside_the_reference(tmp_path, capsys):
    def row(what, side, other="reference", **figures):
        return {"what": what, "ours": side, "other": other, **figures}

    rows = {
        "clip": [row("16 frames", "ours", ratio=2.0), row("16 frames", "graphs", ratio=4.6),
                 row("16 frames", "ours", "no skip", ratio=9.0)],
        "stream": [row("stream", "ours", ratio=1.0, real_time_factor=7.0), row("first frame", "ours", ratio=3.0),
                   {"what": "240 frames", "real_time_factor": 99.0}],
        "train_step": [row("training step", "ours", ratio=1.5, mfu=0.4), row("forward", "ours", ratio=9.0)],
        "train_step_kept": [{"what": "training step", "ours": "ours", "mfu": 0.6}],
    }  # fmt: skip
    for name, of in rows.items():
        (tmp_path / f"gpu_{name}.json").write_text(json.dumps({"rows": of}))
    goals.main(["--results", str(tmp_path)])
    told = [line.split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert told == [
        ["3", "not measured", " |"],
        ["4.5", "ours 2.00, graphs 4.60", "yes |"],
        ["5", "ours 3.00", "no |"],
        ["2", "ours 1.50", "no |"],
        ["0.55", "ours 0.40, ours 0.60", "yes |"],
        ["0.6", "not measured", " |"],
        ["8", "ours 7.00", "no |"],
    ]


@pytest.mark.slow
def test_rehearsal_on_a_cpu_leaves_every_figure(tmp_path):
    """A minute and a half on two slow, busy cores."""
    done = subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", "--rehearse", "--out", tmp_path],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert begun(done) == STEPS and "not measured" not in done.stdout
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert records.keys() == {f"gpu_{name}" for name in STEPS[3:]}
    all_ways, compiled = ["ours", "compiled", "graphs", "compiled+graphs"], ["ours", "compiled"]
    beside = {name: [row["ours"] for row in record["rows"] if row.get("other") == "reference"]
              for name, record in records.items()}  # fmt: skip
    assert beside == {
        "gpu_forward": compiled,
        "gpu_rolling": all_ways,
        "gpu_clip": all_ways,
        "gpu_stream": 2 * all_ways,
        "gpu_train_step": ["ours", "ours", "compiled", "compiled"],
        "gpu_train_step_kept": [],
        "gpu_a2v": compiled,
    }
    assert len(records["gpu_train_step_kept"]["rows"]) == 4 and len(records["gpu_stream"]["rows"]) == 11

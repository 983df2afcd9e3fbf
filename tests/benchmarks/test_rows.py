"""Benchmarks whose rows are kept: what is there is not made again, what a process costs, what a script's films say."""

import json

import pytest

from benchmarks import rows
from benchmarks.cost import Cost, cost_of
from benchmarks.judging import hit
from benchmarks.layout import over_seeds, table
from benchmarks.rows import Record


def test_figures_are_on_disk_as_soon_as_they_exist_and_are_made_once(tmp_path):
    made = []

    def make(value):
        made.append(value)
        return {"f1": value}

    def dies():
        raise RuntimeError("the session ends")

    record = Record(tmp_path / "new/x.json", {"clips": 48})
    record.made("a/0", lambda: make(1))
    with pytest.raises(RuntimeError):
        record.made("b/0", dies)
    again = Record(tmp_path / "new/x.json", {"clips": 48})
    assert again.made("a/0", lambda: make(2)) == {"f1": 1} and again.made("b/0", lambda: make(3)) == {"f1": 3}
    assert made == [1, 3] and json.loads((tmp_path / "new/x.json").read_text())["figures"]["b/0"] == {"f1": 3}


def test_figures_of_other_facts_are_not_mixed_with_these(tmp_path):
    Record(tmp_path / "x.json", {"clips": 48, "steps": (1, 2)}).made("a/0", dict)
    Record(tmp_path / "x.json", {"clips": 48, "steps": (1, 2)})
    with pytest.raises(ValueError, match=r"x\.json holds figures of clips 48, not 6; choose another --out"):
        Record(tmp_path / "x.json", {"clips": 6, "steps": (1, 2)})


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A run of train.py that is none: its folder, its arguments, and those it was called with."""
    calls, run = [], tmp_path / "run"

    def cost(script, *arguments):
        calls.append([str(x) for x in arguments])
        assert not run.exists()
        run.mkdir()
        return Cost(9.0, 8.0, 700.0)

    monkeypatch.setattr(rows, "cost_of", cost)
    monkeypatch.setattr(rows, "_told", lambda run, frames: {"step_seconds": frames / 64})
    how = ["--data-path", tmp_path, "--experiment-dir", run, "--predict-frames", 8, "--batch-size", 4]
    return run, how, calls


def test_training_is_run_once_and_begins_anew_if_it_was_broken_off(training):
    run, how, calls = training
    for name in "va":
        (run.parent / name).mkdir()
        (run.parent / name / "cost.json").write_text(json.dumps({"recipe": f"--stage {name}"}))
    run.mkdir()
    (run / "half.part").touch()
    found = rows.trained(how, 10, 3, [run.parent / "v", run.parent / "a"])
    assert found == rows.trained(how, 10, 3, [run.parent / "v", run.parent / "a"]) and len(calls) == 1
    assert found["frames"] == 320 and found["step_seconds"] == 5 and found["peak_mib"] == 700
    assert calls[0][-5:] == ["--seed", "3", "--init-from", *(str(run.parent / x / "export") for x in "va")]


def test_training_by_another_recipe_or_from_other_weights_is_run_again(training):
    run, how, calls = training
    (run.parent / "x.args").write_text("--lr 1e-3  # fast\n")
    how, begins = [f"@{run.parent / 'x.args'}", *how], [run.parent / "v"]
    begins[0].mkdir()
    (begins[0] / "cost.json").write_text(json.dumps({"recipe": "--lr 1"}))
    found = rows.trained(how, 10, 3, begins)
    assert found["recipe"] == "--lr 1 | --lr 1e-3 --predict-frames 8 --batch-size 4 --max-steps 10 --seed 3"
    (run.parent / "x.args").write_text("--lr 1e-3  # faster\n")
    assert rows.trained(how, 10, 3, begins) == found and len(calls) == 1
    (begins[0] / "cost.json").write_text(json.dumps({"recipe": "--lr 2"}))
    rows.trained(how, 10, 3, begins)
    (run.parent / "x.args").write_text("--lr 2e-3\n")
    assert rows.trained(how, 10, 3, begins)["recipe"].startswith("--lr 2 | --lr 2e-3") and len(calls) == 3


def test_figures_that_are_forgotten_are_made_again_and_the_others_stay(tmp_path):
    record = Record(tmp_path / "x.json", {})
    for key in ("a/0/f1", "a/1/f1", "b/0/f1"):
        record.made(key, lambda: {"f1": 1})
    record.forget("a/0/")
    assert record.made("a/0/f1", lambda: {"f1": 2}) == {"f1": 2} and record.made("b/0/f1", dict) == {"f1": 1}
    assert json.loads((tmp_path / "x.json").read_text())["figures"].keys() == {"a/1/f1", "b/0/f1", "a/0/f1"}


def test_frames_of_a_step_are_those_of_the_window_or_of_the_prepared_clips(tmp_path):
    how = ["--data-path", str(tmp_path), "--experiment-dir", str(tmp_path / "run"), "--batch-size", "4"]
    (tmp_path / "prepared.json").write_text(json.dumps({"facts": {"clip_frames": 20}}))
    assert rows.frames_per_step(how) == 80 and rows.frames_per_step([*how, "--predict-frames", "8"]) == 32


def test_cost_is_of_the_scripts_process_and_not_of_ours():
    """Ours is far larger, with torch."""
    cost = cost_of("contact.py", "--help")
    assert 5 < cost.peak_mib < 100 and 0 < cost.cpu_seconds and 0 < cost.seconds


def test_script_that_fails_is_quoted_in_one_sentence():
    with pytest.raises(ValueError, match=r"sample\.py failed: sample\.py: error: .*--model-ckpt"):
        cost_of("sample.py")


def test_onset_accuracy_is_the_share_of_true_onsets_that_are_hit():
    same, late, silent = ([1.0, 5.0], [1.0, 5.0]), ([1.0, 5.0], [2.0, 6.1]), ([1.0, 5.0], [])
    assert hit([same], 1.0)["accuracy"] == 1 and hit([late], 1.0)["accuracy"] == 0.5 and hit([silent], 1.0) == {
        "accuracy": 0.0, "interval": None, "films": 1}  # fmt: skip
    found = hit([same, late, ([], [3.0])], 1.0)
    assert found["accuracy"] == 0.75 and found["films"] == 2 and found["interval"][0] < 0.75
    assert hit([([], [1.0])], 1.0) == {"accuracy": 0.0, "interval": None, "films": 0}
    assert hit([([1.0, 1.2], [1.1])], 1.0)["accuracy"] == 0.5


def test_table_tells_one_seeds_interval_or_the_range_of_several():
    def f1(x):
        return x["f1"]

    one, more = [{"f1": 0.5, "interval": (0.25, 0.75)}], [{"f1": 0.5}, {"f1": 0.75}, {"f1": None}]
    assert over_seeds(one, f1, lambda x: x["interval"]) == "0.500 (0.250 to 0.750)"
    assert over_seeds(one, f1) == "0.500" and over_seeds([], f1) == "" == over_seeds([{"f1": None}], f1)
    assert over_seeds(more, f1, lambda x: x["interval"]) == "0.625 (0.500 to 0.750, 2 seeds)"
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"

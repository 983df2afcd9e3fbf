"""What changes gained is measured by the same lines in both trees."""

import json
import sys

import pytest
import torch

from benchmarks import commits
from models import FLAV_presets
from pipeline import dtypes
from tests.benchmarks.test_suite import SMALLER

ONCE = ["--seconds", "0", "--warmup", "0", "--repeats", "1"]


def test_every_case_runs_here(monkeypatch, capsys):
    for name, like in (("FLAV-tiny", "FLAV-tiny"), ("FLAV-S/2", "FLAV-S/8")):
        monkeypatch.setitem(FLAV_presets, name, FLAV_presets[like] | SMALLER)
    cases = ["call_1", "clip_1", "guided_1", "training_tiny_1", "natural_training", "natural_clip"]
    commits.main(["--here", "--only", *cases, *ONCE])
    seconds = json.loads(capsys.readouterr().out)
    assert list(seconds) == cases and all(x > 0 for x in seconds.values())


def test_a_tree_that_chooses_no_type_computes_in_float32(monkeypatch):
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(dtypes, "native_bfloat16", lambda _: True)
    monkeypatch.setattr(dtypes, "LARGE", 1)
    assert commits.natural_dtype(model) == torch.bfloat16
    monkeypatch.setitem(sys.modules, "pipeline.dtypes", None)
    monkeypatch.delattr("pipeline.dtypes")
    assert commits.natural_dtype(model) == torch.float32


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--before", "nonesuch"], "--before nonesuch is no commit"),
        (["--before", "HEAD", "--dtype", "bfloat16"], "float32"),
        ([], "--before COMMIT"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(arguments, said, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        commits.main([*arguments, *ONCE])
    assert said in f"{error.value} {capsys.readouterr().err}"


@pytest.mark.slow
def test_a_commit_is_measured_beside_this_tree(tmp_path):
    commits.main(["--before", "HEAD", "--only", "call_1", "training_tiny_1", *ONCE, "--out", str(tmp_path / "x.json")])
    call, step = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert (call["ours"], call["other"]) == ("after", "before") and 0.2 < call["ratio"] < 5
    assert 0 < step["mfu"]["after"] < 1.5

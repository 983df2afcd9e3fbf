"""benchmarks/timing.py: sides in turn, ratios of neighbours, and a table that says which side is which."""

import time
from argparse import Namespace

import pytest
import torch

from benchmarks import subjects, timing
from models import FLAV
from models.flav_costs import FLAVCosts
from training.ceiling import data_sheet_flops, matmul_ceiling, seconds_of

CPU = torch.device("cpu")


def measuring(**more):
    return Namespace(**{"warmup": 1, "repeats": 3, "seconds": 60.0, **more})


def test_sides_run_in_turn_after_their_warm_up():
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "AB"}
    seconds = timing.alternate(sides, measuring(warmup=2, repeats=3), CPU)
    assert "".join(order) == "ABAB" + "ABABAB"
    assert {name: len(of) for name, of in seconds.items()} == {"A": 3, "B": 3}


def test_no_round_begins_after_the_time_is_up_but_one_is_made():
    sides = {"A": lambda: time.sleep(0.02)}
    assert len(timing.alternate(sides, measuring(seconds=0.0, repeats=9), CPU)["A"]) == 1
    assert 2 <= len(timing.alternate(sides, measuring(seconds=0.07, repeats=99), CPU)["A"]) <= 4


def test_seconds_are_those_of_the_call():
    assert 0.03 <= seconds_of(lambda: time.sleep(0.03), CPU) < 0.3


def test_ratio_is_of_neighbouring_runs_and_above_one_where_ours_is_faster():
    seconds = {"ours": [1.0, 2.0, 4.0, 8.0, 16.0], "reference": [2.0, 6.0, 16.0, 40.0, 96.0]}
    row = timing.compared("a clip", seconds, "ours", "reference", batch=4)
    assert (row["ours_s"], row["other_s"], row["ratio"], row["runs"]) == (4.0, 16.0, 4.0, 5)
    assert row["ratio_quartiles"] == [3.0, 5.0] and row["batch"] == 4
    assert timing.compared("once", {"ours": [2.0], "reference": [3.0]}, "ours", "reference")["ratio_quartiles"] == [
        1.5,
        1.5,
    ]


def test_row_of_one_side_has_no_ratio():
    row = timing.compared("a clip", {"ours": [1.0, 3.0]}, "ours")
    assert row == {"what": "a clip", "ours": "ours", "ours_s": 2.0, "runs": 2}


def test_share_is_operations_over_what_the_machine_could_have_done():
    assert timing.share(3e9, 2.0, 6e9)["share_of_ceiling"] == pytest.approx(0.25)


def test_ceiling_is_above_what_any_model_reaches_and_below_the_impossible():
    assert 1e8 < matmul_ceiling(CPU, torch.float32, seconds=0.1) < 1e13


def test_operations_of_what_is_timed_are_those_that_torch_counts():
    args = Namespace(model="FLAV-tiny", fusion="c", latent_size=None, predict_frames=None)
    config = subjects.config(args)
    model = FLAV(**config).eval()
    inputs = subjects.inputs(model, 2, "cpu", torch.float32)
    assert timing.counted_flops(subjects.forward_pass(model, inputs)) == FLAVCosts(config).forward_flops(2)


def test_table_names_both_sides_and_leaves_empty_what_a_row_lacks():
    seconds = {"ours": [0.5], "reference": [1.0]}
    row = timing.compared("a clip", seconds, "ours", "reference", share_of_ceiling=0.25, note="320 of 500")
    lines = timing.table([{"benchmark": "x", "rows": [row, {"what": "film", "note": "flat"}]}]).splitlines()
    assert lines[2] == "| x | a clip | ours 500 ms | reference 1 s | 2.00 (2.00-2.00) | 0.25 | 320 of 500 |"
    assert lines[3] == "| x | film |  |  |  |  | flat |"


def test_data_sheet_is_that_of_the_gpu_in_bfloat16():
    assert data_sheet_flops("NVIDIA H200", torch.bfloat16) == 989e12
    assert data_sheet_flops("NVIDIA H200", torch.float32) is None is data_sheet_flops("cpu", torch.bfloat16)

"""The type of numbers that is taken where nobody says, and what it costs a clip."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import cli
import sample
import sample_long
from benchmarks import subjects
from models import FLAV
from pipeline import AVPipeline, StreamState, dtypes
from tests.given import tiny
from training.opening import settle_precision


@pytest.fixture
def native(monkeypatch):
    """What the CPU is said to compute natively; any model is large."""
    can = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    monkeypatch.setattr(dtypes, "LARGE", 1)
    return can


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    tiny().save(folder)
    return folder


def test_bfloat16_is_for_large_models_where_the_cpu_has_it(native, monkeypatch):
    model = torch.nn.Linear(2, 2)
    assert dtypes.natural_dtype(model, "cpu") == torch.bfloat16
    native.clear()
    assert dtypes.natural_dtype(model, "cpu") == torch.float32
    native["amx_bf16"] = True
    assert dtypes.natural_dtype(model, "cpu") == torch.bfloat16
    assert dtypes.natural_dtype(model, "mps") == torch.float32
    monkeypatch.setattr(dtypes, "LARGE", 7)
    assert dtypes.natural_dtype(model, "cpu") == torch.float32


def test_a_whole_clip_in_bfloat16_is_near_that_in_float32():
    config = dict(subjects.DEMO, hidden_size=96, depth=4, num_heads=4, patch_size=2, fusion="c")
    model = subjects.random(FLAV(**config), std=0.05)
    codec = subjects.codec(config, kind=subjects.Undecoded)
    clips = []
    for dtype in (torch.float32, torch.bfloat16):
        clips.append(AVPipeline(model, codec, "cpu", dtype).sample([0, 1], 16, y=1, seed=3))
        assert clips[-1].v.dtype == torch.float32
    for name in ("v", "a"):
        exact, near = (getattr(clip, name) for clip in clips)
        assert 0 < (near - exact).norm() < 0.02 * exact.norm()


def run(script, checkpoint, folder, capsys, *arguments):
    """run.json and what was said."""
    script.main(
        ["--model-ckpt", str(checkpoint), "--device", "cpu", "--results-dir", str(folder), *map(str, arguments)]
    )
    return json.loads((folder / "run.json").read_text())["arguments"], capsys.readouterr().err


def test_what_was_taken_is_said_once_and_recorded(native, checkpoint, tmp_path, capsys):
    arguments, said = run(sample, checkpoint, tmp_path / "one", capsys, "--num-videos", 1, "--video-length", 2)
    assert arguments["dtype"] == "bfloat16" and said.count("computes in bfloat16\n") == 1
    native.clear()
    arguments, said = run(sample, checkpoint, tmp_path / "two", capsys, "--num-videos", 1, "--video-length", 2)
    assert arguments["dtype"] == "float32" and said.count("computes in float32\n") == 1


def test_a_film_goes_on_in_the_type_that_it_was_made_in(native, checkpoint, tmp_path, capsys):
    long = ("--seed", 4, "--save-latents")
    run(sample_long, checkpoint, tmp_path / "whole", capsys, *long, "--frames", 12)
    run(sample_long, checkpoint, tmp_path / "parts", capsys, *long, "--frames", 7)
    state = tmp_path / "parts/long_00000.state.safetensors"
    assert StreamState.load(state)[1]["dtype"] == "bfloat16"
    native.clear()
    how = ("--resume", state, "--frames", 12, "--save-latents")
    arguments, _ = run(sample_long, checkpoint, tmp_path / "parts", capsys, *how)
    assert arguments["dtype"] == "bfloat16"
    whole = load_file(tmp_path / "whole/long_00000.latents.safetensors")
    rest = load_file(tmp_path / "parts/long_00000_from_000007.latents.safetensors")
    assert all(torch.equal(whole[name][7:], rest[name]) for name in ("v", "a"))
    with pytest.raises(ValueError, match="was made in bfloat16, and --dtype is float32; leave --dtype out"):
        run(sample_long, checkpoint, tmp_path / "other", capsys, *how, "--dtype", "float32")


def test_a_state_from_before_types_were_kept_goes_on_in_float32(native, checkpoint, tmp_path):
    pipe = AVPipeline.from_pretrained(checkpoint, "cpu")
    pipe.new_stream().save(tmp_path / "old", base="long_00000", checksum=pipe.checksum, cfg_scale=1.0)
    args = sample_long.parse(["--model-ckpt", str(checkpoint), "--device", "cpu", "--resume", str(tmp_path / "old")])
    assert cli.load_pipeline(args, state=args.resume).dtype == torch.float32 and args.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float31", "int8", "nn", "", None, 3, ["float32"]])
def test_a_state_of_no_type_is_refused_before_a_model_is_made_of_it(checkpoint, tmp_path, dtype):
    pipe = AVPipeline.from_pretrained(checkpoint, "cpu")
    pipe.new_stream().save(tmp_path / "odd", **pipe.of_states | {"dtype": dtype})
    args = sample_long.parse(["--model-ckpt", str(checkpoint), "--device", "cpu", "--resume", str(tmp_path / "odd")])
    with pytest.raises(ValueError, match=r"no complete stream state \(its type of numbers .* is none\)"):
        cli.load_pipeline(args, state=args.resume)


def test_mixed_precision_is_that_of_the_run_that_goes_on_else_what_the_device_computes(native, tmp_path, monkeypatch):
    def settled(**more):
        args = Namespace(mixed_precision="auto", model="FLAV-S/2", dtype="float32", experiment_dir=tmp_path)
        vars(args).update(more)
        settle_precision(args, FLAV)
        return args.mixed_precision

    monkeypatch.setattr("training.opening.PartialState", lambda: SimpleNamespace(device="cpu"))
    assert settled() == "bf16" and settled(dtype="float64") == "no" and settled(mixed_precision=None) is None
    monkeypatch.setattr(dtypes, "LARGE", 10_000_000)
    assert settled() == "bf16" and settled(model="FLAV-tiny") == "no"
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"mixed_precision": "no"}}))
    assert settled() == "no"

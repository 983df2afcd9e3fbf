"""Every speed benchmark runs on tiny settings and leaves a record; the suite makes one table of them."""

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from benchmarks import (
    a2v,
    codec,
    forward,
    fusion,
    memory_cost,
    rolling,
    sample_clip,
    stream,
    subjects,
    summary,
    timing,
    train_step,
    vocoder,
)
from models import FLAV, FLAV_presets
from training.ceiling import matmul_ceiling

ONCE = ["--repeats", "2", "--warmup", "0"]
TINY = ["--model", "FLAV-tiny", "--predict-frames", "3"]
SMALLER = dict(hidden_size=32, num_heads=2, depth=2)  # than FLAV-tiny
VOICE = dict(upsample_initial_channel=32, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("training.ceiling.SIZE", {"cpu": 64})
    monkeypatch.setattr("training.ceiling.matmul_ceiling", partial(matmul_ceiling, seconds=0))
    monkeypatch.setitem(FLAV_presets, "FLAV-tiny", FLAV_presets["FLAV-tiny"] | SMALLER)
    monkeypatch.setattr(subjects, "HIFIGAN", subjects.HIFIGAN | VOICE)


def record_of(script, path, *arguments):
    """What the script wrote, after the checks that hold for all of them."""
    script.main([*arguments, *ONCE, "--out", str(path)])
    record = json.loads(path.read_text())
    facts = {"benchmark", "method", "command", "arguments", "machine", "device", "dtype", "threads", "versions", "rows"}
    assert facts <= record.keys() and record["benchmark"] == Path(script.__file__).stem and record["threads"] == 1
    for row in record["rows"]:
        if "ratio" in row:
            low, high = row["ratio_quartiles"]
            assert 0 < low <= row["ratio"] <= high and row["runs"] == 2 and row["other_s"] > 0
    return record


def test_forward_pass(tmp_path):
    (row,) = record_of(forward, tmp_path / "x.json", *TINY)["rows"]
    assert (row["ours"], row["other"]) == ("ours", "reference") and 0 < row["share_of_ceiling"]


def test_memory_of_a_stream_is_computed_once_a_frame_and_its_state_is_larger_by_its_frames_alone(tmp_path, monkeypatch):
    asked, remember = [], FLAV.remember
    monkeypatch.setattr(FLAV, "remember", lambda model, *x: asked.append(x[2].tolist()) or remember(model, *x))
    how = ("--memory", "1", "5", "--frames", "6")
    frame, more, plain, long = record_of(memory_cost, tmp_path / "x.json", *TINY, *how)["rows"]
    assert frame["ours"] == "without" and frame["ages"] == [1, 5]
    assert asked == [[[1.0, 1.0]]] * (2 + 6)  # both are there from the first frame on
    assert more["window_bytes"] - plain["window_bytes"] == 5 * (4 * (12 * 8 * 8 + 10 * 64) + 8)
    assert 0 < more["bytes"] - more["window_bytes"] - (plain["bytes"] - plain["window_bytes"]) < 500  # names of tensors
    assert long["frame_of_memory"] == 3 and len(long["resident_gib"]) == 2


def test_forward_pass_in_bfloat16(tmp_path):
    (row,) = record_of(forward, tmp_path / "x.json", *TINY, "--dtype", "bfloat16", "--fusion", "a")["rows"]
    assert "fusion a" in row["what"] and "bfloat16" in row["what"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step_with_its_reference(tmp_path, dtype):
    rows = record_of(train_step, tmp_path / "x.json", *TINY, "--dtype", dtype)["rows"]
    assert [row["other"] for row in rows] == ["reference", "reference"]
    assert rows[1]["mfu"] < rows[1]["share_of_ceiling"] < 2 * rows[1]["mfu"]  # with --grad-ckpt


def test_training_step_alone(tmp_path):
    rows = record_of(train_step, tmp_path / "x.json", *TINY, "--no-reference", "--no-grad-ckpt")["rows"]
    assert not any("other" in row for row in rows) and rows[1]["mfu"] == rows[1]["share_of_ceiling"]


def test_clip_with_every_switch(tmp_path):
    record = record_of(sample_clip, tmp_path / "x.json", *TINY, "--batch-sizes", "1", "2", "--frames", "2")
    sides = [(row["ours"], row["other"]) for row in record["rows"]]
    one = [("ours", other) for other in ("reference", "no skip", "no tables", "all off")] + [("all off", "reference")]
    assert sides == 2 * one
    counts = [row["frame_evaluations"] for row in record["rows"] if "frame_evaluations" in row]
    assert counts[0] == counts[1] and counts[0]["reference"] == 3 * (2 * 3 + 2) == counts[0]["no skip"]


def test_clip_without_switches(tmp_path):
    record = record_of(sample_clip, tmp_path / "x.json", *TINY, "--batch-sizes", "1", "--frames", "2", "--no-switches")
    assert len(record["rows"]) == 1


@pytest.mark.parametrize("kind", ["hifigan", pytest.param("griffin-lim", marks=pytest.mark.slow)])
def test_stream_and_its_reference_into_files(tmp_path, kind):
    short = ["--compare-frames", "2", "--frames", "5", "--vocoder", kind]
    rows = record_of(stream, tmp_path / "x.json", *TINY, *short)["rows"]
    assert [row.get("other") for row in rows] == ["reference", "overlap", "reference", None, None]
    for row in rows[3:]:
        assert 0 < row["p50_s"] <= row["p99_s"] and len(row["resident_gib"]) == 2 and row["real_time_factor"] > 0


def test_reference_stream_is_our_stream(tmp_path):
    import torch

    args = stream_arguments(tmp_path)
    pipe, plain, _ = stream.subjects_of(args, torch.device("cpu"), torch.float64)
    films = [stream.ours(args, pipe, 7, overlap=False), stream.reference_chunks(args, pipe, plain, 7)]
    (frames, wave), (plain_frames, plain_wave) = ([torch.cat(parts) for parts in zip(*film)] for film in films)
    assert len(frames) == 7 and (frames.int() - plain_frames.int()).abs().max() <= 1 and frames.float().std() > 1
    torch.testing.assert_close(plain_wave, wave, rtol=0, atol=1e-4)


def stream_arguments(tmp_path):
    """Arguments of stream.py for a preset."""
    from argparse import Namespace

    shape = dict(model="FLAV-tiny", fusion="c", latent_size=None, predict_frames=3, compile=False)
    return Namespace(model_ckpt=None, vocoder="hifigan", codec="patch-pca", num_timesteps=2, seed=0, **shape)


def test_stream_of_a_checkpoint(tmp_path):
    import torch

    pipe, _, _ = stream.subjects_of(stream_arguments(tmp_path), torch.device("cpu"), torch.float32)
    pipe.save(tmp_path / "export")
    short = ["--compare-frames", "2", "--frames", "0"]
    record = record_of(stream, tmp_path / "x.json", "--model-ckpt", str(tmp_path / "export"), *short)
    assert record["vocoder"] == "hifigan" and len(record["rows"]) == 3


def test_checkpoint_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        stream.main(["--model-ckpt", str(tmp_path)])
    assert "has no config.json; give a checkpoint folder" in capsys.readouterr().err


def test_vocoder_chunks_are_exact_in_float64(tmp_path):
    rows = record_of(vocoder, tmp_path / "x.json", "--n-mels", "16", "--frames", "24", "--chunks", "6", "12")["rows"]
    exact = [row["max_difference_float64"] for row in rows if "max_difference_float64" in row]
    assert len(exact) == 2 and max(exact) < 1e-10
    assert [row["ours"] for row in rows] == 2 * ["whole", "chunks of 6", "chunks of 12"]


def test_codec(tmp_path):
    rows = record_of(codec, tmp_path / "x.json", "--codecs", "patch-pca", "--image-size", "32")["rows"]
    assert [row["what"].split(",")[0] for row in rows] == ["encode", "decode"]


WAYS = ["compiled", "graphs", "compiled+graphs"]


@pytest.fixture
def ways(monkeypatch):
    """What --also made: models whose blocks were compiled, which is only noted, and the switches of pipelines."""
    made = []
    monkeypatch.setattr(FLAV, "compile_blocks", lambda model: made.append(model))
    build = subjects.AVPipeline
    monkeypatch.setattr(subjects, "AVPipeline", lambda model, *parts, graphs: made.append((model, graphs)) or
                        build(model, *parts, graphs=graphs))  # fmt: skip
    return made


@pytest.mark.parametrize("script, more", [
    (rolling, []),
    (sample_clip, ["--batch-sizes", "1", "--frames", "2", "--no-switches"]),
    (stream, ["--compare-frames", "2", "--frames", "0", "--vocoder", "hifigan"]),
], ids=["rolling", "clip", "stream"])  # fmt: skip
def test_sampling_compiled_and_by_graphs_beside_the_reference_in_bfloat16(tmp_path, ways, script, more):
    how = ["--dtype", "bfloat16", "--also", *WAYS]
    rows = record_of(script, tmp_path / "x.json", *TINY, *more, *how)["rows"]
    sides = [row["ours"] for row in rows if row.get("other") == "reference"]
    assert sides == ["ours", *WAYS] * (2 if script is stream else 1)
    twin, *pipes = ways  # compiled once, with weights of its own
    (_, of_compiled), (eager, of_graphs), (last, of_both) = pipes
    assert (of_compiled, of_graphs, of_both) == (False, True, True) and pipes[0][0] is last is twin is not eager
    assert next(twin.parameters()).equal(next(eager.parameters()))


@pytest.mark.parametrize("script, rows", [(forward, 1), (train_step, 2)], ids=["forward", "train_step"])
def test_compiled_blocks_beside_eager_ones(tmp_path, ways, script, rows):
    record = record_of(script, tmp_path / "x.json", *TINY, "--also", "compiled")
    assert [row["ours"] for row in record["rows"]] == rows * ["ours"] + rows * ["compiled"] and len(ways) == 1
    assert all("mfu" in row for row in record["rows"] if "training" in row["what"])


def test_pictures_for_a_given_sound_in_bfloat16(tmp_path, ways):
    how = ["--frames", "3", "--dtype", "bfloat16", "--also", "compiled"]
    rows = record_of(a2v, tmp_path / "x.json", *TINY, *how)["rows"]
    sides = [("ours", "reference"), ("compiled", "reference"), ("replace", "ours")]
    assert [(row["ours"], row["other"]) for row in rows] == sides


def test_peaks_of_the_sides_stand_in_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "gpu_peaks", lambda sides, device: {"gpu_peak_gib": dict.fromkeys(sides, 1.5)})
    rows = record_of(a2v, tmp_path / "x.json", *TINY, "--frames", "3")["rows"]
    assert rows[0]["note"] == "ours 1.50 GiB, reference 1.50 GiB" and "replace" in rows[1]["note"]


def test_stream_with_the_autoencoder_of_stable_diffusion(tmp_path, monkeypatch):
    small = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    monkeypatch.setattr(subjects, "SD_VAE", subjects.SD_VAE | small)
    how = ["--codec", "sd-vae", "--vocoder", "hifigan", "--compare-frames", "2", "--frames", "0"]
    record = record_of(stream, tmp_path / "x.json", *TINY, *how)
    assert record["config"]["in_channels"] == 4 and len(record["rows"]) == 3


def test_fusions_beside_none(tmp_path):
    rows = record_of(fusion, tmp_path / "x.json", *TINY)["rows"]
    assert [row["ours"] for row in rows] == ["a", "b", "c"] * 2 and {row["other"] for row in rows} == {"none"}


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="--model FLAV-M/2 is no preset; choose one of FLAV-XL/2"):
        forward.main(["--model", "FLAV-M/2"])


def test_suite_runs_what_is_asked_and_tells_what_fails(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command, **how):
        commands.append(command)
        path = Path(command[command.index("--out") + 1])
        if "codec" in path.name:
            return subprocess.CompletedProcess(command, 2, "", "codec.py: error: no memory")
        row = timing.compared(path.stem, {"ours": [1.0], "reference": [2.0]}, "ours", "reference")
        facts = {"machine": "a CPU", "device": "cpu", "dtype": "float32", "threads": 1, "versions": {"torch": "2"}}
        path.write_text(json.dumps({"benchmark": "x", **facts, "rows": [row]}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="1 of 10 benchmarks failed: codec_cpu"):
        summary.main(["--out", str(tmp_path), "--model-ckpt", str(tmp_path / "none")])
    told, table = capsys.readouterr().out, (tmp_path / "summary.md").read_text()
    assert "is no checkpoint (make demo leaves one)" in told and "codec_cpu failed: codec.py: error: no memory" in told
    assert "| official | forward, FLAV-S/2, float32 | 1.05 |" in table
    assert table.count("2.00 (2.00-2.00)") == 9 and "- a CPU; 1 CPU thread(s), float32, torch 2" in table
    assert all(Path(command[1]).is_file() for command in commands) and len(commands) == 10
    commands.clear()
    summary.main(["--out", str(tmp_path), "--only", "vocoder_cpu"])
    assert [Path(command[1]).name for command in commands] == ["vocoder.py"]
    summary.main(["--out", str(tmp_path), "--no-run"])
    assert len(commands) == 1 and (tmp_path / "summary.md").read_text() == table


def test_suite_takes_the_demos_checkpoint_and_another_device(tmp_path):
    from argparse import Namespace

    (tmp_path / "config.json").touch()
    args = Namespace(
        device="cuda", dtype="bfloat16", threads=1, model="FLAV-B/1", model_ckpt=tmp_path, out=tmp_path, run=1
    )
    plan = summary.suite(args)
    assert "sample_clip_flav_b1_cuda" in plan and "--switches" in plan["sample_clip_flav_b1_cuda"]
    assert tmp_path in plan["stream_demo_cuda"] and all("cuda" in command for command in plan.values())

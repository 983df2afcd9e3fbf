"""Event F1, seconds and memory of A2V and V2A by method on the demo's task.

    python benchmarks/conditional.py --joint runs/demo/c_norm/export --independent RUN/export --data-path runs/demo/data

The second model is trained as the demo's, with --independent-times; a third, --linked, is the demo's control run whose
link alone was trained, as docs/conditional.md tells. Any of them may be left out. Each figure comes from sample_a2v.py
or sample_v2a.py, run as a user would; F1 is that of the events generated against the events given, and "shuffled"
against those given to the next clips in the folder, which are mostly of the same class. Seconds are of sampling by the
clock; CPU seconds, which say more on a busy machine, and peak memory are of the whole process.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.cost import cost_of
from benchmarks.events import FRAMES, look, score

JOINT = [("guide", 25), ("guide", 100), ("guide", 400), ("replace", None)]
METHODS = {"joint": JOINT, "independent": [*JOINT, ("clean", None)], "linked": [("held", None)]}
GIVEN = {"a2v": "sound", "v2a": "picture"}
LENGTHS = (40, 240)  # frames, between which memory must not grow
LONG = 240  # frames of the inputs of --long
FEWEST = 6  # films, whose pictures get the sounds of others


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--joint", type=Path, help="checkpoint trained as the demo's")
    p.add_argument("--independent", type=Path, help="the same with --independent-times")
    p.add_argument("--linked", type=Path, help="two frozen branches whose link was trained")
    p.add_argument("--data-path", type=Path, required=True, help="the demo's videos; those of test/ are used")
    p.add_argument("--clips", type=cli.positive, default=48, help="number of test videos, the same of each class")
    p.add_argument("--long", type=cli.whole, default=0, help="inputs of 240 frames, made for it, besides")
    p.add_argument("--cfg-scale", type=float, default=2.0, help="classifier-free guidance, as in the demo")
    p.add_argument("--out", type=Path, default=cli.ROOT / "benchmarks/results/conditional_demo.json", help="JSON file")
    args = p.parse_args(argv)
    if not any(getattr(args, model) for model in METHODS):
        p.error(f"there is no model to sample; give --{' or --'.join(METHODS)}")
    if 0 < args.long < FEWEST:
        p.error(f"--long {args.long} inputs are too few to shuffle; give at least {FEWEST}, or 0")
    with TemporaryDirectory() as work:
        result = measure(args, Path(work))
    cli.write_json(args.out, {"machine": cli.machine(), "arguments": vars(args), **result})


def measure(args, work: Path) -> dict:
    """F1 of every method, and memory by length."""
    from data.synthetic import write_dataset

    link_clips(args.data_path / "test", work / "clips", args.clips)
    inputs = {FRAMES: work / "clips"}
    if args.long:
        write_dataset(work / "long_data", 0, args.long, LONG)
        inputs[LONG] = work / "long_data/test"
    rows = []
    for task, (model, methods) in product(GIVEN, METHODS.items()):
        checkpoint = getattr(args, model)
        for (method, scale), (frames, folder) in product(methods if checkpoint else [], inputs.items()):
            cost = sample(task, checkpoint, folder, work / "films", args.cfg_scale, method, scale)
            rows.append({"task": task, "model": model, "method": method, "scale": scale, "frames": frames,
                         **score(look(work / "films", frames), look(folder, frames)), **cost})  # fmt: skip
            shutil.rmtree(work / "films")
            print(json.dumps(rows[-1]), flush=True)
    return {"methods": rows, "memory": [memory(task, args, work) for task in GIVEN]}


def link_clips(folder: Path, to: Path, count: int) -> None:
    """Links to some videos of a folder, the same number of each class."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in (video for c in classes for video in sorted(c.glob("*.mp4"))[: count // len(classes)]):
        link = to / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())


def sample(
    task: str, checkpoint: Path, inputs: Path, to: Path, cfg_scale: float, method: str, scale: float | None
) -> dict:
    """Run the script of a task: seconds of sampling, CPU seconds and peak memory (MiB) of its process."""
    how = ["--method", method, "--cfg-scale", cfg_scale, *(["--guidance-scale", scale] if scale else [])]
    cost = cost_of(f"sample_{task}.py", "--model-ckpt", checkpoint, "--input", inputs, "--results-dir", to, *how,
                   "--device", "cpu")  # fmt: skip
    return {**cost._asdict(), "seconds": json.loads((to / "run.json").read_text())["seconds"]}


def memory(task: str, args, work: Path) -> dict:
    """Peak memory of the first model's own method for a short and a long input, and its growth."""
    from data.av import write_clip
    from data.synthetic import draw_clip, render, sound

    model = next(name for name in METHODS if getattr(args, name))
    peaks, (method, scale) = {}, METHODS[model][0]
    for frames in LENGTHS:
        path, clip = work / f"{frames}.mp4", draw_clip(seed=1, index=0)
        write_clip(path, render(clip, frames), sound(clip, frames))
        how = (getattr(args, model), path, work / "long", args.cfg_scale, method, scale)
        peaks[frames] = sample(task, *how)["peak_mib"]
    short, long = peaks.values()
    return {"task": task, "peak_mib_by_frames": peaks, "growth": long / short - 1}


if __name__ == "__main__":
    cli.run(main)

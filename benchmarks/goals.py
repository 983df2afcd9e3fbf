"""What benchmarks/gpu.sh left, beside what a GPU was meant to reach: a table, by side.

python benchmarks/goals.py --results benchmarks/results
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing


class Goal(NamedTuple):
    """At least so much of a figure, in those rows of some records that begin with `row`."""

    what: str
    least: float
    files: tuple[str, ...]
    row: str
    figure: str


STEPS = ("gpu_train_step", "gpu_train_step_kept")
GOALS = (
    Goal("rolling frame, times as fast as the plain side", 3, ("gpu_rolling",), "rolling frame", "ratio"),
    Goal("clip, likewise", 4.5, ("gpu_clip",), "", "ratio"),
    Goal("first frame, decoded and written, likewise", 5, ("gpu_stream",), "first frame", "ratio"),
    Goal("training step, likewise", 2, STEPS, "training step", "ratio"),
    Goal("MFU of the training step", 0.55, STEPS, "training step", "mfu"),
    Goal("forward pass, share of the ceiling", 0.60, ("gpu_forward",), "forward", "share_of_ceiling"),
    Goal("stream with decoding, times as fast as real time", 8, ("gpu_stream",), "stream", "real_time_factor"),
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--results", type=Path, default=timing.RESULTS, help="folder of the JSON files")
    args = p.parse_args(argv)
    print("| what | goal | measured | reached |\n| --- | ---: | --- | --- |")
    for goal in GOALS:
        found = measured(goal, args.results)
        told = ", ".join(f"{side} {value:.2f}" for side, value in found)
        reached = ("yes" if max(value for _, value in found) >= goal.least else "no") if found else ""
        print(f"| {goal.what} | {goal.least:g} | {told or 'not measured'} | {reached} |")


def measured(goal: Goal, folder: Path) -> list[tuple[str, float]]:
    """Name of the side and its figure, of each row that has it beside the reference or alone."""
    records = [json.loads(path.read_text()) for name in goal.files if (path := folder / f"{name}.json").is_file()]
    rows = [row for record in records for row in record["rows"] if row["what"].startswith(goal.row)]
    return [(row["ours"], row[goal.figure]) for row in rows
            if goal.figure in row and row.get("other", "reference") == "reference" and "ours" in row]  # fmt: skip


if __name__ == "__main__":
    cli.run(main)

"""Three systems on the same captioned balls: R-FLAV with each fusion, SyncFlow and AV-Link, in one table.

    python benchmarks/systems.py                                             # every row, as many training frames each
    python benchmarks/systems.py --seconds 150                               # and as many seconds of training each
    python benchmarks/systems.py --rows c syncflow avlink --seeds 1 2        # more seeds of some of them
    python benchmarks/systems.py --table                                     # what is there, in Markdown; runs nothing

Every figure is kept in --out as soon as it is made, and the same command goes on where it was broken off. The trainings
are in --work. Frames are those the optimiser sees, steps x clips x frames of a clip, over all stages of a system.
docs/systems.md says what is compared, and how.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.events import LENGTH, look, parser, prompts_of
from benchmarks.rows import Record, frames_per_step, sampled, trained
from demo import GIVEN, SAMPLING

CLIP = 20  # frames of clips that are cut from the videos, and of every film that is judged
BATCH = "--batch-size 24"  # of sampling
BALLS = cli.ROOT / "configs/balls"
PREPARING = f"--codec block-pca --image-size 64 --n-mels 64 --clip-frames {CLIP} --text-encoder words"
FLAV = f"@{BALLS / 'text.args'} --cuts 0 --fusion"
LINK = f"@{BALLS / 'link.args'} --text-encoder words --fusion"
SYNCFLOW, AVLINK = f"@{BALLS / 'syncflow.args'} --stage", f"@{BALLS / 'avlink.args'} --stage"
LENGTH_OF_FILMS = f"{BATCH} --video-length {CLIP}"
ROLLED, CLIPPED = f"{SAMPLING} {LENGTH_OF_FILMS}", f"--cfg-scale 2 {LENGTH_OF_FILMS}"  # whole clips: own steps


class Stage(NamedTuple):
    """A call of train.py. share: of the frames of its row. clips: whether it learns from prepared clips."""

    name: str
    how: str
    share: float = 1.0
    begins: tuple[str, ...] = ()  # the stages with whose weights
    clips: bool = False


class Row(NamedTuple):
    """A line of the table. tasks: what it does -> arguments of sampling; it cannot do what is not there."""

    title: str
    stages: tuple[Stage, ...]
    tasks: dict[str, str]


def rolled(title: str, fusion: str, given: str) -> Row:
    return Row(title, (Stage(fusion, f"{FLAV} {fusion}"),), {"joint": ROLLED, "a2v": given, "v2a": given})


def linked(fusion: str, *tasks: str) -> Row:
    """On the branches of a run without fusion, which has half of the frames."""
    stages = Stage("branches", f"{FLAV} none", 0.5), Stage(fusion, f"{LINK} {fusion}", 0.5, ("branches",))
    return Row(f"R-FLAV, none, then {fusion}", stages, dict.fromkeys(("joint", *tasks), ROLLED))


GUIDED, REPLACED = f"{ROLLED} {GIVEN}", f"{ROLLED} --method replace"  # without fusion there is no gradient to guide by
ROWS = {
    "none": rolled("R-FLAV, fusion none", "none", REPLACED),
    **{fusion: rolled(f"R-FLAV, fusion {fusion}", fusion, GUIDED) for fusion in "abc"},
    "adaptor": linked("adaptor", "v2a"),
    "link": linked("link", "a2v", "v2a"),
    "syncflow": Row(
        "SyncFlow",
        (Stage("syncflow-video", f"{SYNCFLOW} video", 0.4, clips=True),
         Stage("syncflow", f"{SYNCFLOW} audio", 0.6, ("syncflow-video",), clips=True)),
        {"joint": CLIPPED, "v2a": CLIPPED},
    ),
    "avlink": Row(
        "AV-Link",
        (Stage("avlink-video", f"{AVLINK} video", 0.4, clips=True),
         Stage("avlink-audio", f"{AVLINK} audio", 0.2, clips=True),
         Stage("avlink", f"{AVLINK} link --logit-mean -2", 0.4, ("avlink-video", "avlink-audio"), clips=True)),
        {"joint": CLIPPED, "a2v": CLIPPED, "v2a": CLIPPED},
    ),
}  # fmt: skip


def main(argv=None) -> None:
    p = parser(__doc__, "systems_balls.json")
    p.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    p.add_argument("--frames", type=cli.positive, default=160_000, help="training frames of each row, over its stages")
    p.add_argument("--seconds", type=cli.whole, default=0, help="besides, so many seconds of training steps for each "
                   "row; 0 for none")  # fmt: skip
    p.add_argument("--anew", action="store_true", help="make these rows again, of which a recipe has changed, say")
    p.add_argument("--work", type=Path, default=Path("runs/systems"), help="where videos and trainings go, and stay")
    p.add_argument("--table", action="store_true", help="print the table of what is in --out, and run nothing")
    args = p.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # seconds that compare: two threads that meet other work take ten times as long
    from benchmarks.systems_table import markdown

    facts = {"train": args.train, "clips": args.clips, "seed": args.seed, "clip_frames": CLIP, "preparing": PREPARING}
    record = Record(args.out, facts)
    if not args.table:
        data = videos(args, args.work.resolve())
        for seed in args.seeds:
            for row in args.rows:
                if args.anew:
                    record.forget(row_key(args.frames, "frames", row, seed))
                    record.forget(row_key(args.seconds, "s", row, seed))
                measure(record, args, row, seed, data)
    print(markdown(record.figures, ROWS))


class Data(NamedTuple):
    """Where work is, the videos, the clips cut from them, and the prompts; real: (frames, wave) of test clips."""

    work: Path
    videos: Path
    clips: Path
    prompts: Path
    real: list


def videos(args, work: Path) -> Data:
    """The videos and what is cut from them, made if they are not there."""
    from data.synthetic import write_dataset

    data, clips, prompts = work / "data", work / "clips", work / "prompts.txt"
    write_dataset(data, args.train, args.clips, LENGTH, args.seed, captions=True)
    cli.call("prepare.py", "--data-path", data, "--out", clips, *PREPARING.split())
    prompts.write_text("\n".join(prompts_of("train", args.clips)))
    return Data(work, data, clips, prompts, look(data / "test", CLIP))


def measure(record: Record, args, name: str, seed: int, data: Data) -> None:
    """The figures of a row by one seed, for as many frames, then for as many seconds."""
    row, began = ROWS[name], time.perf_counter()
    steps = {stage.name: steps_for(stage, args.frames, data) for stage in row.stages}
    taken = figures(record, row_key(args.frames, "frames", name, seed), row, seed, steps, data)
    if args.seconds:
        more = args.seconds / sum(stage["step_seconds"] for stage in taken.values())
        steps = {stage: max(1, round(count * more)) for stage, count in steps.items()}
        figures(record, row_key(args.seconds, "s", name, seed), row, seed, steps, data)
    print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def row_key(count: int, unit: str, name: str, seed: int) -> str:
    """What the keys of a row's figures begin with, by one seed and one budget."""
    return f"{count} {unit}/{name}/{seed}/"


def steps_for(stage: Stage, frames: int, data: Data) -> int:
    """Steps in which a stage sees its share of the frames."""
    return max(1, round(frames * stage.share / frames_per_step(arguments(stage, data, data.work))))


def arguments(stage: Stage, data: Data, run: Path) -> list:
    """Of train.py."""
    return [*stage.how.split(), "--data-path", data.clips if stage.clips else data.videos, "--experiment-dir", run]


def figures(record: Record, key: str, row: Row, seed: int, steps: dict[str, int], data: Data) -> dict[str, dict]:
    """What each stage of a row took, by so many steps of it; the figures of its tasks are put on record, too."""
    work = data.work / f"seed_{seed}"
    runs = {stage.name: work / f"{stage.name}_{steps[stage.name]}" for stage in row.stages}

    def training() -> dict:
        return {stage.name: trained(arguments(stage, data, runs[stage.name]), steps[stage.name], seed,
                                    [runs[name] for name in stage.begins]) for stage in row.stages}  # fmt: skip

    taken, last = record.made(f"{key}training", training), runs[row.stages[-1].name]
    for task, how in row.tasks.items():
        inputs = ("--prompts", data.prompts) if task == "joint" else ("--data-path", data.videos)
        film = partial(sampled, task, last, work, CLIP, data.real, [*how.split(), *inputs, "--seed", seed])
        record.made(f"{key}{task}", film)
    return taken


if __name__ == "__main__":
    cli.run(main)

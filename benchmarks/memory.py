"""How long does a model remember? A ball is hidden behind a curtain, or only heard; how does it come back?

    python benchmarks/memory.py                                  # both tasks, with a memory and without, seed 0
    python benchmarks/memory.py --tasks seen --seeds 0 1 2
    python benchmarks/memory.py --memory                         # no ages: without a memory alone
    python benchmarks/memory.py --table                          # what is there, in Markdown; trains nothing

R-FLAV states as a limit that all it remembers is its window of T frames. Models without class labels learn balls before
which a curtain falls now and then (benchmarks/curtain.py), by train.py; then held-out clips that end under the curtain
are extended by sample_long.py. The model itself raises the curtain, so results are told by the frames that the ball was
really hidden. Every figure is kept in --out as soon as it is made, and the same command goes on where it was broken
off; trainings and films are in --work. docs/memory.md says what was found.
"""

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from itertools import chain, cycle
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import curtain
from benchmarks.layout import cell, table
from benchmarks.rows import Record, train_on
from data.synthetic import BallClip

AGES = (1, 8, 9, 16, 17, 28)  # of the memory, in frames; two in turn tell whether a ball rises
SIDES = ("with", "without")
TOGETHER = "all seeds"
WINDOW = 8  # frames, of the demo's model
METHOD = (
    "FLAV-tiny without labels, trained with the demo's flags and fusion c_norm on balls behind curtains. Task seen: "
    "held-out clips of 12 visible frames and some under the curtain, in silence, are extended by sample_long.py; "
    "hidden counts frames, given and generated, from the last visible one given to the first visible one generated. "
    "Task heard: the ball is under the curtain from the beginning, 16 frames with its pings and some in silence; "
    "hidden counts frames after the one in which the last ping given begins. From there up to 8 visible frames are "
    "judged. colour: share of films with the ball's class; chance pairs the same films at random. f1: of bounces "
    "against those of the clip rendered on, within one frame. error: frames by which the ball is early or late, from "
    "the shift of its true course, by half a period at most, that fits the heights of 3 or more visible frames best. "
    "Chance of both takes other clips of the class. with_pings: films in which the model pings under the curtain. "
    "Intervals are 95 % bootstraps over films. Two frames with h hidden ones between them share a window of T up to h"
    " = T - 2."
)


class Run(NamedTuple):
    """A training and its films. work: folder of its task's videos. ages, noise: of its memory."""

    work: Path
    task: curtain.Task
    ages: tuple[int, ...]
    noise: float
    steps: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is, and stays."""
        which = f"ages_{'_'.join(map(str, self.ages))}" if self.ages else "no_ages"
        noise = f"_noise_{self.noise:g}" if self.noise else ""
        return self.work / f"{which}{noise}_steps_{self.steps}_seed_{self.seed}"

    @property
    def is_judged(self) -> bool:
        return (self.folder / "scores.json").exists()

    def scores(self) -> list[curtain.Score]:
        """Those of its films, which are made and judged unless they were."""
        if not self.is_judged:
            noise = ("--memory-noise", self.noise) if self.noise else ()
            how = ("--memory", *self.ages, *noise) if self.ages else ()
            train_on(self.folder, self.work / "data", self.steps, self.seed, how)
            clips = curtain.held_out()
            truths = [curtain.truth(clip, self.task.length) for clip in clips]
            found = curtain.scores(self.films(clips), self.task, truths)
            cli.write_text(self.folder / "scores.json", "[" + ",\n".join(json.dumps(s) for s in found) + "]\n")
        return [curtain.Score(*row) for row in json.loads((self.folder / "scores.json").read_text())]

    def films(self, clips: Sequence[BallClip]) -> list[curtain.Shown]:
        """All given clips extended side by side, as their files show them."""
        import demo

        given, folder = sorted((self.work / "given").glob("*.mp4")), self.folder / "films"
        how = ("--frames", self.task.length, "--save-state", 0, "--seed", self.seed, "--device", "cpu")
        command = ("sample_long.py", "--model-ckpt", self.folder / "export", "--results-dir", folder, *how)
        demo.call(*command, "--extend", *given, log=self.folder / "films.log", threads=1)
        names = [path.stem.split("_") for path in given]
        return [curtain.shown(folder / f"long_{k:05d}.mp4", self.task, clips[int(i)], int(i), int(lowered))
                for k, (_, lowered, i) in enumerate(names)]  # fmt: skip


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--memory", type=cli.positive, nargs="*", default=list(AGES), metavar="AGE", help="ages of the side "
                   "with a memory; none leaves it out")  # fmt: skip
    p.add_argument("--memory-noise", type=cli.finite, default=0.0, help="on the memory in its training")
    p.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what is trained and judged")
    p.add_argument("--tasks", nargs="+", choices=curtain.TASKS, default=list(curtain.TASKS), help="what is remembered")
    p.add_argument("--seeds", type=cli.whole, nargs="+", default=[0], help="of training and sampling; the videos stay")
    p.add_argument("--steps", type=cli.positive, default=2000, help="of training; a model that is there is kept")
    p.add_argument("--work", type=Path, default=Path("runs/memory"), help="where videos, models and films go, and stay")
    p.add_argument("--out", type=Path, default=cli.ROOT / "benchmarks/results/memory_balls.json", help="JSON file")
    p.add_argument("--table", action="store_true", help="print what is in --out, and run nothing")
    args = p.parse_args(argv)
    sides = [side for side in SIDES if side in args.sides and (args.memory or side == "without")]
    if not sides:
        p.error("--sides with needs ages; give --memory 1 8 9 16 17 28")
    record = Record(args.out, facts(args))
    if not args.table:
        import torch  # after the arguments are known to be good

        torch.set_num_threads(1)
        work = cli.output_folder(args.work).resolve()
        for name in args.tasks:
            measure(record, args, name, sides, work / name)
    print(markdown(record.figures))


def facts(args) -> dict:
    """What figures depend on, for the record."""
    c = curtain
    return {"method": METHOD, "steps": args.steps, "memory": args.memory, "memory_noise": args.memory_noise,
            "versions": {name: metadata.version(name) for name in cli.PACKAGES}, "clips_per_length": c.CLIPS,
            "given_hidden": c.LENGTHS, "judged": c.JUDGED, "after": c.AFTER, "training_clips": c.TRAIN,
            "training_frames": c.FRAMES, "tasks": {name: task._asdict() for name, task in c.TASKS.items()}}  # fmt: skip


def measure(record: Record, args, name: str, sides: Sequence[str], work: Path) -> None:
    """All figures of a task that are not there, then those of all seeds together."""
    task, clips = curtain.TASKS[name], curtain.held_out()
    curtain.write_training_set(work / "data/train", task)
    curtain.write_given(work / "given", task, clips)
    record.made(f"{name}/under_curtain", lambda: curtain.leak(work / "given", task, WINDOW))
    record.made(f"{name}/real", lambda: real(work, task, clips))
    memories = {"with": (tuple(args.memory), args.memory_noise), "without": ((), 0.0)}
    runs = {side: [Run(work, task, *memories[side], args.steps, seed) for seed in args.seeds] for side in sides}
    for side, run in zip(cycle(sides), chain(*zip(*runs.values()))):  # a seed of each side, then the next
        record.made(f"{name}/{side}/{run.seed}", lambda run=run: curtain.summary(run.scores()))
    record.forget(f"{name}/{TOGETHER}/")
    for side in sides if len(args.seeds) > 1 else ():
        films = [score for run in runs[side] for score in run.scores()]
        record.made(f"{name}/{TOGETHER}/{side}", lambda films=films: curtain.summary(films))


def real(work: Path, task: curtain.Task, clips: Sequence[BallClip]) -> dict:
    """Figures of films in which the clips go on."""
    truths = [curtain.truth(clip, task.length) for clip in clips]
    return curtain.figures(curtain.scores(curtain.real_films(work / "real", task, clips), task, truths))


HEAD = ("frames hidden", "films", "colour kept", "chance", "F1 of bounces", "chance", "error, frames", "chance")


def markdown(figures: dict[str, dict]) -> str:
    """A table of each side, seed and task, and of all seeds together: what is kept, by the frames hidden."""
    parts = []
    for key, found in figures.items():
        if "hidden" in found:
            last = {"real films": figures.get(f"{key.split('/')[0]}/real")}
            lines = [line(name, x) for name, x in {**found["hidden"], **last}.items() if x]
            parts.append(f"{key.replace('/', ', ')}\n\n{table(HEAD, lines)}")
    return "\n".join(parts)


def line(name: str, x: dict) -> list[str]:
    """A row of the table."""
    error = x["error"]
    chance = error and {"value": error["chance"], "interval": error["chance_interval"]}
    shares = [text for of in ("colour", "f1") for text in (cell(x[of]), f"{x[of]['chance']:.2f}")]
    return [name, str(x["clips"]), *shares, cell(error), cell(chance)]


if __name__ == "__main__":
    cli.run(main)

"""AV-Link's ablations on captioned balls, laid out as its paper's Table 2, with the sweep of its conditioning time.

    python benchmarks/avlink.py                                  # all of it: seed 0, and the main row by seeds 1 and 2
    python benchmarks/avlink.py --only main no-reinject          # some rows
    python benchmarks/avlink.py --table                          # what is there, in Markdown; runs nothing

Of each seed two towers are trained once, and each row trains a link of its own between them, to make the sound for a
picture (V2A), and is judged by the sounds it makes for held-out videos. The paper's figures beside it are quoted: other
videos, other onsets. Every figure is kept in --out as soon as it is made, and the same command goes on where it was
broken off; the trainings are in --work.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.events import look, parser
from benchmarks.layout import synchrony, table
from benchmarks.rows import Record, sampled, trained
from benchmarks.systems import BATCH, CLIP, LENGTH_OF_FILMS, PREPARING, Data, videos

TRAINING = cli.ROOT / "configs/balls/avlink.args"
LINKING = "--logit-mean -2"  # times of the side that a link makes
PAPER = cli.ROOT / "docs/paper_tables.json"
TIMES = (0.5, 0.7, 0.8, 0.9, 0.96, 1.0)  # of a given picture
MAIN_TIME, SOUND_TIME = 0.96, 0.8  # the paper's
GUIDANCE = (1, 2, 4, 5, 6, 8)
FEW, MANY = 16, 64  # steps of sampling, whose difference is what a step costs
TOWERS = ("video", "audio")


class Row(NamedTuple):
    """A line of the table. how: arguments of training the link. quoted: the paper's row that it is beside."""

    group: str
    title: str
    how: str = ""
    quoted: str = ""


ROWS = {
    "main": Row("conditioning time", "fixed, 0.96", quoted="conditioning time fixed (theirs)"),
    "uniform": Row("conditioning time", "uniform", "--conditioning-times uniform", "conditioning time uniform"),
    "network": Row("features", "a frozen network of random weights", "--variant network", "features CLIP"),
    "after-1": Row("placement", "after the first layer", "--variant after-1", "after block 1"),
    "after-2": Row("placement", "after the middle one", "--variant after-2", "after block 11"),
    "after-3": Row("placement", "after the last but one", "--variant after-3", "after block 22"),
    "direct": Row("injection", "direct alignment", "--variant direct", "direct alignment"),
    "no-reinject": Row("injection", "no reinjection", "--variant no-reinject", "without symmetric reinjection"),
    "symcross": Row("injection", "symmetric cross-attention", "--variant symcross", "symmetric cross attention"),
    **{f"time-{t}": Row("sweep", f"t = {t}", f"--conditioning-times {t} {SOUND_TIME}") for t in TIMES
       if t != MAIN_TIME},
}  # fmt: skip
BOTH = {"a2v": "picture for a sound", "link": "both tasks, one link"}  # stages besides v2a, of the paper's Sec. 4.4
COMPARED = {
    "V2A, a link for it": ("main", "v2a"), "V2A, one for both": ("link", "v2a"),
    "A2V, a link for it": ("a2v", "a2v"), "A2V, one for both": ("link", "a2v"),
    "text to picture, then V2A": ("link", "joint"), "text to both at once": ("link", "at_once"),
}  # fmt: skip
STEPPED = {"main": "with reinjection", "no-reinject": "without"}  # whose steps are timed
PARTS = (*ROWS, *BOTH, "guidance", "steps")


def main(argv=None) -> None:
    p = parser(__doc__, "avlink_balls.json")
    p.set_defaults(seeds=[0, 1, 2])
    p.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of "
                   f"{', '.join(PARTS)}; those but main are of the first seed")  # fmt: skip
    p.add_argument("--steps", type=cli.positive, nargs=3, default=[1000, 700, 400], metavar="N", help="of the tower of "
                   "pictures, that of sound, and each link")  # fmt: skip
    p.add_argument("--cfg-scale", type=float, default=2.0, help="of the figures that do not sweep it")
    p.add_argument("--work", type=Path, default=Path("runs/avlink"), help="where videos and trainings go, and stay")
    p.add_argument("--table", action="store_true", help="print the tables of what is in --out, and run nothing")
    args = p.parse_args(argv)
    facts = {"train": args.train, "clips": args.clips, "seed": args.seed, "clip_frames": CLIP, "preparing": PREPARING,
             "steps": args.steps, "cfg_scale": args.cfg_scale}  # fmt: skip
    facts["training"] = shlex.split(TRAINING.read_text(), comments=True)
    record = Record(args.out, facts)
    if not args.table:
        data = videos(args, args.work.resolve())
        for seed in args.seeds:
            Seed(record, args, seed, data).measure()
    print(markdown(record.figures))


class Seed:
    """Two towers, the links between them that are asked for, and what their films are worth."""

    def __init__(self, record: Record, args, seed: int, data: Data):
        self.record, self.args, self.seed, self.data = record, args, seed, data
        self.work, self.first = data.work / f"seed_{seed}", seed == args.seeds[0]

    def measure(self) -> None:
        """All figures of a seed that are asked for: of any but the first, those of the main row."""
        for tower, steps in zip(TOWERS, self.args.steps):
            self.made(tower, "training", partial(self.train, tower, tower, "", steps))
        asked = [name for name in self.args.only if name == "main" or self.first]
        for name in asked:
            if name in ROWS:
                self.linked(name, "v2a", ROWS[name].how)
                self.film(name, "v2a")
            elif name in BOTH:
                self.linked(name, name, "")
                for task in {"a2v": ("a2v",), "link": ("v2a", "a2v", "joint")}[name]:
                    self.film(name, task)
        if "link" in asked:
            self.made("link", "at_once", self.at_once)
        if "guidance" in asked:
            for scale in GUIDANCE:
                self.film("main", "v2a", f"v2a, guidance {scale}", "--cfg-scale", scale)
        if "steps" in asked:
            for name in STEPPED:
                self.linked(name, "v2a", ROWS[name].how)
                self.made(name, "step", partial(self.step, name))

    def made(self, name: str, part: str, make) -> dict:
        return self.record.made(f"{name}/{self.seed}/{part}", make)

    def run(self, name: str) -> Path:
        return self.work / name

    def train(self, name: str, stage: str, how: str, steps: int, *begins: str) -> dict:
        how = [f"@{TRAINING}", "--data-path", self.data.clips, "--stage", stage, *how.split(), "--experiment-dir",
               self.run(name)]  # fmt: skip
        return trained(how, steps, self.seed, [self.run(tower) for tower in begins])

    def linked(self, name: str, stage: str, how: str) -> None:
        """Train a link between the towers."""
        how = f"{LINKING} {how}"
        self.made(name, "training", partial(self.train, name, stage, how, self.args.steps[2], *TOWERS))

    def arguments(self, task: str, *more) -> list:
        """Of a script that samples."""
        inputs = ("--prompts", self.data.prompts) if task == "joint" else ("--data-path", self.data.videos)
        return [*inputs, "--cfg-scale", self.args.cfg_scale, *LENGTH_OF_FILMS.split(), "--seed", self.seed, *more]

    def film(self, name: str, task: str, part: str = "", *more) -> None:
        """Figures of a task's films."""
        self.made(name, part or task, partial(sampled, task, self.run(name), self.work, CLIP, self.data.real,
                                              self.arguments(task, *more)))  # fmt: skip

    def step(self, name: str) -> dict:
        """CPU seconds and seconds of a step of V2A, for a clip: what more steps take, divided by them."""
        few, many = (sampled("v2a", self.run(name), self.work, CLIP, self.data.real,
                             self.arguments("v2a", "--num-timesteps", steps)) for steps in (FEW, MANY))  # fmt: skip
        steps, clips = MANY - FEW, len(self.data.real)
        return {"cpu_seconds": (many["cpu_seconds"] - few["cpu_seconds"]) / steps / clips,
                "seconds": (many["seconds_a_clip"] - few["seconds_a_clip"]) / steps}  # fmt: skip

    def at_once(self) -> dict:
        """Figures of films whose sides are both made at the same time, by the link that has learnt both tasks."""
        from benchmarks.judging import Film, judged
        from pipeline import AVPipeline
        from pipeline.clips import ClipPipeline

        linked = AVPipeline.from_pretrained(self.run("link") / "export", device="cpu")
        pipe, films = ClipPipeline(linked.model, linked.codec, linked.device, linked.dtype), []
        prompts = self.data.prompts.read_text().splitlines()
        size = int(BATCH.split()[1])
        for first in range(0, len(prompts), size):
            batch = range(first, min(first + size, len(prompts)))
            clips = pipe.sample(list(batch), y=[prompts[i] for i in batch], seed=self.seed,
                                cfg_scale=self.args.cfg_scale)  # fmt: skip
            films += [Film(*film) for film in written(self.work / "films_at_once", clips, pipe.spec)]
        return judged("joint", films, self.data.real)


def written(folder: Path, clips, spec) -> list[tuple]:
    """(frames, wave) of clips, read back from mp4 as those of the scripts are; the files are removed."""
    from data.av import write_clip

    folder.mkdir(parents=True, exist_ok=True)
    for i, (frames, wave) in enumerate(zip(clips.frames, clips.wave)):
        write_clip(folder / f"{i:05d}.mp4", frames, wave, spec.fps, spec.sample_rate)
    films = look(folder, CLIP)
    shutil.rmtree(folder)
    return films


def markdown(figures: dict[str, dict]) -> str:
    """The layout of the paper's Table 2, then the sweeps, both tasks, and what a step costs; of whatever is there."""
    theirs, heads = quoted(PAPER), ["onset accuracy", "event F1", "chance"]
    ablations = [[row.group, row.title, *synchrony(found), theirs.get(row.quoted, "")] for name, row in ROWS.items()
                 if row.group != "sweep" and (found := of(figures, name))]  # fmt: skip
    times = {str(t): ("main" if t == MAIN_TIME else f"time-{t}", "v2a") for t in TIMES}
    guidance = {str(scale): ("main", f"v2a, guidance {scale}") for scale in GUIDANCE}
    costs = [[STEPPED[name], *(f"{1000 * found[0][of_what]:.2f}" for of_what in ("cpu_seconds", "seconds"))]
             for name in STEPPED if (found := of(figures, name, "step"))]  # fmt: skip
    tables = [table(["ablation", "row", *heads, "Onset ACC of the paper, quoted"], ablations)]
    for what, lines in (("conditioning time", times), ("guidance", guidance), ("task", COMPARED)):
        found = {title: of(figures, *part)[:1] for title, part in lines.items()}  # of the first seed all
        tables.append(table([what, *heads], [[title, *synchrony(x)] for title, x in found.items() if x]))
    return "\n".join([*tables, table(["a step of V2A, a clip", "CPU ms", "ms"], costs)])


def of(figures: dict[str, dict], name: str, part: str = "v2a") -> list[dict]:
    """Figures of a row's part, by seed."""
    keys = [key for key in figures if key.split("/")[0] == name and key.split("/")[2] == part]
    return [figures[key] for key in sorted(keys, key=lambda key: int(key.split("/")[1]))]


def quoted(path: Path) -> dict[str, str]:
    """Row -> Onset ACC of the paper's Table 2."""
    paper = json.loads(path.read_text())["AV-Link"]["table_2_ablations_v2a"]
    place = paper["columns"].index("Onset ACC")
    return {row: str(values[place]) for row, values in paper.items() if row != "columns"}


if __name__ == "__main__":
    cli.run(main)

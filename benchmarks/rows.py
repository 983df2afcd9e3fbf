"""Rows of a table that takes longer than a session: each figure is kept as it is made, and what is there is kept."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cli
from benchmarks.cost import cost_of
from benchmarks.judging import films_in, judged

KEPT = 500  # steps between checkpoints
GIVEN = {"a2v": "sample_a2v.py", "v2a": "sample_v2a.py"}


class Record:
    """Figures by key in a JSON file, beside the facts that they depend on; the same command goes on with it.

    Raises:
        ValueError: the file holds figures of other facts.
    """

    def __init__(self, path: Path, facts: dict):
        self.path, facts = path, json.loads(json.dumps(facts, default=str))
        self.content = json.loads(path.read_text()) if path.exists() else {"machine": cli.machine(), **facts}
        self.figures = self.content.setdefault("figures", {})
        if strange := {name: self.content.get(name) for name in facts if self.content.get(name) != facts[name]}:
            name, found = next(iter(strange.items()))
            raise ValueError(f"{path} holds figures of {name} {found}, not {facts[name]}; choose another --out")

    def forget(self, begin: str) -> None:
        """Leave out the figures whose keys begin so; they are made again."""
        self.figures = self.content["figures"] = {k: x for k, x in self.figures.items() if not k.startswith(begin)}

    def made(self, key: str, make: Callable[[], dict]) -> dict:
        """The figures of a key; made, printed and written only if they are not there."""
        if key not in self.figures:
            self.figures[key] = json.loads(json.dumps(make()))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cli.write_json(self.path, self.content)
            print(json.dumps({key: self.figures[key]}), flush=True)
        return self.figures[key]


def trained(how: Sequence, steps: int, seed: int, begins: Sequence[Path] = ()) -> dict:
    """What a training took, which is run if it has not been by these arguments and from such weights.

    One that was broken off begins anew, to be timed whole.

    Args:
        how: arguments of train.py. begins: runs whose exports it begins with.
    Returns:
        steps, frames seen by the optimiser, seconds of its steps alone, seconds, CPU seconds and peak memory (MiB) of
        the whole process, numbers of the model, and of those that learn; the arguments that matter.
    """
    run = Path(how[how.index("--experiment-dir") + 1])
    told = recipe(how, steps, seed, begins)
    if not (run / "cost.json").exists() or json.loads((run / "cost.json").read_text())["recipe"] != told:
        shutil.rmtree(run, ignore_errors=True)
        start = ("--init-from", *(path / "export" for path in begins)) if begins else ()
        cost = cost_of("train.py", *how, "--max-steps", steps, "--ckpt-every", steps, "--log-every", steps,
                       "--seed", seed, *start)  # fmt: skip
        frames = steps * frames_per_step(how)
        found = {"steps": steps, "frames": frames, **_told(run, frames), **cost._asdict(), "recipe": told}
        cli.write_json(run / "cost.json", found)
    return json.loads((run / "cost.json").read_text())


def train_on(run: Path, data: Path, steps: int, seed: int, how: Sequence = ()) -> None:
    """Train the demo's model on other videos, unless it is there; one that was broken off goes on.

    With fusion c_norm: with c a model with a memory overflowed in a film.

    Args:
        how: more arguments of train.py.
    """
    import demo

    spec = run / "export/pipeline.json"
    if not spec.exists() or json.loads(spec.read_text())["step"] < steps:
        run.mkdir(parents=True, exist_ok=True)
        how = (*demo.TRAINING.split(), "--fusion", "c_norm", *how, "--seed", seed, "--max-steps", steps)
        kept = ("--ckpt-every", min(KEPT, steps))
        command = ("train.py", "--data-path", data, "--experiment-dir", run, *how, *kept)
        demo.call(*command, log=run / "train.log", threads=1)


def recipe(how: Sequence, steps: int, seed: int, begins: Sequence[Path]) -> str:
    """Arguments of a training without its folders, files of arguments read, and those of what it begins with."""
    words = list(map(str, how))
    for name in ("--experiment-dir", "--data-path"):
        place = words.index(name)
        del words[place : place + 2]
    files = [shlex.split(Path(word[1:]).read_text(), comments=True) if word[:1] == "@" else [word] for word in words]
    before = [json.loads((run / "cost.json").read_text())["recipe"] for run in begins]
    own = " ".join(word for file in files for word in file) + f" --max-steps {steps} --seed {seed}"
    return " | ".join([*before, own])


def frames_per_step(how: Sequence) -> int:
    """Frames that the optimiser sees in a step of train.py with these arguments: of clips as many as were prepared."""
    import train

    args = train.parse([*map(str, how)])
    clips = args.data_path / "prepared.json"
    return args.batch_size * (args.predict_frames or json.loads(clips.read_text())["facts"]["clip_frames"])


def _told(run: Path, frames: int) -> dict:
    """What a run's own files tell of it."""
    from models import load_model

    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    stage, model = json.loads((run / "run.json").read_text())["arguments"]["stage"], load_model(run / "export")
    numbers = sum(p.numel() for p in model.parameters())
    return {"step_seconds": frames / last["images_per_s"], "parameters": numbers, "skipped": last["skipped_steps"],
            "learning": model.set_stage(stage) if stage else numbers}  # fmt: skip


def sampled(task: str, run: Path, work: Path, frames: int, real: list, how: Sequence) -> dict:
    """Figures of films that a script makes of a run, as many as real clips; what it took, too. The films are removed.

    Args:
        task: joint, a2v or v2a. frames: of a film. real: clips that fix the detectors' threshold. how: arguments.
    """
    films = work / f"films_{task}"
    shutil.rmtree(films, ignore_errors=True)
    cost = cost_of(GIVEN.get(task, "sample.py"), "--model-ckpt", run / "export", "--results-dir", films,
                   "--num-videos", len(real), "--device", "cpu", *how)  # fmt: skip
    seconds = json.loads((films / "run.json").read_text())["seconds"]
    made = films_in(films, frames)
    found = {**judged(task, made, real), "seconds_a_clip": seconds / len(made), **cost._asdict()}
    shutil.rmtree(films)
    return found

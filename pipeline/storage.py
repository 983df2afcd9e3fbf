"""What training leaves on disk: checkpoints and folders that are complete or not there, and a journal."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

log = logging.getLogger("train")


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well, and vanishes otherwise."""
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def checkpoints(experiment: Path) -> list[Path]:
    """Complete checkpoints of an experiment, oldest first."""
    return sorted((experiment / "checkpoints").glob("step_*"))


def resume(accelerator: Accelerator, experiment: Path, **facts) -> int:
    """Load the newest checkpoint; returns the step to go on with, 0 without one.

    Args:
        facts: what must be as it was when the checkpoint was written, such as seed=0, global_batch=64.
    Raises:
        ValueError: one of them is not.
    """
    for half in (experiment / "checkpoints").glob(".step_*.part"):
        log.warning("%s was left half-written and is ignored", half)
    if not (found := checkpoints(experiment)):
        return 0
    stored = json.loads((found[-1] / "facts.json").read_text())
    for name, value in facts.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{found[-1]} was trained with {name} {stored.get(name)}, not {value}; repeat the run's own arguments "
                "or choose another --experiment-dir"
            )
    accelerator.load_state(str(found[-1]))
    return stored["step"]


def save_checkpoint(accelerator: Accelerator, experiment: Path, step: int, limit: int, **facts) -> None:
    """checkpoints/step_NNNNNNN with all that resuming needs; the `limit` newest are kept. Called by every process."""
    folder = experiment / "checkpoints"
    part, final = folder / f".step_{step:07d}.part", folder / f"step_{step:07d}"
    if accelerator.is_main_process:
        for half in folder.glob(".step_*.part"):
            shutil.rmtree(half)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (part / "facts.json").write_text(json.dumps({"step": step, **facts}))
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        for old in checkpoints(experiment)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


class Journal:
    """log.jsonl and the trackers, without lines of steps that a resumed run does again."""

    def __init__(self, accelerator: Accelerator, experiment: Path, first_step: int):
        self.accelerator, self.path = accelerator, experiment / "log.jsonl"
        if not accelerator.is_main_process:
            return
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines(True) if line.endswith("\n")]
            part = self.path.with_suffix(".part")
            part.write_text("".join(line for line in lines if json.loads(line)["step"] <= first_step))
            part.replace(self.path)
        accelerator.init_trackers("")

    def write(self, record: dict) -> None:
        """Append what `Meter.read` gave; lists become one curve per bin of flow time."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        flat = {}
        for key, value in record.items():
            if isinstance(value, list):
                bins = enumerate(value)
                flat |= {f"{key}/t_{i / len(value):.1f}": error for i, error in bins if error is not None}
            else:
                flat[key] = value
        self.accelerator.log(flat, record["step"])

"""What training leaves on disk: checkpoints that are complete or not there, and a journal."""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import LoggerType, broadcast_object_list
from safetensors import SafetensorError
from torch import nn

from pipeline.avcodec import AVCodec
from pipeline.whole import readable, replaced_folder
from training.lora import merged, save_adapter

if TYPE_CHECKING:
    from training.sharding import State  # imports what is slow

FACTS = "facts.json"  # of a checkpoint: its step, what must not change, the CRC-32 of each file and of these facts
BLOCK = 2**24  # bytes of a file in memory at once
log = logging.getLogger("train")


def checkpoints(experiment: Path) -> list[Path]:
    """Complete checkpoints of an experiment, oldest first."""
    return sorted((experiment / "checkpoints").glob("step_*"))


def resume(accelerator: Accelerator, state: "State", experiment: Path, **facts) -> int:
    """Load the newest checkpoint that is whole; returns the step to go on with, 0 without one.

    Args:
        facts: what must be as it was when the checkpoint was written, such as seed=0, global_batch=64.
    Raises:
        ValueError: one of them is not, or no checkpoint is whole.
    """
    for half in (experiment / "checkpoints").glob(".step_*.part"):
        log.warning("%s was left half-written and is ignored", half)
    found = checkpoints(experiment)
    newest = [next((path for path in reversed(found) if _whole(path)), None) if accelerator.is_main_process else None]
    broadcast_object_list(newest)  # one process reads them all
    if not found:
        return 0
    if newest[0] is None:
        raise ValueError(f"none of the checkpoints in {experiment / 'checkpoints'} is whole; remove them to start anew")
    stored = json.loads((newest[0] / FACTS).read_text())
    for name, value in facts.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{newest[0]} was trained with {name} {stored.get(name)}, not {value}; repeat the run's own arguments "
                "or choose another --experiment-dir"
            )
    if state.sharded != (sharded := stored.get("sharded", False)):
        raise ValueError(
            f"{newest[0]} was saved {'in shards' if sharded else 'whole'}, and these processes keep weights "
            f"{'in shards' if state.sharded else 'whole'}; launch with the accelerate config of the run, or choose "
            "another --experiment-dir"
        )
    state.load(newest[0]) if sharded else accelerator.load_state(str(newest[0]))
    return stored["step"]


def _whole(folder: Path) -> bool:
    """Whether each file of a checkpoint is the one that was written."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        broken = [FACTS] if facts.pop("crc") != _crc_of(facts) else []
        broken += [name for name, crc in facts["files"].items() if _crc(folder / name) != crc]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        broken = [f"{FACTS} ({error})"]
    if broken:
        log.warning("%s is damaged (%s); the one before it is taken", folder, ", ".join(broken))
    return not broken


def _crc_of(facts: dict) -> int:
    """CRC-32 of facts, as JSON keeps them."""
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _crc(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def save_checkpoint(accelerator: Accelerator, state: "State", experiment: Path, step: int, limit: int, **facts) -> None:
    """checkpoints/step_NNNNNNN with all that resuming needs; the `limit` newest are kept. Called by every process.

    Raises:
        OSError: it cannot be written, as on a full disk; the checkpoints before it stay.
    """
    folder = experiment / "checkpoints"
    part, final = folder / f".step_{step:07d}.part", folder / f"step_{step:07d}"
    if accelerator.is_main_process:
        for half in folder.glob(".step_*.part"):
            shutil.rmtree(half)
    accelerator.wait_for_everyone()
    with _written(part, checkpoints(experiment)):
        state.save(part) if state.sharded else accelerator.save_state(str(part))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            readable(part)
            files = {path.name: _crc(path) for path in sorted(part.iterdir()) if path.is_file()}
            facts = {"step": step, **facts, "sharded": state.sharded, "files": files}
            (part / FACTS).write_text(json.dumps(facts | {"crc": _crc_of(facts)}))
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        for old in checkpoints(experiment)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


@contextmanager
def _written(part: Path, kept: list[Path]) -> Iterator[None]:
    """What goes wrong while a folder is written becomes one sentence, and frees the disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        shutil.rmtree(part, ignore_errors=True)
        last = f"the same command goes on from {kept[-1]}" if kept else "there is none before it"
        raise OSError(
            f"checkpoint {part} cannot be written ({str(error).splitlines()[0]}); free some disk; {last}"
        ) from error


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
        folder = LoggerType.TENSORBOARD in accelerator.log_with  # which has the experiment's name already
        accelerator.init_trackers("" if folder else experiment.name)

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


def export(model: nn.Module, codec: AVCodec, experiment: Path, step: int, base: str | None) -> None:
    """export/: a self-describing checkpoint of a plain model; adapter/ beside it with LoRA.

    Args:
        base: what the run began with, which an adapter belongs to.
    """
    if hasattr(model, "peft_config"):
        save_adapter(model, experiment / "adapter", {"step": step, "base": base})
        model = merged(model)
    with replaced_folder(experiment / "export") as part:
        model.save_pretrained(part)
        codec.save(part)
        replace(codec.spec, step=step).save(part)

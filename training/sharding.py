"""What training changes (weights, optimiser, averages) where each process holds a share of it: FSDP2 of accelerate.

check_sharding(accelerator)                 # before accelerator.prepare(model, optimiser)
state = State(model, optimiser, ema)        # as this process holds it: in shards, or whole
state.save(folder)                          # ... and state.load(folder) at another number of processes
state.averaged(plain)                       # a plain model with the averaged weights, gathered
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor

from training.ema import EMA


def check_sharding(accelerator: Accelerator) -> None:
    """Let processes that share weights out compute as those that keep them whole do.

    accelerate would round inputs, flow times among them, and the sums of gradients to the type of mixed precision. So
    shards travel in the type of the weights, and autocast rounds what it rounds everywhere.

    Raises:
        ValueError: accelerate is told to shard in a way that is not supported.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 is not supported; set fsdp_version: 2, as in configs/accelerate/fsdp_8.yaml")
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


@dataclass(frozen=True)
class State:
    """What training changes, as this process holds it: in shards, or whole.

    Args:
        model: without a wrapper. ema: of its trainable parameters, in their order. scaler: of fp16, else None.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    ema: EMA
    scaler: torch.amp.GradScaler | None = None

    @property
    def sharded(self) -> bool:
        return any(isinstance(p, DTensor) for p in self.model.parameters())

    def save(self, folder: Path) -> None:
        """Each process writes its shards, as safetensors: nothing is ever unpickled. Called by all.

        Raises:
            OSError: one of them cannot.
        """
        try:
            checkpoint.save(
                self._tensors(), storage_writer=checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
            )
        except CheckpointException as error:
            raise OSError(_first_line(error)) from error

    def load(self, folder: Path) -> None:
        """Each process reads its shards from what any number of processes wrote. Called by all.

        Raises:
            ValueError: the folder holds something else.
        """
        tensors = self._tensors()
        try:
            checkpoint.load(tensors, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)))
        except CheckpointException as error:
            raise ValueError(f"{folder} cannot be read ({_first_line(error)}); choose another one") from error
        self.ema.optimization_step = tensors["ema.calls"].item()
        if self.scaler is not None:
            kinds = {name: type(x) for name, x in self.scaler.state_dict().items()}
            self.scaler.load_state_dict({name: kind(tensors[f"scaler.{name}"].item()) for name, kind in kinds.items()})

    def averaged(self, plain: nn.Module) -> nn.Module | None:
        """A copy of a plain model, on the CPU, with the averaged weights; None unless this is the main process.

        Args:
            plain: this model on the meta device, as it was before it was sharded. With shards, all processes call.
        """
        main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        weights = {}
        for name, x in (self.model.state_dict() | self._shadows()).items():
            x = x.full_tensor() if isinstance(x, DTensor) else x
            if main:
                weights[name] = x.detach().to("cpu", copy=True)
        if not main:
            return None
        model = copy.deepcopy(plain)
        model.load_state_dict(weights, assign=True)
        return model

    def _shadows(self) -> dict[str, Tensor]:
        """Averaged weights by the names of their parameters."""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return dict(zip(names, self.ema.shadow_params))

    def _tensors(self) -> dict[str, Tensor]:
        """All of it by name: weights, averages and moments are the very tensors, numbers are copies."""
        moments = get_optimizer_state_dict(self.model, self.optimiser)["state"]
        numbers = {} if self.scaler is None else self.scaler.state_dict()
        return {
            **{f"model.{name}": x for name, x in self.model.state_dict().items()},
            **{f"ema.{name}": x for name, x in self._shadows().items()},
            **{f"optimiser.{name}.{key}": x for name, of in moments.items() for key, x in of.items()},
            **{f"scaler.{name}": torch.tensor(x) for name, x in numbers.items()},
            "ema.calls": torch.tensor(self.ema.optimization_step),
        }


def _first_line(error: CheckpointException) -> str:
    """What went wrong, in the words of the first process that failed."""
    return str(next(iter(error.failures.values()))[0]).splitlines()[0]

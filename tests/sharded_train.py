"""train.py as `accelerate launch --config_file configs/accelerate/fsdp_8.yaml` starts it, without GPUs: for torchrun.

accelerate shares weights out on accelerators only, so its state is told that these processes have some; all that
follows is accelerate's own and that of the settings file. Each process leaves ranks/rank_N.json in the experiment:
what it holds. One step of the run is not finite, in the last process.
"""

import json
import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import train
import training.draws
from tests import small_train

CONFIG = Path(__file__).parents[1] / "configs/accelerate/fsdp_8.yaml"
BROKEN = 2  # the step that is not finite


def broken_step(draw):
    """Draws, whose last clip is not finite at one step of the run, for the process that has it."""

    def drawn(self, step, *clips):
        inputs = draw(self, step, *clips)
        if step == BROKEN and int(os.environ.get("RANK", 0)) + 1 == int(os.environ.get("WORLD_SIZE", 1)):
            inputs["v"][-1] *= math.nan
        return inputs

    return drawn


def as_with_accelerators(start):
    """The start of accelerate's state, with the end that it has where there are accelerators."""

    def started(state, *args, fsdp_plugin=None, **how):
        start(state, *args, **how)
        if state.distributed_type == DistributedType.MULTI_CPU:
            if state._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state._mixed_precision)
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    return started


def what_it_holds(model, optimiser, ema) -> dict:
    """Units, dtype of the flow times, and how many numbers of each tensor this process holds, of how many."""
    from torch.distributed.fsdp import FSDPModule

    def size(x) -> list[int]:
        return [x.to_local().numel(), x.numel()] if hasattr(x, "to_local") else [x.numel(), -1]

    params = dict(model.named_parameters())
    trained = {name: p for name, p in params.items() if p.requires_grad}
    return {
        "world": int(os.environ["WORLD_SIZE"]),
        "units": [name for name, part in model.named_modules() if isinstance(part, FSDPModule)],
        "weights": {name: size(p) for name, p in params.items()},
        "averages": {name: size(x) for name, x in zip(trained, ema.shadow_params)},
        "moments": {name: size(optimiser.state[p]["exp_avg"]) for name, p in trained.items()},
    }


def main() -> None:
    settings = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    os.environ |= {name.upper(): str(value) for name, value in settings.items()}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    AcceleratorState.__init__ = as_with_accelerators(AcceleratorState.__init__)
    training.draws.Draws.__call__ = broken_step(training.draws.Draws.__call__)
    held, dtypes, prepare, register = {}, set(), Accelerator.prepare, Accelerator.register_for_checkpointing

    def prepared(self, model, optimiser):
        model, optimiser = prepare(self, model, optimiser)
        model.video_time.register_forward_pre_hook(lambda _, args: dtypes.add(str(args[0].dtype)))
        held.update(model=model, optimiser=optimiser)
        return model, optimiser

    Accelerator.prepare = prepared
    Accelerator.register_for_checkpointing = lambda self, ema: held.update(ema=ema) or register(self, ema)
    small_train.main()
    folder = train.parse(sys.argv[1:]).experiment_dir / "ranks"
    folder.mkdir(exist_ok=True)
    facts = {**what_it_holds(**held), "times": sorted(dtypes)}
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    train.cli.run(main)

"""What a run of train.py says of itself: what it would take, and why it stops."""

import json
import resource
import statistics
from argparse import Namespace

import torch
from accelerate import Accelerator
from torch import nn

from data.clips import ClipDataset
from data.order import ClipOrder
from models.system_costs import Costs
from training.storage import checkpoints


def dry_report(args: Namespace, accelerator: Accelerator, model: nn.Module, costs: Costs, clips: int) -> str:
    """What a run would take, from its first steps: the first one warms up and is left out."""
    ranks, device = accelerator.num_processes, accelerator.device
    journal = [json.loads(line) for line in (args.experiment_dir / "log.jsonl").read_text().splitlines()]
    images = args.predict_frames * args.batch_size * ranks
    seconds = statistics.median(images / record["images_per_s"] for record in journal[1:])
    peak = (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # fmt: skip
    hours, size = seconds * args.whole / 3600, sum(p.numel() for p in model.parameters())
    fusion = f", fusion {args.fusion}" if "fusion" in model._hub_mixin_config else ""
    return (
        f"{args.model}{fusion}: {size / 1e6:.1f} million parameters\n"
        f"{clips} clips, {clips / (args.batch_size * ranks):.1f} steps per epoch of {args.batch_size} clips on each of "
        f"{ranks} process{'es' * (ranks > 1)}\n"
        f"{seconds:.3g} s per step, peak memory {peak / 2**30:.1f} GiB of a process on {device}\n"
        f"{planned_memory(args, accelerator, costs)}\n"
        f"{args.whole} steps would take {hours:.3g} hours"
    )


def planned_memory(args: Namespace, accelerator: Accelerator, costs: Costs) -> str:
    """What a GPU would hold, from the formulas of its system."""
    strategy = "fsdp" if accelerator.distributed_type.value == "FSDP" else "ddp"
    precision = "fp32" if accelerator.mixed_precision == "no" else "bf16"
    clips = args.batch_size // args.micro_batches
    plan = costs.memory_plan(clips, accelerator.num_processes, strategy, precision)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in vars(plan).items() if size)
    stage = f", stage {args.stage}" if args.stage else ""
    return f"planned for a GPU in {precision}{stage}: {plan.total / 2**30:.2f} GiB ({parts})"


def complaint(args: Namespace, first: int, dataset: ClipDataset, order: ClipOrder) -> str:
    """What to say when the loss stays not finite: since when, on which files, and what is left."""
    files = sorted({dataset.path(i) for i in order.at(first)})
    kept = [path.name for path in checkpoints(args.experiment_dir)]  # skipped steps change no weights
    good = [name for name in kept if name <= f"step_{first:07d}"] or kept[:1]
    return (
        f"loss or gradient is not finite since step {first} (files {', '.join(files[:4])}); the last good checkpoint "
        f"of {args.experiment_dir} is {good[-1] if good else 'none'}; lower --lr or take --fusion c_norm"
    )

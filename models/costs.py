"""What a model costs, from formulas alone: parameters, operations, memory, time. No model is built.

    costs = COSTS["r-flav"](FLAV_presets["FLAV-B/1"])
    costs.parameters, costs.training_flops(16), costs.memory_plan(16, gpus=8)

A new system is one class and one line in COSTS. `python -m models.costs` prints the tables of docs/scale.md.
"""

from collections.abc import Mapping

from models.avlink import AVLink_presets
from models.avlink_costs import AVLinkCosts
from models.flav import FLAV_presets
from models.flav_costs import FLAVCosts
from models.syncflow import SyncFlow_presets
from models.syncflow_costs import SyncFlowCosts
from models.system_costs import STRATEGIES, Costs

COSTS: dict[str, type[Costs]] = {costs.kind.system: costs for costs in (FLAVCosts, SyncFlowCosts, AVLinkCosts)}
GPUS = (1, 8, 64)
CLIPS = {"video": 16, "audio": 16, "joint": 2}  # per GPU in SyncFlow's stages; the paper's, which names none for video
LINK_CLIPS = {"video": 32, "audio": 128, "v2a": 16, "a2v": 16, "link": 16}  # per GPU in AV-Link's; the paper's
LINK_STEPS = {"video": 250_000, "audio": 100_000, "v2a": 50_000, "a2v": 50_000}  # of them in the paper
STEPS = {"audio": 150_000, "joint": 20_000}  # of them in the paper


def tables() -> str:
    """The tables of docs/scale.md, in Markdown."""
    return "\n\n".join([flav_tables(), syncflow_tables(), avlink_tables()])


def flav_tables() -> str:
    """R-FLAV's models at 16 clips per GPU."""
    models = {name: FLAVCosts({**FLAV_presets[name], "grad_ckpt": True}) for name in
              ("FLAV-B/1", "FLAV-L/1", "FLAV-XL/2")}  # fmt: skip
    whole = {name: FLAVCosts({**costs.config, "grad_ckpt": False}) for name, costs in models.items()}
    head = "| model | parameters | forward, one clip | step, 16 clips | activations | no grad-ckpt | seconds per step |"
    rows = [
        f"| {name} | {costs.parameters:,} | {_step_cells(costs, whole[name], 16)} |" for name, costs in models.items()
    ]
    plans = [_plan_row(name, costs, gpus, 16) for name, costs in models.items() for gpus in GPUS]
    return "\n".join([head, _rule(head), *rows, "", *_plan_head("model"), *plans])


def syncflow_tables() -> str:
    """The stages of SyncFlow-XL/2 at the paper's clips per GPU."""
    return _stage_tables(SyncFlowCosts, SyncFlow_presets["SyncFlow-XL/2"], CLIPS, STEPS)


def avlink_tables() -> str:
    """The stages of AVLink-L at the paper's clips per GPU."""
    return _stage_tables(AVLinkCosts, AVLink_presets["AVLink-L"], LINK_CLIPS, LINK_STEPS)


def _stage_tables(kind: type[Costs], config: Mapping, batches: Mapping[str, int], all_steps: Mapping[str, int]) -> str:
    """Of stages at so many clips per GPU, and steps where the paper names them."""
    stages = {stage: kind({**config, "grad_ckpt": True}, stage=stage) for stage in batches}
    head = ("| stage | trained | frozen | clips | forward, one clip | step | activations | no grad-ckpt | "
            "seconds per step | hours |")  # fmt: skip
    rows = []
    for stage, costs in stages.items():
        clips, steps = batches[stage], all_steps.get(stage)
        hours = f"{steps * costs.seconds(clips) / 3600:.1f} for {steps:,} steps" if steps else "-"
        cells = _step_cells(costs, kind(config, stage=stage), clips)
        frozen = costs.parameters - costs.trained
        rows.append(f"| {stage} | {costs.trained:,} | {frozen:,} | {clips} | {cells} | {hours} |")
    plans = [_plan_row(stage, costs, gpus, batches[stage]) for stage, costs in stages.items() for gpus in GPUS]
    return "\n".join([head, _rule(head), *rows, "", *_plan_head("stage"), *plans])


def _rule(head: str) -> str:
    return "| --- |" + " ---: |" * (head.count("|") - 2)


def _step_cells(costs: Costs, whole: Costs, batch: int) -> str:
    """Operations, activations with layers recomputed and whole, and seconds."""
    kept, all_kept = (c.activation_bytes(batch, "bf16") / 1e9 for c in (costs, whole))
    flops = f"{costs.forward_flops() / 1e12:.2f} TFLOP | {costs.training_flops(batch) / 1e12:.0f} TFLOP"
    return f"{flops} | {kept:.1f} GB | {all_kept:.1f} GB | {costs.seconds(batch):.2f}"


def _plan_head(first: str) -> list[str]:
    head = f"| {first} | GPUs | clips per step | step | DDP | FSDP | clips per second |"
    return [head, _rule(head)]


def _plan_row(name: str, costs: Costs, gpus: int, batch: int) -> str:
    ddp, fsdp = (costs.memory_plan(batch, gpus, strategy).total / 1e9 for strategy in STRATEGIES)
    step = costs.training_flops(batch) * gpus / 1e15
    rate = batch * gpus / costs.seconds(batch)
    return f"| {name} | {gpus} | {batch * gpus} | {step:.2f} PFLOP | {ddp:.1f} GB | {fsdp:.1f} GB | {rate:.1f} |"


if __name__ == "__main__":
    print(tables())

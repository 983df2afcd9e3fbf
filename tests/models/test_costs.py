"""Costs by formula against the real model: counted on the meta device, or kept by autograd in a small one."""

import contextlib
import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import FLAV, FLAV_presets, costs
from models.flav_costs import FLAVCosts
from models.fusion import FUSIONS
from models.text import Text
from tests.kept import held

SMALL = dict(
    latent_size=8, patch_size=2, hidden_size=48, depth=2, num_heads=4, mlp_ratio=2.5, n_mels=20, audio_fr=3,
    predict_frames=6, num_classes=0,
)  # fmt: skip
VARIANTS = [
    dict(),
    dict(patch_size=1, latent_size=6, in_channels=3),
    dict(patch_size=8, num_heads=3),  # one token a frame
    dict(num_classes=5),
    dict(num_classes=5, class_dropout_prob=0.0, prediction="data"),
    dict(causal_attn=False, audio_fr=7),
    dict(text_width=40),
    dict(hidden_size=64, depth=3, predict_frames=2),
    dict(memory_ages=[1, 2, 4]),
]
RUNS = [(3, 2), (2, 1)]  # batch, T


def built(config, device="meta"):
    with torch.device(device):
        return FLAV(**config)


def called(model, batch, T):
    """The outputs of one call, summed."""
    device, memory = model.video_patch_pos.device, bool(model.memory_ages)
    T += len(model.memory_ages)
    v, a = (torch.zeros(batch, T, *shape, device=device) for shape in model.frame_shapes)
    y = torch.zeros(batch, dtype=torch.long, device=device) if model.num_classes else None
    tokens = torch.zeros(batch, 3, model.text_width, device=device)
    text = Text(tokens, torch.ones(batch, 3, dtype=torch.bool, device=device)) if model.text_width else None
    dv, da = model(v, a, torch.full((batch, T), 0.5, device=device), y, text=text, memory=memory)
    return dv.sum() + da.sum()


def counted(config, batch, T):
    """Operations of a forward pass; the meta device takes attention apart into its two products, which torch counts."""
    model = built(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        called(model, batch, T)
    return counter.get_total_flops()


def counted_in_training(config, batch, T):
    model = built(config)
    with FlopCounterMode(display=False) as counter:
        called(model, batch, T).backward()
    return counter.get_total_flops()


def kept_bytes(model, batch, T, precision="fp32"):
    """Bytes that autograd saves in a forward pass, and in one block's recomputation: (activations, copied weights)."""
    inputs, block, device = [], model.blocks[-1], model.video_patch_pos.device.type
    handle = block.register_forward_pre_hook(lambda _, args: inputs.append(args))
    bf16 = torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with held(model) as bytes_now, bf16:
        out = [called(model, batch, T)]  # with its graph
        handle.remove()
        if model.grad_ckpt:
            out.append(block(*inputs[0]))
        return bytes_now()


@pytest.mark.parametrize("variant, fusion", [*((v, "c") for v in VARIANTS), *(({}, f) for f in FUSIONS)], ids=str)
def test_parameters_are_the_models_own(variant, fusion):
    config = {**SMALL, **variant, "fusion": fusion}
    assert FLAVCosts(config).parameters == sum(p.numel() for p in built(config).parameters())


@pytest.mark.parametrize("name", ["FLAV-XL/2", "FLAV-L/1", "FLAV-S/8", "FLAV-tiny"])
def test_parameters_of_presets_are_their_own(name):
    config = {**FLAV_presets[name], "num_classes": 9}
    assert FLAVCosts(config).parameters == sum(p.numel() for p in built(config).parameters())


def test_base_model_has_the_published_number_of_parameters():
    assert FLAVCosts(FLAV_presets["FLAV-B/1"]).parameters == 324_013_316


@pytest.mark.parametrize("name, depth", [("FLAV-B/1", 2), ("FLAV-XL/2", 2), ("FLAV-tiny", 8)])
def test_operations_of_presets_are_those_that_torch_counts(name, depth):
    config = {**FLAV_presets[name], "depth": depth}
    assert FLAVCosts(config).forward_flops(2) == counted(config, 2, 10)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("batch, T", [(2, 1), (3, 4)])
def test_operations_of_every_fusion_are_those_that_torch_counts(fusion, batch, T):
    config = {**SMALL, "fusion": fusion}
    assert FLAVCosts(config, T).forward_flops(batch) == counted(config, batch, T)


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
def test_operations_of_every_variant_are_those_that_torch_counts(variant):
    config = {**SMALL, **variant, "fusion": "c"}
    assert FLAVCosts(config, 2).forward_flops(2) == counted(config, 2, 2)


@pytest.mark.parametrize("fusion, grad_ckpt", [*((fusion, False) for fusion in FUSIONS), ("c", True)])
def test_operations_of_a_training_step_are_those_that_torch_counts(fusion, grad_ckpt):
    config = {**SMALL, "depth": 1 + (fusion == "c"), "fusion": fusion, "grad_ckpt": grad_ckpt, "num_classes": 5}
    assert FLAVCosts(config, 3).training_flops(2) == counted_in_training(config, 2, 3)


def test_training_is_three_forward_passes_and_four_when_blocks_are_recomputed():
    config = FLAV_presets["FLAV-B/1"]
    whole, recomputed = FLAVCosts(config), FLAVCosts({**config, "grad_ckpt": True})
    assert whole.training_flops() / whole.forward_flops() == pytest.approx(3, rel=1e-3)
    assert recomputed.training_flops() / whole.forward_flops() == pytest.approx(4, rel=1e-3)
    assert recomputed.training_flops(recomputed=False) == whole.training_flops()


@pytest.mark.parametrize("grad_ckpt, precision", [(False, "fp32"), (True, "bf16")])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_activations_are_what_autograd_keeps_on_the_cpu(fusion, grad_ckpt, precision):
    variants = VARIANTS if fusion == "c" else VARIANTS[::3]  # what a variant changes lies outside the fusion
    for variant, (batch, T) in zip(variants, itertools.cycle(RUNS)):
        config = {**SMALL, **variant, "fusion": fusion, "grad_ckpt": grad_ckpt}
        kept, _ = kept_bytes(built(config, "cpu"), batch, T, precision)
        assert FLAVCosts(config, T).activation_bytes(batch, precision) == pytest.approx(kept, rel=1e-3), (variant, T)


@pytest.mark.gpu
@pytest.mark.parametrize("grad_ckpt", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_activations_are_what_autograd_keeps_on_a_gpu(fusion, grad_ckpt):
    config = {**FLAV_presets["FLAV-S/2"], "depth": 2, "fusion": fusion, "grad_ckpt": grad_ckpt}
    kept, _ = kept_bytes(built(config, "cuda"), 2, 10, "bf16")
    assert FLAVCosts(config, 10).activation_bytes(2, "bf16") == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_bf16_copies_in_the_plan_are_those_that_autograd_keeps(grad_ckpt):
    config = {**SMALL, "grad_ckpt": grad_ckpt}
    _, copied = kept_bytes(built(config, "cpu"), 1, 2, "bf16")
    plan = FLAVCosts(config).memory_plan(1, 1, "ddp", "bf16")
    assert plan.working == copied > 0
    assert FLAVCosts(config).memory_plan(1, 1, "ddp", "fp32").working == 0


def test_plan_of_one_gpu_is_what_a_training_step_holds():
    model = built(SMALL, "cpu")
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    called(model, 1, 2).backward()
    optimiser.step()
    moments = [x for state in optimiser.state.values() for name, x in state.items() if name != "step"]
    plan = FLAVCosts(SMALL).memory_plan(2, 1, "ddp", "fp32")
    assert plan.weights == plan.ema == sum(p.nbytes for p in model.parameters())
    assert plan.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert plan.optimiser == sum(x.nbytes for x in moments)
    assert plan.activations == FLAVCosts(SMALL).activation_bytes(2)
    assert plan.total == 5 * plan.weights + plan.activations


def test_fsdp_shards_what_ddp_repeats_and_neither_changes_activations():
    config = FLAV_presets["FLAV-L/1"]
    alone, ddp, fsdp = (FLAVCosts(config).memory_plan(4, gpus, s) for gpus, s in [(1, "ddp"), (8, "ddp"), (8, "fsdp")])
    assert ddp.weights == alone.weights and ddp.gradients == 2 * alone.gradients  # the second in buckets
    for name in ("weights", "gradients", "optimiser", "ema"):
        assert 8 * getattr(fsdp, name) == pytest.approx(getattr(alone, name), rel=1e-6)
    assert fsdp.activations == ddp.activations == alone.activations
    assert FLAVCosts(config).memory_plan(4, 1, "fsdp") == alone  # nothing to share with


def test_fsdp_gathers_a_few_blocks_whatever_the_depth():
    shallow, deep = (FLAVCosts({**SMALL, "depth": depth}).memory_plan(1, 8, "fsdp").working for depth in (4, 40))
    block = (FLAVCosts({**SMALL, "depth": 40}).parameters - FLAVCosts({**SMALL, "depth": 4}).parameters) // 36
    assert shallow == deep and 6 * block < deep < 10 * block


def test_seconds_are_operations_over_the_rate_reached():
    config = FLAV_presets["FLAV-B/1"]
    seconds = FLAVCosts(config).seconds(16, peak_flops=1e15, mfu=0.5)
    assert seconds * 5e14 == pytest.approx(FLAVCosts(config).training_flops(16))
    assert FLAVCosts(config).seconds(32, peak_flops=2e15, mfu=0.5) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda: FLAVCosts({"width": 3}).parameters, r"\['width'\], which FLAV does not take; leave it out"),
        (lambda: FLAVCosts({"fusion": "z"}).parameters, "fusion 'z' is unknown; choose one of none, a, b"),
        (lambda: FLAVCosts({"latent_size": 9}).parameters, "9 is not a multiple of patch size 2; choose"),
        (
            lambda: FLAVCosts(SMALL, 7).forward_flops(),
            "of 7 frames does not fit; give at least 1 clip and 1 to 6 frames",
        ),
        (lambda: FLAVCosts(SMALL).forward_flops(0), "batch 0 of 6 frames"),
        (lambda: FLAVCosts(SMALL).activation_bytes(precision="fp8"), "'fp8' is unknown; choose one of fp32, bf16"),
        (lambda: FLAVCosts(SMALL).memory_plan(1, 8, "zero"), "'zero' on 8 GPUs is no plan; give one of ddp, fsdp"),
        (lambda: FLAVCosts(SMALL).memory_plan(1, 0), "on 0 GPUs is no plan; give .* at least 1 GPU"),
        (lambda: FLAVCosts(SMALL).seconds(1, mfu=40), "MFU 40 is no rate; give a peak above 0, MFU in"),
    ],
)
def test_what_has_no_cost_is_refused_with_the_remedy(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_page_shows_the_tables_that_the_command_prints():
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    assert costs.flav_tables() in page and "planned on paper, not measured" in page

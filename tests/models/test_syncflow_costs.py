"""SyncFlow's costs by formula against the real model, by stage: counted on the meta device, or held by autograd."""

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import models.syncflow
from diffusion.clip import sample_clip
from diffusion.guidance import clip_guided
from models import MODELS, costs
from models.syncflow import STAGES, SyncFlow, SyncFlow_presets
from models.syncflow_costs import ClipSize, SyncFlowCosts
from models.text import Text
from tests.kept import held

SMALL = dict(in_channels=3, patch_size=2, audio_channels=6, text_width=10, hidden_size=32, depth=2, num_heads=2)
VARIANTS = [
    dict(),
    dict(pool_frames=True, audio_patch=3),
    dict(adaptor=False),
    dict(adaptor=False, audio_text=True, patch_size=1),
    dict(tap="spatial"),
    dict(audio_text=True, num_heads=4),
]
CLIP, BATCH = ClipSize(T=3, height=4, width=6, sound=12, text=7), 2
layer_norm = F.layer_norm


def built(config, stage, device="meta"):
    with torch.device(device):
        model = SyncFlow(**config)
    model.set_stage(stage)
    return model


def inputs(model, batch=BATCH, clip=CLIP):
    """v, a, t and a text of all its tokens, on the device of the model."""
    like = {"device": model.video.null_text.device}
    v = torch.zeros(batch, clip.T, model.in_channels, clip.height, clip.width, **like)
    a = torch.zeros(batch, clip.sound, model.audio_channels, **like)
    tokens, mask = torch.zeros(batch, clip.text, model.text_width, **like), torch.ones(batch, clip.text, **like).bool()
    return v, a, torch.full((batch,), 0.3, **like), Text(tokens, mask)


def called(model, **how):
    """The outputs of one call that learn, summed."""
    v, a, t, text = inputs(model, **how)
    return sum(x.sum() for x in model(v, a, t, text=text) if x.requires_grad or not torch.is_grad_enabled())


@contextlib.contextmanager
def precisely(precision):
    """Autocast of bf16, in which layer norms are float32 as on a GPU, where a CPU leaves them as they come."""
    with pytest.MonkeyPatch.context() as patch:
        if precision == "bf16":
            patch.setattr(F, "layer_norm", lambda x, *args, **how: layer_norm(x.float(), *args, **how))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            yield


def kept_bytes(model, precision):
    """Most that autograd holds after a forward pass, or while one layer of a kind is recomputed on top of it."""
    calls, run = {}, models.syncflow.run

    def noted(grad_ckpt, layer, *args):
        if grad_ckpt and torch.is_grad_enabled():
            calls[type(layer)] = (layer, args)
        return run(grad_ckpt, layer, *args)

    with pytest.MonkeyPatch.context() as patch, held(model) as bytes_now, precisely(precision):
        patch.setattr(models.syncflow, "run", noted)
        out = called(model)
        found = [bytes_now()]
        for layer, args in calls.values():
            again = layer(*args)
            found.append(bytes_now())
            del again
    del out
    return tuple(map(max, zip(*found)))


# ----------------------------------------------------------------------------------------------- parameters, operations


@pytest.mark.parametrize("name", SyncFlow_presets)
@pytest.mark.parametrize("variant", [None, *SyncFlow.variants])
def test_parameters_of_presets_and_variants_are_their_own_in_each_stage(name, variant):
    config = {**SyncFlow_presets[name], "depth": 2, **SyncFlow.variants.get(variant, {})}
    model = built(config, "joint")
    for stage in STAGES:
        formula = SyncFlowCosts(config, stage=stage)
        assert formula.trained == model.set_stage(stage)
        assert formula.parameters == sum(p.numel() for p in model.parameters())


def test_papers_model_and_the_tiny_one_have_their_numbers_of_parameters():
    for name, count in (("SyncFlow-XL/2", 1_989_121_744), ("SyncFlow-tiny", 3_542_992)):
        assert SyncFlowCosts(SyncFlow_presets[name]).parameters == count
    assert sum(p.numel() for p in built(SyncFlow_presets["SyncFlow-XL/2"], "joint").parameters()) == 1_989_121_744


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parameters_and_operations_of_every_variant_are_those_that_torch_counts(variant):
    config = {**SMALL, **variant}
    model, formula = built(config, "joint"), SyncFlowCosts(config, CLIP)
    assert formula.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        called(model)
    assert formula.forward_flops(BATCH) == counter.get_total_flops()


@pytest.mark.parametrize(
    "stage, variant, grad_ckpt",
    [
        *((stage, {}, grad_ckpt) for stage in STAGES for grad_ckpt in (False, True)),
        ("audio", {"tap": "spatial", "pool_frames": True}, True),
        ("audio", {"adaptor": False, "audio_text": True}, False),
        ("joint", {"audio_text": True, "audio_patch": 3}, False),
    ],
)
def test_operations_of_a_training_step_are_those_that_torch_counts(stage, variant, grad_ckpt):
    config = {**SMALL, "depth": 1, **variant, "grad_ckpt": grad_ckpt}
    with FlopCounterMode(display=False) as counter:
        called(built(config, stage)).backward()
    assert SyncFlowCosts(config, CLIP, stage).training_flops(BATCH) == counter.get_total_flops()


def test_operations_of_a_preset_at_the_papers_clip_are_those_that_torch_counts():
    config = {**SyncFlow_presets["SyncFlow-XL/2"], "depth": 1}
    formula = SyncFlowCosts(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        called(built(config, "joint"), batch=1, clip=formula.clip)
    assert formula.forward_flops() == counter.get_total_flops()


def test_sampling_is_as_many_passes_as_steps_and_twice_as_many_with_guidance():
    model, formula = built(SMALL, "joint"), SyncFlowCosts(SMALL, CLIP)
    v, a, _, text = inputs(model)
    twice = Text(torch.cat([text.tokens] * 2), torch.cat([text.mask] * 2))
    velocity = lambda v, a, t, t_a, text: model(v, a, t.to("meta").float(), t_a=t_a.to("meta").float(), text=text)  # noqa: E731
    for scale in (1, 6):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            sample_clip(clip_guided(velocity, scale, {"text": text}, {"text": twice}), v, a, steps=3)
        assert formula.sampling_flops(BATCH, steps=3, guided=scale > 1) == counter.get_total_flops()
    assert formula.sampling_flops() == 100 * formula.forward_flops()  # the paper's


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of norms in bf16
@pytest.mark.parametrize("grad_ckpt", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_what_autograd_holds_on_the_cpu(stage, grad_ckpt):
    """Checkpoints keep positions and masks, too, which the formulas leave out."""
    for variant in VARIANTS:
        config = {**SMALL, **variant, "grad_ckpt": grad_ckpt}
        model, formula = built(config, stage, "cpu"), SyncFlowCosts(config, CLIP, stage)
        for precision in ("fp32", "bf16"):
            kept, copied = kept_bytes(model, precision)
            expected = formula.activation_bytes(BATCH, precision)
            assert expected <= kept <= expected + 200 * grad_ckpt, (variant, precision)
            assert formula.memory_plan(BATCH, 1, "ddp", precision).working == copied, (variant, precision)


@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_stage_of_sound_holds_nothing_of_the_pictures_tower_and_joint_does(grad_ckpt):
    """Bytes after the tower of pictures, and after both."""
    found = {}
    for stage in ("audio", "joint"):
        model = built({**SMALL, "depth": 4, "grad_ckpt": grad_ckpt}, stage, "cpu")
        see = model._see
        with held(model) as bytes_now:
            model._see = lambda *args: (see(*args), found.update({stage: [bytes_now()[0]]}))[0]  # noqa: B023
            out = called(model)
            found[stage].append(bytes_now()[0])
        del out
    assert found["audio"][0] == 0 and found["joint"][0] > 0
    assert found["audio"][1] < found["joint"][1] - 0.9 * found["joint"][0]
    assert found["joint"][1] > 2 * found["audio"][1]


@pytest.mark.parametrize("stage", STAGES)
def test_plan_of_one_gpu_is_what_a_training_step_of_the_stage_holds(stage):
    model = built(SMALL, stage, "cpu")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    called(model).backward()
    optimiser.step()
    moments = [x for state in optimiser.state.values() for name, x in state.items() if name != "step"]
    plan = SyncFlowCosts(SMALL, CLIP, stage).memory_plan(BATCH, 1, "ddp", "fp32")
    assert plan.weights == sum(p.nbytes for p in model.parameters())
    assert plan.gradients == plan.ema == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert plan.optimiser == sum(x.nbytes for x in moments)


def test_shards_hold_their_part_of_what_is_frozen_too_and_gather_the_largest_layer_twice():
    config = SyncFlow_presets["SyncFlow-XL/2"]
    alone, shared = (SyncFlowCosts(config, stage="audio").memory_plan(1, gpus, "fsdp") for gpus in (1, 8))
    for name in ("weights", "gradients", "optimiser", "ema"):
        assert 8 * getattr(shared, name) == pytest.approx(getattr(alone, name), rel=1e-6)
    more = [SyncFlowCosts({**config, "depth": depth}, stage=stage).memory_plan(1, 8, "fsdp").working
            for depth, stage in ((2, "audio"), (9, "audio"), (2, "joint"))]  # fmt: skip
    video, sound = (sum(p.numel() for p in layer.parameters()) for layer in
                    (built({**config, "depth": 1}, "joint").get_submodule(name) for name in
                     ("video.layers.0", "sound.layers.0")))  # fmt: skip
    adaptor = sum(p.numel() for p in built({**config, "depth": 1}, "joint").sound["adaptors"].parameters())
    assert more[0] == more[1] and more[2] - more[0] == 2 * (video - sound - adaptor)  # gradients of one, in bf16


# ------------------------------------------------------------------------------------------------------- as a whole


def test_every_system_has_its_costs():
    assert {name: kind.kind for name, kind in costs.COSTS.items()} == MODELS


def test_costs_of_a_training_are_those_of_its_clips_and_its_window():
    """A frame's shapes for models that roll, a clip's for others."""
    clips = costs.COSTS["syncflow"].of_training(SMALL, ((3, 3, 4, 6), (12, 6)), 7, "audio")
    assert clips == SyncFlowCosts(SMALL, CLIP, "audio")
    assert costs.COSTS["syncflow"].of_training(SMALL, ((3, 3, 4, 6), (12, 6)), 0, None).clip.text == 1
    rolling = costs.COSTS["r-flav"].of_training({"predict_frames": 4}, ((4, 32, 32), (10, 256)), 0, None)
    assert rolling.forward_flops() == costs.FLAVCosts({}, 4).forward_flops()


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda: SyncFlowCosts({"width": 3}).parameters, r"\['width'\], which SyncFlow does not take; leave it out"),
        (
            lambda: SyncFlowCosts(SMALL, stage="all").trained,
            "stage 'all' is unknown; choose one of video, audio, joint",
        ),
        (lambda: SyncFlowCosts(SMALL, CLIP._replace(width=5)).forward_flops(), "does not fit; give .* sides that 2"),
        (lambda: SyncFlowCosts(SMALL, CLIP).activation_bytes(0), "batch 0 of ClipSize.* give at least 1 clip"),
    ],
)
def test_what_has_no_cost_is_refused_with_the_remedy(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_page_shows_the_tables_that_the_command_prints_and_what_the_paper_took():
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    config = {**SyncFlow_presets["SyncFlow-XL/2"], "grad_ckpt": True}
    formula, audio = SyncFlowCosts(config), SyncFlowCosts(config, stage="audio")
    assert costs.flav_tables() in costs.tables() and costs.syncflow_tables() in page
    assert f"{formula.parameters:,} parameters" in page and f"{formula.sampling_flops() / 1e15:.2f} PFLOP" in page
    hours, papers = 150_000 * audio.seconds(16) / 3600, 140 * 3600 / 150_000
    assert "took about 140 h on 32 H100 (quoted" in page and f"{papers:.2f} s a step" in page
    assert f"the estimate's {hours:.1f} h and {audio.seconds(16):.2f} s" in page

"""AV-Link's costs by formula against the real model, by stage: counted on the meta device, or held by autograd."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models.avlink
from models import costs
from models.avlink import STAGES, AVLink, AVLink_presets
from models.avlink_costs import AVLinkCosts
from models.system_costs import ClipSize
from models.text import Text
from tests.kept import held
from tests.models.test_syncflow_costs import precisely

SMALL = dict(in_channels=3, patch_size=2, audio_channels=6, audio_patch=2, text_width=10, hidden_size=32, depth=3,
             num_heads=2, link_size=48, link_heads=4, placement=[1, 2])  # fmt: skip
VARIANTS = [
    dict(),
    dict(text_width=None, patch_size=1),
    dict(reinject=False),
    dict(placement=[2]),
    dict(placement=[1, 3], reinject=False),
    dict(link="symcross"),
    dict(link="direct"),
    dict(link="direct", reinject=False),
    dict(source="network", reinject=False),
]
CLIP, BATCH = ClipSize(T=3, height=4, width=6, sound=12, text=7), 2
OF_PRESETS = ClipSize(T=3, height=8, width=8, sound=10, text=7)  # the patches of each preset divide it
CALLS = {"video": dict(alone="picture"), "audio": dict(alone="sound"), "v2a": dict(given="picture"),
         "a2v": dict(given="sound"), "link": {}}  # fmt: skip


def built(config, stage, device="meta"):
    with torch.device(device):
        model = AVLink(**config)
    model.set_stage(stage)
    return model


def called(model, stage, batch=BATCH, clip=CLIP):
    """The outputs of a call of the stage, summed."""
    like = {"device": model.picture.null_text.device}
    v = torch.zeros(batch, clip.T, model.in_channels, clip.height, clip.width, **like)
    a, t = torch.zeros(batch, clip.sound, model.audio_channels, **like), torch.full((batch,), 0.3, **like)
    tokens, mask = torch.zeros(batch, clip.text, model.text_width, **like), torch.ones(batch, clip.text, **like).bool()
    text = Text(tokens, mask) if model.text_width else None
    made = model(v, a, t, t_a=t + 0, text=text, **CALLS[stage])
    return sum(x.sum() for x in made if x is not None)


# ----------------------------------------------------------------------------------------------- parameters, operations


@pytest.mark.parametrize("name", AVLink_presets)
@pytest.mark.parametrize("variant", [None, "no-reinject", "symcross", "direct", "after-1", "network"])
def test_parameters_of_presets_and_variants_are_their_own_in_each_stage(name, variant):
    config = {**AVLink_presets[name], **AVLink.variants.get(variant, {})}
    stages = [stage for stage in STAGES if variant != "network" or stage not in ("a2v", "link")]
    model = built(config, "v2a")
    for stage in stages:
        formula = AVLinkCosts(config, OF_PRESETS, stage)
        assert formula.trained == model.set_stage(stage)
        assert formula.parameters == sum(p.numel() for p in model.parameters())


def test_papers_model_and_the_tiny_one_have_their_numbers_of_parameters():
    for name, count in (("AVLink-L", 1_463_246_988), ("AVLink-tiny", 6_426_816)):
        assert AVLinkCosts(AVLink_presets[name], OF_PRESETS).parameters == count


CASES = [
    *(("v2a", variant) for variant in VARIANTS),
    *(("a2v", variant) for variant in VARIANTS[:5]),
    *((stage, VARIANTS[1]) for stage in ("video", "audio", "link")),
]


@pytest.mark.parametrize("stage, variant", CASES, ids=str)
def test_operations_of_every_variant_and_stage_are_those_that_torch_counts(stage, variant):
    config = {**SMALL, **variant, "grad_ckpt": variant in VARIANTS[:3]}
    with FlopCounterMode(display=False) as counter:
        called(built(config, stage), stage).backward()
    assert AVLinkCosts(config, CLIP, stage).training_flops(BATCH) == counter.get_total_flops()


@pytest.mark.parametrize("stage", ["video", "v2a"])
def test_operations_of_a_call_are_those_that_torch_counts(stage):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        called(built(SMALL, stage).requires_grad_(False), stage)
    assert AVLinkCosts(SMALL, CLIP, stage).forward_flops(BATCH) == counter.get_total_flops()


def test_guidance_costs_the_tower_of_the_made_side_alone():
    config = AVLink_presets["AVLink-L"]
    for stage, tower in (("v2a", "audio"), ("a2v", "video")):
        linked, alone = (AVLinkCosts(config, stage=name).forward_flops() for name in (stage, tower))
        formula = AVLinkCosts(config, stage=stage)
        assert formula.sampling_flops(guided=False) == 64 * linked
        assert formula.sampling_flops() == 64 * (linked + alone)


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of norms in bf16
@pytest.mark.parametrize("stage, variant", CASES, ids=str)
def test_activations_are_what_autograd_holds_on_the_cpu(stage, variant):
    """Within 2 %: behind the link to the byte in fp32, but for positions; in bf16 copies are estimated."""
    formula = AVLinkCosts({**SMALL, **variant}, CLIP, stage)
    for precision in ("fp32", "bf16"):
        model = built(formula.config, stage, "cpu")
        with held(model) as bytes_now, precisely(precision):
            out = called(model, stage)
            kept = sum(bytes_now())  # copies of what is frozen are none of a parameter's that learns
        del out
        plan = formula.memory_plan(BATCH, 1, "ddp", precision)
        exactly = precision == "fp32" and formula.parameters != formula.trained and stage in ("v2a", "a2v", "link")
        assert plan.activations + plan.working == pytest.approx(kept, rel=0.004 if exactly else 0.02)


@pytest.mark.parametrize("stage", ["video", "v2a"])
def test_recomputed_layers_keep_what_enters_them_and_one_at_a_time_the_rest(stage, monkeypatch):
    """On clips of more tokens, beside which conditions, which are not counted, are few."""
    config = {**SMALL, "grad_ckpt": True, "text_width": None}
    clip, calls = ClipSize(T=6, height=16, width=16, sound=24, text=1), {}
    formula, model = AVLinkCosts(config, clip, stage), built(config, stage, "cpu")
    run = models.avlink.run

    def noted(grad_ckpt, layer, *args):
        calls[args[0].shape, str(args[-1])] = (layer, args)
        return run(grad_ckpt, layer, *args)

    monkeypatch.setattr(models.avlink, "run", noted)
    with held(model) as bytes_now:
        out = called(model, stage, clip=clip)
        found = [bytes_now()[0]]
        for layer, args in calls.values():
            again = layer(*args)
            found.append(bytes_now()[0])
            del again
    del out
    assert formula.activation_bytes(BATCH) == pytest.approx(max(found), rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_plan_of_one_gpu_is_what_a_training_step_of_the_stage_holds(stage):
    model = built(SMALL, stage, "cpu")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    called(model, stage).backward()
    optimiser.step()
    moments = [x for state in optimiser.state.values() for name, x in state.items() if name != "step"]
    plan = AVLinkCosts(SMALL, CLIP, stage).memory_plan(BATCH, 1, "ddp", "fp32")
    assert plan.weights == sum(p.nbytes for p in model.parameters())
    assert plan.gradients == plan.ema == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert plan.optimiser == sum(x.nbytes for x in moments)


# ------------------------------------------------------------------------------------------------------- as a whole


def test_costs_of_a_training_are_those_of_its_clips():
    assert AVLinkCosts.of_training(SMALL, ((3, 3, 4, 6), (12, 6)), 7, "v2a") == AVLinkCosts(SMALL, CLIP, "v2a")
    assert AVLinkCosts.of_training(SMALL, ((3, 3, 4, 6), (12, 6)), 0, None).clip.text == 1


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda: AVLinkCosts({"width": 3}).parameters, r"\['width'\], which AVLink does not take; leave it out"),
        (
            lambda: AVLinkCosts(SMALL, stage="joint").trained,
            "stage 'joint' is unknown; choose one of video, audio, v2a",
        ),
        (lambda: AVLinkCosts(VARIANTS[-1], stage="link").trained, "stage link tells the picture of the sound, and one"),
        (lambda: AVLinkCosts(SMALL, CLIP._replace(width=5)).forward_flops(), "does not fit; give .* sides that 2"),
    ],
)
def test_what_has_no_cost_is_refused_with_the_remedy(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_page_shows_the_tables_that_the_command_prints_and_the_numbers_of_its_prose():
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    formulas = {stage: AVLinkCosts(AVLink_presets["AVLink-L"], stage=stage) for stage in STAGES}
    assert costs.avlink_tables() in page and costs.avlink_tables() in costs.tables()
    link = formulas["link"]
    assert f"{link.parameters:,} parameters" in page and f"{link.trained:,} of its link" in page
    for stage in ("video", "audio"):
        assert f"{formulas[stage].trained:,}" in page
    for stage in ("v2a", "a2v"):
        assert f"{formulas[stage].sampling_flops() / 1e15:.1f} PFLOP" in page

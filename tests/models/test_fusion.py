"""SyncFlow's adaptor and AV-Link's block inside R-FLAV: where they stand, what they start as, what they compare."""

import json

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

from models import FLAV, fusion, load_model
from models.flav_costs import FLAVCosts
from models.fusion import FUSIONS, Adaptor, Link
from models.layers import rotated
from pipeline.spec import fetch_checkpoint
from tests.models.test_costs import SMALL as PRICED
from tests.models.test_costs import built, counted, counted_in_training, kept_bytes
from tests.models.test_costs import called as priced_call
from tests.models.test_flav import SMALL, difference, random_inputs, random_model
from tests.randomised import randomised

D, HEADS, T, L, S = 16, 2, 4, 3, 5


def tokens(L=L, S=S):
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, T, n, D, generator=rng, dtype=torch.float64) for n in (L, S, 1, 1))


def called(one, v, a, c_v, c_a, causal=True):
    return one(v, a, c_v.squeeze(2), c_a.squeeze(2), causal)[:2]


@pytest.fixture
def link():
    return randomised(Link(D, HEADS), 0.3).double()


# -------------------------------------------------------------------------------------------------- start and place


@pytest.mark.parametrize("name", ["a", "adaptor", "link"])
@torch.no_grad()
def test_fresh_fusion_between_trained_branches_changes_no_bit(name):
    """Row A10: what --init-from copies are the branches, so a linked model begins as the two that are linked."""
    alone, (v, a, t) = random_model(fusion="none"), random_inputs()
    joined = FLAV(**SMALL, fusion=name).double()
    joined.load_state_dict(joined.state_dict() | alone.state_dict())
    before, after = alone(v, a, t, t_a=t / 2), joined(v, a, t, t_a=t / 2)
    assert all(torch.equal(*pair) for pair in zip(before, after))


@torch.no_grad()
def test_fusion_stands_in_the_blocks_of_the_list_and_runs_there_alone():
    """Rows A7 and A31."""
    model, (v, a, t) = random_model(fusion="link", fusion_blocks=[2, 0], depth=4), random_inputs()
    ran = []
    for i, block in enumerate(model.blocks):
        block.fusion.register_forward_hook(lambda one, _, __, i=i: ran.append((i, type(one) is Link)))
    model(v, a, t)
    assert ran == [(0, True), (1, False), (2, True), (3, False)]
    linked = {name.split(".")[1] for name, _ in model.named_parameters() if ".fusion." in name}
    assert linked == {"0", "2"}


@pytest.mark.parametrize("blocks", [[], [2], [-1], [0, 0]])
def test_places_that_are_no_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match=r"are not some of 2 blocks, each once; choose from 0 to 1"):
        FLAV(**SMALL, fusion="link", fusion_blocks=blocks)
    with pytest.raises(ValueError, match="are not some of 2 blocks"):
        _ = FLAVCosts({**PRICED, "fusion": "link", "fusion_blocks": blocks}).parameters


@pytest.mark.parametrize("times", [[0.96], [0.0, 0.8], [0.96, 1.2]])
def test_conditioning_times_outside_their_range_are_refused(times):
    with pytest.raises(ValueError, match=r"are not two in \(0, 1\], of a given picture and of a given sound"):
        FLAV(**SMALL, fusion="link", conditioning_times=times)


def test_place_and_times_come_back_with_the_weights_and_have_no_released_form(tmp_path):
    model = random_model(fusion="link", fusion_blocks=[1], conditioning_times=[0.9, 1.0]).float()
    model.save_pretrained(tmp_path / "own")
    again = load_model(fetch_checkpoint(tmp_path / "own"))
    assert again.conditioning_times == [0.9, 1.0] and again.methods[0] == "held" and again.takes == ("picture", "sound")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    assert FLAV(**SMALL, fusion="adaptor", conditioning_times=[1, 1]).takes == ("picture",)
    for changes in ({"fusion_blocks": [0]}, {"conditioning_times": [0.9, 0.8]}):
        with pytest.raises(ValueError, match="has no released form; only one in all blocks, trained jointly"):
            random_model(**changes).export_official(tmp_path)


@pytest.mark.parametrize("value", ["1", [0.5], ["0"], [[0]], [True]])
def test_place_in_a_damaged_config_is_refused(tmp_path, value):
    random_model(fusion="link", fusion_blocks=[1]).float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"fusion_blocks": value}))
    with pytest.raises(ValueError, match=r"has fusion_blocks .*which it cannot be"):
        fetch_checkpoint(tmp_path)


def test_stage_link_trains_the_fusion_and_nothing_else():
    """Row A12."""
    model, (v, a, t) = random_model(fusion="link", fusion_blocks=[1]), random_inputs()
    learning = model.set_stage("link")
    sum(x.square().mean() for x in model(v, a, t)).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in model.named_parameters() if ".fusion." in name}
    assert learning == sum(p.numel() for p in model.blocks[1].fusion.parameters())


def test_stage_that_is_none_or_has_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="stage 'video' is unknown; choose one of link"):
        FLAV(**SMALL, fusion="link").set_stage("video")
    with pytest.raises(ValueError, match="this one has no weights; take --fusion link"):
        FLAV(**SMALL, fusion="b").set_stage("link")


# --------------------------------------------------------------------------------------------------- what it computes


@torch.no_grad()
def test_swapping_the_sides_and_their_weights_swaps_the_outputs(link):
    """Row A8; with one token a frame on both sides, which then stand at the same times."""
    v, a, c_v, c_a = tokens(1, 1)
    swapped = randomised(Link(D, HEADS), 0.3).double()
    halves = {"video": link.audio.state_dict(), "audio": link.video.state_dict()}
    for state in halves.values():  # the conditions come in the other order
        one, two = state["adaln.weight"].chunk(2, dim=1)
        state["adaln.weight"] = torch.cat([two, one], 1)
    swapped.video.load_state_dict(halves["video"])
    swapped.audio.load_state_dict(halves["audio"])
    there, back = called(link, v, a, c_v, c_a), called(swapped, a, v, c_a, c_v)
    assert difference(there, back[::-1]) < 1e-12
    assert difference(there, called(link, a, v, c_a, c_v)[::-1]) > 1e-3


@torch.no_grad()
def test_either_condition_changes_both_sides_and_which_is_whose_matters(link):
    """Row A10, NA3."""
    v, a, c_v, c_a = tokens()
    base = called(link, v, a, c_v, c_a)
    for other in ((c_v + 1, c_a), (c_v, c_a + 1), (c_a, c_v)):
        assert all((x - y).abs().max() > 1e-3 for x, y in zip(base, called(link, v, a, *other)))


def test_tokens_of_both_sides_stand_in_the_same_clock():
    """Row A9: a frame's patches where its first mel frame is."""
    v, a = (torch.zeros(2, T, n, D) for n in (L, S))
    of_v, of_a = fusion.times(v, a)
    assert of_v.tolist() == [[k * S] * L for k in range(T)]
    assert of_a.tolist() == [[k * S + s for s in range(S)] for k in range(T)]


@pytest.mark.parametrize("name", ["adaptor", "link"])
@torch.no_grad()
def test_both_sides_a_second_later_change_nothing_and_one_of_them_does(name, monkeypatch):
    """Row A9: logits depend on differences of time."""
    one, inputs, times = randomised(FUSIONS[name](D, HEADS), 0.3).double(), tokens(), fusion.times
    base = called(one, *inputs)
    for later_v, later_a, same in ((10 * S, 10 * S, True), (10 * S, 0, False), (0, 10 * S, False)):
        shifted = lambda v, a, at, by=(later_v, later_a): tuple(x + y for x, y in zip(times(v, a, at), by))  # noqa: E731
        monkeypatch.setattr(fusion, "times", shifted)
        change = difference(base, called(one, *inputs))
        assert change < 1e-5 if same else change > 1e-4


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_link_equals_attention_under_a_dense_mask_over_frames(link, causal):
    """AV-Link, Eq. 3 and 4, written out."""
    v, a, c_v, c_a = tokens()
    both, sides = F.silu(torch.cat([c_v, c_a], -1)), (link.video, link.audio)
    mods = [side.adaln(both).chunk(6, -1) for side in sides]
    inner = [side.enter(x) for side, x in zip(sides, (v, a))]
    plain = [F.layer_norm(x, (D,), eps=1e-6) * (1 + m[1]) + m[0] for x, m in zip(inner, mods)]
    parts = []
    for side, x in zip(sides, plain):
        q, k, w = side.attn.qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(-3)
        q, k = (F.rms_norm(y, y.shape[-1:], one.weight, 1e-6) for y, one in ((q, side.query_norm), (k, side.key_norm)))
        parts.append([y.flatten(-2) for y in (q, k, w)])
    q, k, w = (rearrange(torch.cat(pair, 2), "b t n (h d) -> b h (t n) d", h=HEADS) for pair in zip(*parts))
    frame = torch.arange(T).repeat_interleave(L + S)
    at = torch.cat([torch.arange(T)[:, None].expand(T, L) * S, torch.arange(T * S).view(T, S)], 1).flatten()
    mask = frame[:, None] >= frame if causal else None
    out = F.scaled_dot_product_attention(rotated(q, at), rotated(k, at), w, attn_mask=mask)
    out = rearrange(out, "b h (t n) d -> b t n (h d)", t=T).split([L, S], 2)
    found = []
    for x, h, side, m, seen in zip((v, a), inner, sides, mods, out):
        gained = m[2] * side.attn.proj(seen)
        more = m[5] * side.mlp(F.layer_norm(h + gained, (D,), eps=1e-6) * (1 + m[4]) + m[3])
        found.append(x + side.back(gained + more))
    assert difference(found, called(link, v, a, c_v, c_a, causal)) < 1e-12


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_adaptor_equals_attention_under_a_dense_mask_over_frames(causal):
    """SyncFlow's h = Linear(LayerNorm(SelfAttn(F))), and the sound's cross-attention to it, written out."""
    one, (v, a, c_v, c_a) = randomised(Adaptor(D, HEADS), 0.3).double(), tokens()
    x, z = (F.layer_norm(y, (D,), eps=1e-6).flatten(1, 2) for y in (v, a))
    at, at_a = torch.arange(T).repeat_interleave(L) * S, torch.arange(T * S)
    frame, frame_a = torch.arange(T).repeat_interleave(L), torch.arange(T).repeat_interleave(S)

    def attended(q, k, w, mask):
        q, k, w = (rearrange(y, "b n (h d) -> b h n d", h=HEADS) for y in (q, k, w))
        out = F.scaled_dot_product_attention(rotated(q, at if len(mask) == T * L else at_a), rotated(k, at), w,
                                             attn_mask=mask if causal else None)  # fmt: skip
        return rearrange(out, "b h n d -> b n (h d)")

    seen = one.patch_attn.proj(attended(*one.patch_attn.qkv(x).chunk(3, -1), frame[:, None] >= frame))
    h = one.linear(F.layer_norm(seen, (D,), one.norm.weight, one.norm.bias))
    k, w = one.cross["key_value"](h).chunk(2, -1)
    heard = attended(one.cross["query"](z), k, w, frame_a[:, None] >= frame)
    expected = a + one.cross["proj"](heard).view_as(a)
    assert difference((v, expected), called(one, v, a, c_v, c_a, causal)) < 1e-12


def test_heads_of_odd_width_are_refused():
    for name in ("adaptor", "link"):
        with pytest.raises(ValueError, match="hidden size 12 does not give 4 heads of even width"):
            FUSIONS[name](12, 4)


# --------------------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("blocks", [[1], [2, 0]])
def test_costs_of_a_fusion_in_some_blocks_are_exact(blocks):
    config = {**PRICED, "depth": 3, "fusion": "link", "fusion_blocks": blocks}
    costs = FLAVCosts(config, 2)
    assert costs.parameters == sum(p.numel() for p in built(config).parameters())
    assert costs.forward_flops(2) == counted(config, 2, 2)
    for grad_ckpt in (False, True):
        config["grad_ckpt"] = grad_ckpt
        assert FLAVCosts(config, 2).training_flops(2) == counted_in_training(config, 2, 2)
    kept, copied = kept_bytes(built({**config, "grad_ckpt": False}, "cpu"), 2, 2, "bf16")
    costs = FLAVCosts({**config, "grad_ckpt": False}, 2)
    assert costs.activation_bytes(2, "bf16") == pytest.approx(kept, rel=1e-3)
    assert costs.memory_plan(2, 1, "ddp", "bf16").working == copied


@pytest.mark.parametrize("blocks", [None, [1], [2, 0]])
def test_costs_of_stage_link_are_of_what_learns_and_at_most_a_little_more_than_a_step_takes(blocks):
    config = {**PRICED, "depth": 3, "fusion": "link", "fusion_blocks": blocks}
    model, traced = (built(config, device) for device in ("cpu", "meta"))
    costs = FLAVCosts.of_training(config, ((), ()), stage="link")
    assert costs.trained == model.set_stage("link") == traced.set_stage("link") < costs.parameters
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        priced_call(traced, 2, PRICED["predict_frames"]).backward()
    assert 1 <= costs.training_flops(2) / counter.get_total_flops() < 1.12
    assert 1 <= costs.activation_bytes(2) / kept_bytes(model, 2, PRICED["predict_frames"])[0] < 2
    plan = costs.memory_plan(2, 1, "ddp", "fp32")
    assert (plan.gradients, plan.optimiser, plan.ema) == (4 * costs.trained, 8 * costs.trained, 4 * costs.trained)

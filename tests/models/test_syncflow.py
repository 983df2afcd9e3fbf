"""SyncFlow: who sees whom, what the sound hears and where from, frozen towers, any size and length."""

import hashlib
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from models.layers import CrossAttention, grid_positions, rotated
from models.syncflow import STAGES, SyncFlow, SyncFlow_presets
from models.text import Text, padded
from tests.closeness import assert_close_by_size
from tests.randomised import randomised

CONFIG = dict(in_channels=3, patch_size=2, audio_channels=6, text_width=5, hidden_size=16, depth=2, num_heads=2)


def syncflow(**more) -> SyncFlow:
    """A tiny model with random weights everywhere, in float64."""
    return randomised(SyncFlow(**CONFIG | more), 0.4).double()


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clip(B=2, T=3, H=4, W=6, N=11):
    return gaussian(B, T, 3, H, W), gaussian(B, N, 6, seed=1), torch.linspace(0.2, 0.7, B, dtype=torch.float64)


def words(*lengths, seed=2):
    return padded([gaussian(n, 5, seed=seed + i).float() for i, n in enumerate(lengths)], 5).to(torch.float64)


@pytest.fixture(scope="module")
def model():
    return syncflow()


# ------------------------------------------------------------------------------------------------------- who sees whom


def test_velocities_have_the_shapes_of_their_inputs_and_each_clip_is_alone(model):
    v, a, t = clip()
    text = words(3, 2)
    dv, da = model(v, a, t, text=text)
    assert dv.shape == v.shape and da.shape == a.shape
    alone = model(v[1:], a[1:], t[1:], text=text[1:])
    assert_close_by_size(alone[0], dv[1:])
    assert_close_by_size(alone[1], da[1:])


def test_sound_hears_the_picture_and_the_picture_not_the_sound(model):
    v, a, t = clip()
    dv, da = model(v, a, t)
    assert torch.equal(model(v, a + 1, t)[0], dv)
    assert (model(v + 1, a, t)[1] - da).abs().max() > 0.01


def test_spatial_attention_keeps_frames_apart_and_temporal_attention_places(model):
    x, c, text = gaussian(1, 3, 4, 16), gaussian(1, 6, 16), Text(gaussian(1, 1, 16), torch.ones(1, 1, dtype=torch.bool))
    layer, at = model.video["layers"][0], torch.arange(3.0)
    _, taps = layer(x, c, text, at)
    other = x.clone()
    other[:, 0] += 1
    _, moved = layer(other, c, text, at)
    assert torch.equal(taps["spatial"][:, 1:], moved["spatial"][:, 1:])
    other = x.clone()
    other[:, :, 0] += 1
    rows, others = (layer.temporal(z.transpose(1, 2), c, text, at)[1][0] for z in (x, other))
    assert torch.equal(rows[1:], others[1:]) and not torch.equal(rows[0], others[0])


@pytest.mark.parametrize("tap", ["temporal", "spatial"])
def test_sound_hears_the_output_of_the_attention_that_is_asked_for(tap):
    model, seen, heard = syncflow(tap=tap), [], []
    v, a, t = clip(B=1)
    for layer in model.video["layers"]:
        getattr(layer, tap).attn.register_forward_hook(lambda _, args, out: seen.append(out))
    for adaptor in model.sound["adaptors"]:
        adaptor.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    model(v, a, t)
    assert len(seen) == len(heard) == 2
    for out, tokens in zip(seen, heard):
        shown = out if tap == "spatial" else out.transpose(0, 1)  # (T,L,D)
        assert torch.equal(tokens[0], shown)


def test_picture_is_of_one_token_a_patch_and_sound_reads_all_of_them_and_the_time(model):
    seen = []
    handle = model.sound["layers"][0].cross.register_forward_pre_hook(lambda _, args: seen.append(args[1].shape[1]))
    v, a, t = clip()
    da = model(v, a, t)[1]
    handle.remove()
    assert seen == [3 * 2 * 3 + 1]
    assert (model(v, a, t, t_a=t + 0.1)[1] - da).abs().max() > 1e-3  # the time alone
    pooled = syncflow(pool_frames=True)
    pooled.sound["layers"][0].cross.register_forward_pre_hook(lambda _, args: seen.append(args[1].shape[1]))
    pooled(v, a, t)
    assert seen[1] == 3 + 1


def test_without_adaptors_the_sound_hears_no_picture_and_may_hear_the_text():
    v, a, t = clip()
    deaf = syncflow(adaptor=False)
    assert "adaptors" not in deaf.sound and torch.equal(deaf(v + 1, a, t)[1], deaf(v, a, t)[1])
    assert torch.equal(deaf(v, a, t, text=words(3, 2))[1], deaf(v, a, t)[1])
    told = syncflow(adaptor=False, audio_text=True)
    assert (told(v, a, t, text=words(3, 2))[1] - told(v, a, t)[1]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------------- text


def test_tokens_count_and_padding_does_not(model):
    v, a, t = clip()
    text = words(3, 2)
    longer = Text(torch.cat([text.tokens, gaussian(2, 4, 5)], 1), torch.cat([text.mask, torch.zeros(2, 4).bool()], 1))
    for one, two in zip(model(v, a, t, text=text), model(v, a, t, text=longer)):
        assert_close_by_size(one, two)
    fewer = Text(text.tokens, text.mask & torch.tensor([True, False, True]))
    assert (model(v, a, t, text=fewer)[0] - model(v, a, t, text=text)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["spatial", "temporal"])
def test_both_parts_of_a_layer_hear_the_text(part):
    model, (v, a, t) = syncflow(depth=1), clip()
    for name in {"spatial", "temporal"} - {part}:
        torch.nn.init.zeros_(getattr(model.video["layers"][0], name).text_attn.proj.weight)
    assert (model(v, a, t, text=words(3, 2))[0] - model(v, a, t)[0]).abs().max() > 1e-3


def test_row_without_tokens_is_the_learned_null_text(model):
    v, a, t = clip()
    text = words(3, 0)
    dv = model(v, a, t, text=text)[0]
    assert_close_by_size(dv[1], model(v, a, t)[0][1])
    assert (dv[0] - model(v, a, t)[0][0]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------ sizes and times


@pytest.mark.parametrize("T, H, W, N", [(1, 2, 2, 1), (5, 8, 4, 30), (3, 4, 10, 7)])
def test_one_set_of_weights_runs_at_any_size_and_length(model, T, H, W, N):
    v, a, t = clip(1, T, H, W, N)
    dv, da = model(v, a, t)
    assert dv.shape == v.shape and da.shape == a.shape and dv.isfinite().all() and da.isfinite().all()


def test_attention_depends_on_differences_of_positions_alone():
    attn, x = CrossAttention(16, 2).double(), gaussian(1, 5, 16)
    at = torch.tensor([0.0, 1.0, 2.5, 4.0, 7.0])
    assert_close_by_size(attn(x, at=at), attn(x, at=at + 50), share=1e-4)  # angles are float32
    assert (attn(x, at=at) - attn(x, at=at * 2)).abs().max() > 1e-4
    assert torch.allclose(rotated(x[:, None], at).norm(dim=-1), x[:, None].norm(dim=-1))


def test_sound_and_frame_of_the_same_second_have_the_same_position(model):
    """12 sound tokens and a frame are 0.25 s apart from 0 at 4 frames and 48 tokens a second."""
    fast = syncflow(video_rate=4.0, audio_rate=48.0)
    seen = {}
    fast.sound["layers"][0].cross.register_forward_pre_hook(lambda _, args: seen.update(at=args[2], frames=args[3]))
    v, a, t = clip(1, 3, 2, 2, 25)
    fast(v, a, t)
    assert seen["at"][[0, 12, 24]].tolist() == pytest.approx(seen["frames"][:3].tolist())


def test_queries_and_keys_of_any_size_give_the_same_logits():
    attn, x = CrossAttention(16, 2).double(), gaussian(1, 5, 16)
    out = attn(x)
    with torch.no_grad():
        attn.query.weight *= 100
        attn.query.bias *= 100
    assert_close_by_size(attn(x), out, share=1e-3)  # but for eps


def test_positions_of_a_grid_tell_rows_and_columns_apart():
    grid = grid_positions(3, 5, 16, torch.device("cpu")).unflatten(0, (3, 5))
    assert torch.equal(grid[1, :, :8], grid[1, :1, :8].expand(5, -1)) and torch.equal(
        grid[:, 2, 8:], grid[:1, 2, 8:].expand(3, -1)
    )
    assert len({tuple(x.tolist()) for x in grid.flatten(0, 1)}) == 15


def test_places_of_other_grids_are_spread_over_the_one_of_training():
    own = grid_positions(4, 4, 16, torch.device("cpu"), side=4)
    assert torch.equal(own, grid_positions(4, 4, 16, torch.device("cpu")))
    finer, wide = (
        grid_positions(*size, 16, torch.device("cpu"), side=4).unflatten(0, size) for size in ((8, 8), (2, 8))
    )
    assert torch.equal(finer[::2, ::2].flatten(0, 1), own)
    assert torch.equal(wide[:, :4].flatten(0, 1), own.unflatten(0, (4, 4))[:2].flatten(0, 1))  # of the same area


def test_model_spreads_places_over_the_latents_of_its_training():
    v, a, t = clip(H=8, W=8)
    small, large = syncflow(latent_size=4), syncflow(latent_size=8)
    large.load_state_dict(small.state_dict())
    assert (small(v, a, t)[0] - large(v, a, t)[0]).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------------------- stages


def digest(part) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in part.parameters())).hexdigest()


@pytest.mark.parametrize("stage", STAGES)
def test_stage_changes_its_parts_and_no_others(stage):
    model, (v, a, t) = syncflow(), clip()
    model.set_stage(stage)
    before = {name: digest(part) for name, part in model.named_children()}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(10):
        dv, da = model(v, a, t, text=words(3, 0))
        (dv.square().mean() * dv.requires_grad + da.square().mean()).backward()
        optimiser.step()
        optimiser.zero_grad()
    changed = {name for name, part in model.named_children() if digest(part) != before[name]}
    assert changed == set(STAGES[stage])


def test_joint_stage_moves_every_parameter():
    """Row S19: by its gradient alone, without weight decay."""
    model, (v, a, t) = syncflow(), clip()
    model.set_stage("joint")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    dv, da = model(v, a, t, text=words(3, 0))
    (dv.square().mean() + da.square().mean()).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_stage_of_sound_keeps_no_graph_through_the_picture_and_gives_the_gradients_of_a_whole_one():
    model, (v, a, t) = syncflow(), clip()
    model.set_stage("audio")
    dv, da = model(v, a, t)
    assert not dv.requires_grad and da.requires_grad
    da.square().mean().backward()
    frozen = [p.grad.clone() for p in model.sound.parameters()]
    model.set_stage("joint")
    model.zero_grad()
    model(v, a, t)[1].square().mean().backward()
    for one, p in zip(frozen, model.sound.parameters()):
        assert_close_by_size(one, p.grad)


@pytest.mark.parametrize("stage", ["audio", "joint"])
def test_checkpointed_layers_and_adaptors_run_twice_and_give_the_same_gradients_to_the_bit(stage):
    (v, a, t), grads, calls = clip(), [], []
    for grad_ckpt in (False, True):
        model = syncflow(grad_ckpt=grad_ckpt)
        model.set_stage(stage)
        for layer in (*model.sound["layers"], *model.sound["adaptors"], *model.video["layers"]):
            layer.register_forward_pre_hook(lambda module, _: calls.append(type(module).__name__))
        sum(x.square().mean() for x in model(v, a, t, text=words(3, 0))).backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
        times = 2 * (1 + grad_ckpt)
        heard = {"SoundLayer": times, "Adaptor": times, "VideoLayer": times if stage == "joint" else 2}
        assert Counter(calls) == heard
        calls.clear()
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


# ------------------------------------------------------------------------------------------------------- as a whole


def test_fresh_model_gives_nothing_and_data_prediction_leads_to_what_is_predicted():
    v, a, t = clip()
    dv, da = SyncFlow(**CONFIG).double()(v, a, t)
    assert dv.abs().max() == 0 == da.abs().max()
    dv, _ = SyncFlow(**CONFIG, prediction="data").double()(v, a, t)  # predicts 0
    torch.testing.assert_close(v + dv * (1 - t).view(-1, 1, 1, 1, 1), torch.zeros_like(v), rtol=0, atol=1e-12)


def test_model_is_saved_and_loaded(tmp_path):
    model, (v, a, t) = syncflow().float(), (x.float() for x in clip())
    model.save_pretrained(tmp_path)
    again = SyncFlow.from_pretrained(tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(model(v, a, t), again(v, a, t)))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors; give a folder that train.py exported"):
        SyncFlow.from_pretrained(tmp_path)


def test_papers_model_has_two_towers_of_28_layers_of_1152_and_2048_tokens():
    with torch.device("meta"):
        model = SyncFlow(**SyncFlow_presets["SyncFlow-XL/2"])
        tokens = model.video["embed"](torch.zeros(1, 8, 4, 32, 32))
    assert tokens.shape == (1, 8, 256, 1152)
    assert len(model.video["layers"]) == len(model.sound["layers"]) == len(model.sound["adaptors"]) == 28
    D, layers = 1152, sum(p.numel() for p in model.video["layers"].parameters())
    assert layers == pytest.approx(28 * 2 * 16 * D**2, rel=0.005)  # two parts: attentions 4 + 4, feed-forward 8


def test_two_layers_of_the_papers_model_take_a_step_on_a_cpu():
    model = SyncFlow(**SyncFlow_presets["SyncFlow-XL/2"] | {"depth": 2, "grad_ckpt": True})
    for name, p in model.named_parameters():
        if not p.any() and name.endswith("weight"):  # at the start it gives zeros, and nothing else would learn
            torch.nn.init.normal_(p, std=0.02)
    v, a, t = torch.randn(1, 2, 4, 4, 4), torch.randn(1, 5, 128), torch.tensor([0.4])
    dv, da = model(v, a, t, text=padded([torch.randn(3, 4096)], 4096))
    (F.mse_loss(dv, v) + F.mse_loss(da, a)).backward()
    before = [p.sum().item() for p in model.parameters()]
    torch.optim.SGD(model.parameters(), lr=1).step()
    learnt = [name for (name, p), old in zip(model.named_parameters(), before) if p.sum().item() != old]
    assert dv.isfinite().all() and da.isfinite().all() and all(p.isfinite().all() for p in model.parameters())
    assert len(learnt) > 0.9 * len(before) and {name.split(".")[0] for name in learnt} == {"video", "sound"}


@pytest.mark.parametrize("side", [16, 32, 64])  # of 128, 256 and 512 px
def test_papers_models_are_one_set_of_weights_for_all_sizes_and_stages(side):
    """Rows S22 and S33: its named models differ in stage, size and data, so every one loads the others' weights."""
    with torch.device("meta"):
        model = SyncFlow(**SyncFlow_presets["SyncFlow-XL/2"] | {"depth": 2})
        shapes = {name: p.shape for name, p in model.state_dict().items()}
        v, a = torch.zeros(1, 8, 4, side, side), torch.zeros(1, 100, 128)
        for stage in STAGES:
            model.set_stage(stage)
            dv, da = model(v, a, torch.zeros(1))
            assert (dv.shape, da.shape) == (v.shape, a.shape)
            assert {name: p.shape for name, p in model.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "wrong", [dict(v=(2, 3, 4, 4, 6)), dict(v=(2, 3, 3, 5, 6)), dict(a=(2, 11, 5)), dict(a=(3, 11, 6)), dict(t=(2, 3))]
)
def test_inputs_of_other_shapes_are_refused(model, wrong):
    shapes = dict(v=(2, 3, 3, 4, 6), a=(2, 11, 6), t=(2,)) | wrong
    with pytest.raises(ValueError, match="do not fit this model; it takes v"):
        model(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes.values()))


def test_what_is_unknown_is_refused(model):
    with pytest.raises(ValueError, match="text of width 7 does not fit this model, which takes width 5"):
        model(*clip(), text=padded([torch.zeros(1, 7)] * 2, 7))
    with pytest.raises(ValueError, match="stage 'all' is unknown; choose one of video, audio, joint"):
        model.set_stage("all")
    with pytest.raises(ValueError, match="tap 'text' with prediction 'velocity' is unknown"):
        syncflow(tap="text")

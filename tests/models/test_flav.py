"""The model against the official implementation, and the properties that sampling and streaming rest on."""

import json
import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from models import FLAV, FLAV_presets, layers, official
from models.fusion import FUSIONS, JointAttention
from models.layers import DATA_PREDICTION_FLOOR

CASES = ["fwd_uncond_p1", "fwd_causal_p2", "fwd_class_causal_p1", "fwd_class_p2"]


def released(case) -> FLAV:
    model = FLAV(**case.config)
    model.load(case.weights)
    return model.eval()


def flow_time(model_time):
    return (model_time.double() - 1) / 999


def audio_in(a):
    return rearrange(a, "b t 1 m s -> b t s m")


def assert_close(output, case, prefix="out"):
    tolerance = dict(atol=case.tolerance["abs"], rtol=case.tolerance["rel"])
    torch.testing.assert_close(output[0], case.tensors[f"{prefix}.v"], **tolerance)
    torch.testing.assert_close(output[1], audio_in(case.tensors[f"{prefix}.a"]), **tolerance)


def inputs(case):
    tensors = case.tensors
    return tensors["in.v"], audio_in(tensors["in.a"]), flow_time(tensors["in.t"])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_forward_equals_the_official_one(parity, name):
    case = parity(name)
    assert_close(released(case)(*inputs(case), y=case.tensors.get("in.y")), case)


@torch.no_grad()
def test_labels_dropped_per_branch_and_null_labels_equal_the_official_ones(parity):
    case = parity("fwd_class_causal_p1")
    model, null = released(case), torch.tensor(case.config["num_classes"])
    y = case.tensors["in.y"]
    y_v, y_a = (y.where(case.tensors[f"drop.uniform_{m}"] >= 0.1, null) for m in ("video", "audio"))
    assert not torch.equal(y_v, y_a), "the case must drop differently in the branches to be worth anything"
    assert_close(model(*inputs(case), y=y_v, y_a=y_a), case, "drop.out")
    assert_close(model(*inputs(case), y=null.expand(3)), case, "null.out")
    assert_close(model(*inputs(case)), case, "null.out")


def test_time_features_equal_the_official_ones(parity, monkeypatch):
    case = parity("time_features")
    t, cpu = flow_time(case.tensors["in.t"]), torch.device("cpu")
    ours = layers.frequencies(256, cpu)
    assert torch.equal(ours, torch.tensor([math.exp(x) for x in (-math.log(1e4) * torch.arange(128.0) / 128).tolist()]))
    # The reference machine's float32 exp rounded frequency 12 one bit up; with that bit everything must agree.
    theirs = ours.clone()
    theirs[12] = torch.nextafter(ours[12], torch.tensor(1.0))
    monkeypatch.setattr(layers, "frequencies", lambda *_: theirs)
    features = layers.time_features(t)
    torch.testing.assert_close(features, case.tensors["out.features"], atol=case.tolerance["abs"], rtol=0)


@pytest.mark.parametrize("name", ["fwd_uncond_p1", "fwd_class_causal_p1", "fwd_class_p2"])
def test_released_weights_export_back_unchanged(parity, name, tmp_path):
    case = parity(name)
    released(case).export_official(tmp_path)
    exported = load_file(tmp_path / "model.safetensors")
    assert exported.keys() == case.weights.keys()
    assert all(torch.equal(exported[k], case.weights[k]) for k in exported)
    again = FLAV.from_pretrained(tmp_path)
    assert_close(again(*inputs(case), y=case.tensors.get("in.y")), case)


def test_only_fusion_c_can_be_exported_to_the_released_form(tmp_path):
    model = FLAV(latent_size=4, hidden_size=8, depth=1, num_heads=1, fusion="b")
    with pytest.raises(ValueError, match=r"fusion 'b'.*no released form"):
        model.export_official(tmp_path)


def test_full_size_keys_and_counts_equal_the_official_ones(parity):
    manifest = parity("keys")
    known = json.loads((manifest.folder / "keys/full_keys.json").read_text())["models"]
    for name, facts in known.items():
        with torch.device("meta"):
            model = FLAV(**FLAV_presets[facts["preset"]], **{"num_classes": 0, **manifest.config[name]})
        state = official.to_official(model.state_dict())
        assert {k: list(v.shape) for k, v in state.items()} == facts["keys"], name
        assert sum(p.numel() for p in model.parameters()) == manifest.expected_parameters[name]


def test_presets_have_the_official_dimensions_and_parameter_counts(parity):
    presets = json.loads((parity("keys").folder / "keys/presets.json").read_text())
    assert set(FLAV_presets) == {*presets, "FLAV-tiny"}
    for name, facts in presets.items():
        with torch.device("meta"):
            model = FLAV(**FLAV_presets[name], latent_size=32, num_classes=10)
        sizes = {key: p.numel() for key, p in model.named_parameters()}
        assert sum(sizes.values()) == facts["parameters_10_classes"], name
        tables = sizes["video_class.weight"] + sizes["audio_class.weight"]  # all that a model without classes lacks
        assert sum(sizes.values()) - tables == facts["parameters_uncond_latent32_in4_nmels256_frames10"], name
        assert len(model.blocks) == facts["depth"]
        assert model.blocks[0].video_mlp.fc1.out_features == facts["mlp_hidden"]
        assert model.video_patch_pos.shape == (facts["tokens_per_frame_latent32"], facts["hidden_size"])
        assert model.blocks[0].audio_attn.num_heads == facts["num_heads"]


# ---- properties, in float64, on random weights (a fresh model outputs zeros and would pass for any code) ----

SMALL = dict(latent_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2, predict_frames=5,
             n_mels=6, audio_fr=4)  # fmt: skip


def random_model(**changes) -> FLAV:
    torch.manual_seed(0)
    model = FLAV(**{**SMALL, **changes}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.eval()


def random_inputs(B=2, T=5):
    g = torch.Generator().manual_seed(1)
    v = torch.randn(B, T, 3, 4, 4, generator=g, dtype=torch.float64)
    a = torch.randn(B, T, 4, 6, generator=g, dtype=torch.float64)
    return v, a, torch.rand(B, T, generator=g, dtype=torch.float64)


def difference(one, two):
    return max((x - y).abs().max().item() for x, y in zip(one, two))


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_a_prefix_of_the_window_gives_the_same_output(fusion):
    model, (v, a, t) = random_model(fusion=fusion), random_inputs()
    whole = model(v, a, t)
    for T in (1, 3):
        assert difference(model(v[:, :T], a[:, :T], t[:, :T]), [x[:, :T] for x in whole]) < 1e-12


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_no_frame_sees_a_later_one(fusion):
    model, (v, a, t) = random_model(fusion=fusion), random_inputs()
    before = model(v, a, t)
    for k in range(1, 5):
        v2, a2, t2 = v.clone(), a.clone(), t.clone()
        v2[:, k:], a2[:, k:], t2[:, k:] = torch.randn_like(v2[:, k:]), torch.randn_like(a2[:, k:]), 0.5
        after = model(v2, a2, t2)
        assert difference([x[:, :k] for x in after], [x[:, :k] for x in before]) < 1e-12
        assert difference([x[:, k:] for x in after], [x[:, k:] for x in before]) > 1e-3


@torch.no_grad()
def test_without_causal_attention_frames_do_see_later_ones():
    model, (v, a, t) = random_model(causal_attn=False), random_inputs()
    later = v.clone()
    later[:, -1] += 1
    assert (model(later, a, t)[0] - model(v, a, t)[0])[:, 0].abs().max() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_the_time_of_a_side_reaches_the_other_where_the_fusion_carries_it(fusion):
    model, (v, a, t) = random_model(fusion=fusion), random_inputs()
    (dv, da), earlier = model(v, a, t), t / 2
    of_sound, of_picture = model(v, a, t, t_a=earlier)[0] - dv, model(v, a, earlier, t_a=t)[1] - da
    for side, change in (("sound", of_sound), ("picture", of_picture)):
        assert (change.abs().max() > 1e-4) if side in FUSIONS[fusion].carries else not change.any()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_side_has_a_gradient_on_the_other_where_the_fusion_carries_it(fusion):
    model, (v, a, t) = random_model(fusion=fusion), random_inputs()
    for side, x, at in (("sound", a, 0), ("picture", v, 1)):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(model(v, a, t)[at].square().sum(), x, allow_unused=True)
        assert gradient.abs().max() > 1e-4 if side in FUSIONS[fusion].carries else gradient is None


@torch.no_grad()
def test_fusion_a_of_one_frame_is_plain_joint_attention():
    torch.manual_seed(0)
    joint = JointAttention(16, 2).double()
    v, a = torch.randn(2, 1, 4, 16).double(), torch.randn(2, 1, 6, 16).double()
    tokens = torch.cat([v, a], 2)[:, 0]
    plain = tokens + joint.attn(torch.nn.functional.layer_norm(tokens, (16,), eps=1e-6))
    for causal in (True, False):
        out_v, out_a, *_ = joint(v, a, None, None, causal)
        assert difference([torch.cat([out_v, out_a], 2)[:, 0]], [plain]) < 1e-12


@torch.no_grad()
def test_fusion_a_equals_attention_under_a_dense_block_causal_mask():
    torch.manual_seed(0)
    T, L, S = 4, 3, 2
    joint = JointAttention(16, 2).double()
    v, a = torch.randn(2, T, L, 16).double(), torch.randn(2, T, S, 16).double()
    tokens = torch.cat([v, a], 2).flatten(1, 2)
    frame = torch.arange(T).repeat_interleave(L + S)
    q, k, w = joint.attn.heads(torch.nn.functional.layer_norm(tokens, (16,), eps=1e-6))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, w, attn_mask=frame[:, None] >= frame)
    expected = tokens + joint.attn.proj(rearrange(dense, "b h n d -> b n (h d)"))
    out_v, out_a, *_ = joint(v, a, None, None, True)
    assert difference([torch.cat([out_v, out_a], 2).flatten(1, 2)], [expected]) < 1e-12


@torch.no_grad()
def test_a_label_per_frame_changes_no_earlier_frame():
    model, (v, a, t) = random_model(num_classes=3), random_inputs()
    clip = model(v, a, t, y=torch.tensor([1, 2]))
    same = model(v, a, t, y=torch.tensor([[1] * 5, [2] * 5]))
    switched = model(v, a, t, y=torch.tensor([[1, 1, 1, 0, 0], [2, 2, 2, 0, 0]]))
    assert difference(clip, same) == 0
    assert difference([x[:, :3] for x in switched], [x[:, :3] for x in clip]) < 1e-12
    assert difference([x[:, 3:] for x in switched], [x[:, 3:] for x in clip]) > 1e-3


def test_gradient_checkpointing_changes_memory_not_gradients():
    v, a, t = random_inputs()
    gradients = []
    for grad_ckpt in (False, True):
        model = random_model(grad_ckpt=grad_ckpt).train()
        sum(x.square().mean() for x in model(v, a, t)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert difference(*gradients) < 1e-12


@torch.no_grad()
def test_data_prediction_is_turned_into_the_velocity_that_reaches_it():
    data, (v, a, t) = random_model(prediction="data"), random_inputs()
    velocity = FLAV(**SMALL).double()
    velocity.load_state_dict(data.state_dict())
    t[0, 0] = 1  # the floor acts here
    x_v, x_a = velocity(v, a, t, t_a=t / 2)  # the same network read as clean frames
    dv, da = data(v, a, t, t_a=t / 2)
    left = (1 - t).clamp(min=DATA_PREDICTION_FLOOR)
    assert difference([v + left[..., None, None, None] * dv], [x_v]) < 1e-12
    assert difference([a + (1 - t / 2)[..., None, None] * da], [x_a]) < 1e-12


@torch.no_grad()
def test_a_fresh_model_outputs_zeros_for_every_fusion():
    for fusion in FUSIONS:
        model, (v, a, t) = FLAV(**SMALL, fusion=fusion).double(), random_inputs()
        assert all(x.abs().max() == 0 for x in model(v, a, t))


def test_saved_model_comes_back_bit_for_bit(tmp_path):
    model = random_model(fusion="c_norm", num_classes=2, prediction="data").float()
    model.save_pretrained(tmp_path)
    again = FLAV.from_pretrained(tmp_path)
    assert again.prediction == "data" and again.num_classes == 2 and not again.training
    assert all(torch.equal(x, y) for x, y in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path):
    random_model().save_pretrained(tmp_path)
    config = Path(tmp_path, "config.json")
    config.write_text(config.read_text().replace('"n_mels": 6', '"n_mels": 7'))
    with pytest.raises(ValueError, match=r"audio_embed.weight is \(16, 6\), not \(16, 7\)"):
        FLAV.from_pretrained(tmp_path)
    Path(tmp_path, "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors"):
        FLAV.from_pretrained(tmp_path)


def test_inputs_that_do_not_fit_are_refused_with_both_shapes():
    model, (v, a, t) = random_model(), random_inputs()
    with pytest.raises(ValueError, match=r"it takes v \(B, T, 3, 4, 4\)"):
        model(v[..., :3], a, t)
    with pytest.raises(ValueError, match="6 frames are more than the window of 5"):
        model(*random_inputs(T=6))
    with pytest.raises(ValueError, match="unconditional"):
        model(v, a, t, y=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="fusion 'd' is unknown"):
        FLAV(**SMALL, fusion="d")

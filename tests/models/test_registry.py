"""The door of all systems: config.json names the class, a preset belongs to one, a config says its least weights."""

import json

import pytest
import torch

from models import FLAV, MODELS, AVLink, SyncFlow, load_model, model_class, model_of_preset
from pipeline.spec import fetch_checkpoint
from tests.randomised import randomised

SMALL = {
    FLAV: dict(latent_size=4, hidden_size=16, depth=1, num_heads=2, n_mels=20, predict_frames=4),
    SyncFlow: dict(hidden_size=16, depth=2, num_heads=2, text_width=8, audio_channels=6, audio_patch=2),
    AVLink: dict(hidden_size=16, depth=2, num_heads=2, text_width=8, audio_channels=6, link_size=16, link_heads=2),
}


@pytest.mark.parametrize("kind", SMALL)
def test_model_comes_back_from_its_folder_as_what_it_was(kind, tmp_path):
    model = kind(**SMALL[kind])
    randomised(model, std=0.2)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["system"] == kind.system
    again = load_model(fetch_checkpoint(str(tmp_path)))
    assert type(again) is kind and again.rolls is (kind is FLAV)
    assert all(x.equal(again.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("kind", SMALL)
def test_least_weights_of_a_config_are_no_more_than_a_model_of_it_has(kind):
    config = {**kind(**SMALL[kind])._hub_mixin_config}
    sizes = [p.numel() for p in kind(**SMALL[kind]).parameters()]
    weights, tensors = kind.least_weights(config)
    assert 0 < weights <= sum(sizes) and 0 < tensors <= len(sizes)


@pytest.mark.parametrize("kind", SMALL)
def test_config_of_a_far_larger_model_is_refused_before_it_is_built(kind, tmp_path):
    kind(**SMALL[kind]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 2**20}))
    with pytest.raises(ValueError, match="take both from the same checkpoint"):
        fetch_checkpoint(str(tmp_path))


def test_released_checkpoint_which_names_no_system_is_of_r_flav(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_class(tmp_path) is FLAV


def test_system_of_a_later_version_is_refused_with_those_that_are_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"system": "later"}))
    with pytest.raises(ValueError, match=f"'later', unknown to this version; it knows {', '.join(MODELS)}"):
        load_model(tmp_path)


def test_presets_belong_to_their_systems_and_an_unknown_one_is_refused():
    assert model_of_preset("FLAV-tiny") is FLAV and model_of_preset("SyncFlow-XL/2") is SyncFlow
    assert model_of_preset("AVLink-L") is AVLink
    with pytest.raises(ValueError, match="FLAV-huge is unknown; choose one of FLAV-XL/2"):
        model_of_preset("FLAV-huge")


def clip(model):
    rng = torch.Generator().manual_seed(0)
    v, a = torch.randn(2, 3, 4, 4, 4, generator=rng), torch.randn(2, 8, 6, generator=rng)
    return model(v, a, torch.tensor([0.2, 0.7]))


def test_loss_of_the_sound_teaches_the_picture_in_the_joint_stage_only():
    model = SyncFlow(**SMALL[SyncFlow])
    randomised(model, std=0.2)
    for stage, reached in (("video", False), ("joint", True)):
        model.set_stage(stage)
        da = clip(model)[1]
        assert da.requires_grad is reached
    da.square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.video.parameters())


def test_sound_tokens_of_a_patch_are_one_inside_and_all_come_back():
    model = SyncFlow(**SMALL[SyncFlow])
    randomised(model, std=0.2)
    assert clip(model)[1].shape == (2, 8, 6)
    with pytest.raises(ValueError, match="a \\(B, N, 6\\) of N that 2 divides"):
        model(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 7, 6), torch.zeros(1))

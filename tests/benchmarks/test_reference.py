"""benchmarks/reference.py is the same model and sampler as ours, in float64, and counts as many frames as it should."""

from argparse import Namespace
from itertools import islice

import pytest
import torch

from benchmarks import a2v, subjects
from benchmarks.sample_clip import sides_of
from diffusion.flow import flow_loss
from models import FLAV
from pipeline import AVPipeline

EXACT = dict(rtol=0, atol=1e-10)
FUSIONS = ["none", "a", "b", "c"]
SHAPE = dict(latent_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2, n_mels=6)


def pair(fusion, **more):
    """Both models with the same random weights in float64."""
    config = {**SHAPE, "predict_frames": 4, "fusion": fusion, **more}
    model = subjects.random(FLAV(**config), std=0.3).double().eval()
    return model, subjects.reference_of(model, config), config


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("more", [{}, {"num_classes": 3, "prediction": "data", "mlp_ratio": 2.0}])
def test_forward_pass_is_that_of_our_model(fusion, more):
    model, plain, _ = pair(fusion, **more)
    v, a, t = subjects.inputs(model, 2, "cpu", torch.float64)
    labels = [{}, {"y": torch.tensor([2, 0])}] if more else [{}]
    for y in labels:
        expected = model(v, a, t, **y)
        assert min(x.std() for x in expected) > 0.1
        for ours, theirs in zip(expected, plain(v, a, t, **y)):
            torch.testing.assert_close(theirs, ours, **EXACT)


@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_training_gradient_is_that_of_our_model(grad_ckpt):
    model, _, config = pair("c", grad_ckpt=grad_ckpt)
    plain = subjects.reference_of(model, config, share=False)
    v, a, t, noise = subjects.training_batch(model, 2)
    for net in (model, plain):
        flow_loss(net.train(), v, a, None, t, noise).total.backward()
    theirs = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, weight.grad, **EXACT)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("n", [1, 3])
def test_clip_is_that_of_our_sampler(fusion, n):
    model, plain, config = pair(fusion)
    pipe = AVPipeline(model, subjects.codec(config, kind=subjects.Undecoded), dtype=torch.float64)
    clips = pipe.sample([3, 5], 7, seed=1, num_timesteps=n)
    v, a = zip(*islice(subjects.reference_frames(plain, model, [3, 5], n, 1), 7))
    torch.testing.assert_close(torch.stack(v, 1), clips.v, **EXACT)
    torch.testing.assert_close(torch.stack(a, 1), clips.a, **EXACT)
    assert clips.v.std() > 0.1 and clips.v[0].ne(clips.v[1]).all()


@pytest.mark.parametrize("fusion", ["a", "c"])
def test_pictures_for_a_sound_and_behind_its_end_are_those_of_our_guidance(fusion):
    model, plain, config = pair(fusion)
    pipe = AVPipeline(model, subjects.codec(config, kind=subjects.Undecoded), dtype=torch.float64)
    args, sound = Namespace(frames=6, num_timesteps=2, seed=1), subjects.sound(model, 3)
    ours, without = a2v.clip_of(args, pipe, sound, 5.0)(), a2v.clip_of(args, pipe, sound)()  # 25 enlarges rounding
    torch.testing.assert_close(torch.stack(a2v.plain_clip_of(args, plain, model, sound, 5.0)(), 1), ours, **EXACT)
    assert (ours - without).abs().max() > 1e-3


def test_clip_of_16_frames_costs_320_frame_evaluations_of_500():
    model, plain, config = pair("c", predict_frames=10, depth=1)
    args = Namespace(frames=16, num_timesteps=2, seed=0, switches=True)
    sides, count = sides_of(args, config, model, plain, [0, 1])
    for run in sides.values():
        run()
    counted = {name: sum(T * calls for (_, T), calls in shapes.items()) for name, shapes in count.items()}
    assert counted == {"ours": 320, "no skip": 500, "no tables": 320, "all off": 500, "reference": 500}
    assert all(rows == 2 for shapes in count.values() for rows, _ in shapes)
    before = dict(count["ours"])
    sides["ours"]()
    assert count["ours"] == before


def test_weights_are_shared_for_inference_and_copied_for_training():
    model, plain, config = pair("c")
    assert plain.audio_embed.weight.data_ptr() == model.audio_embed.weight.data_ptr()
    own = subjects.reference_of(model, config, share=False)
    assert own.audio_embed.weight.data_ptr() != model.audio_embed.weight.data_ptr()


def test_model_that_looks_ahead_has_no_reference():
    config = {**SHAPE, "causal_attn": False}
    with pytest.raises(ValueError, match="the reference is causal"):
        subjects.reference_of(FLAV(**config), config)


def test_model_that_remembers_has_no_reference_and_one_that_does_not_has_it_by_its_stored_config():
    model = FLAV(**SHAPE)
    assert "memory_ages" in model._hub_mixin_config and subjects.reference_of(model, model._hub_mixin_config)
    config = {**SHAPE, "memory_ages": [1, 2]}
    with pytest.raises(ValueError, match=r"the reference has no memory, this model one of ages \(1, 2\)"):
        subjects.reference_of(FLAV(**config), config)

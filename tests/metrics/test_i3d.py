"""Inception-I3D: the published network's numbers, its key names, and padding that depends on the size."""

import pytest
import torch
from torch.nn import functional as F

from metrics.i3d import I3D, _Conv, _MaxPool, _same
from metrics.resize import i3d_input
from metrics.weights import fill


@pytest.fixture(scope="module")
def net(metrics_manifest):
    net = I3D()
    fill(net, metrics_manifest["salt"])
    return net


@pytest.fixture(scope="module")
def golden(metrics_tensors):
    return metrics_tensors("i3d")


@pytest.fixture(scope="module")
def seen(net, golden_video, metrics_manifest):
    """One pass of the four clips: `input`, `logits`, and `stages`, the outputs of all stages for clip 0."""
    stages, x = {}, torch.stack([i3d_input(frames) for frames in golden_video()])
    names = metrics_manifest["i3d"]["stage_stats_clip0"]
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: stages.update({name: y[0].clone()}))
        for name in names
    ]
    with torch.inference_mode():
        logits = net(x)
    for hook in hooks:
        hook.remove()
    return {"input": x, "logits": logits, "stages": stages}


def test_keys_and_shapes_are_those_of_the_published_weight_file(net, metrics_manifest):
    facts = metrics_manifest["nets"]["i3d"]
    assert {key: list(x.shape) for key, x in net.state_dict().items()} == facts["keys"]
    assert sum(p.numel() for p in net.parameters()) == facts["parameters"]


def test_input_of_the_golden_clip_agrees_with_the_published_one(seen, golden):
    torch.testing.assert_close(seen["input"][0, :, ::5, ::16, ::16], golden["video0_224_sub"], rtol=0, atol=2e-6)


def test_logits_agree_with_the_published_ones(seen, golden, metrics_manifest):
    tolerance = metrics_manifest["tolerances"]["i3d_logits"]
    error = seen["logits"] - golden["logits_f64"]
    assert error.abs().max() <= tolerance["max_abs"]
    assert error.norm() <= tolerance["rel_l2"] * golden["logits_f64"].norm()


@pytest.mark.parametrize("name", ["Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c"])
def test_stage_agrees_with_the_published_one(seen, golden, metrics_manifest, name):
    absmax = metrics_manifest["i3d"]["stage_stats_clip0"][name]["absmax"]
    found = seen["stages"][name][::16, :, ::4, ::4]
    torch.testing.assert_close(found, golden[f"stage_{name}_sub"], rtol=0, atol=3e-5 * absmax)


def test_statistics_of_every_stage_agree_with_the_published_ones(seen, metrics_manifest):
    for name, stats in metrics_manifest["i3d"]["stage_stats_clip0"].items():
        x, near = seen["stages"][name].double(), 3e-5 * stats["absmax"]
        assert list(x.shape) == stats["shape"], name
        found = {"mean": x.mean().item(), "std": x.std(correction=0).item(), "absmax": x.abs().max().item()}
        assert found == pytest.approx({key: stats[key] for key in found}, abs=near), name
        assert x.flatten()[:8].tolist() == pytest.approx(stats["first8"], abs=near), name


def test_network_is_built_ready_to_measure():
    assert not [name for name, module in I3D().named_modules() if module.training]


@pytest.mark.parametrize(
    "size, kernel, stride, expected",
    [(224, 7, 2, (2, 3)), (9, 7, 2, (3, 3)), (112, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (5, 3, 1, (1, 1)),
     (7, 2, 2, (0, 1)), (8, 2, 2, (0, 0)), (5, 1, 2, (0, 0))],
)  # fmt: skip
def test_same_padding_depends_on_the_size_with_the_odd_element_behind(size, kernel, stride, expected):
    assert _same(size, kernel, stride) == expected


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel, stride", [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)),
                                            ((3, 3, 3), (1, 1, 1))])  # fmt: skip
def test_max_pool_equals_one_over_zeros_padded_by_hand(size, kernel, stride):
    x = torch.rand(1, 2, size, size, size, generator=torch.Generator().manual_seed(0))  # not below 0: follows a ReLU
    front, back = _same(size, kernel[1], stride[1])
    front_t, back_t = _same(size, kernel[0], stride[0])
    padded = F.pad(x, (front, back, front, back, front_t, back_t))
    assert torch.equal(_MaxPool(kernel, stride)(x), F.max_pool3d(padded, kernel, stride))


def test_strided_convolution_sees_one_more_zero_behind_than_in_front():
    conv = _Conv(1, 1, kernel=7, stride=2).eval()
    torch.nn.init.ones_(conv.conv3d.weight)
    counted = conv(torch.ones(1, 1, 8, 8, 8))[0, 0, :, 2, 2] * (1 + conv.bn.eps) ** 0.5  # elements inside the window
    torch.testing.assert_close(counted / counted.max(), torch.tensor([5.0, 7.0, 6.0, 4.0]) / 7)


@pytest.mark.parametrize("shape", [(1, 3, 8, 224, 224), (1, 3, 16, 64, 64), (1, 16, 3, 224, 224), (3, 16, 224, 224)])
def test_clip_of_another_shape_is_refused_with_the_way_to_make_one(net, shape):
    with pytest.raises(ValueError, match=r"^I3D got \(.*\), expected \(B, 3, T, 224, 224\) .*resize.i3d_input"):
        net(torch.zeros(shape))

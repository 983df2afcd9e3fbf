"""Inception v3 of FID: its key names, its pools, its way through the stages, and files that are not its own."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.inception import Inception3, InceptionA, InceptionE

from metrics.pictures import SOURCE, Inception
from metrics.weights import fill, load


@pytest.fixture(scope="module")
def net():
    net = Inception()
    fill(net)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    """A file laid out as the published one: torchvision's names, 1008 classes, nothing beside the main branch."""
    plain = Inception3(1008, aux_logits=False, init_weights=False)
    fill(plain, "file:")
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({key: x for key, x in plain.state_dict().items() if not key.endswith("num_batches_tracked")}, path)
    return path


def pool(x, reduce):
    """3x3 pools of (1, C, H, W) by what lies in the picture, written out."""
    H, W = x.shape[2:]
    spots = [[x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] for j in range(W)] for i in range(H)]
    return torch.stack([torch.stack([reduce(spot) for spot in row], -1) for row in spots], -2)


def test_file_of_the_published_layout_is_read_as_it_is(file):
    net = Inception()
    load(net, file, SOURCE)
    assert net.fc.weight.equal(torch.load(file)["fc.weight"]) and not any(module.training for module in net.modules())


def test_files_that_are_not_its_own_are_refused_in_one_sentence(file, tmp_path):
    """Torchvision's weights would give other figures under the same name."""
    net, refused = Inception(), {}
    torchvisions = Inception3(1000, init_weights=False).state_dict()
    torch.save(torchvisions, tmp_path / "torchvision.pth")
    torch.save(torch.load(file) | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "classes.pth")
    (tmp_path / "damaged.pth").write_bytes(file.read_bytes()[:-1000])
    for name in ("torchvision", "classes", "damaged", "absent"):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load(net, tmp_path / f"{name}.pth", SOURCE)
        refused[name] = str(caught.value)
        assert "get it from releases of github.com/mseitzer/pytorch-fid" in refused[name] and "\n" not in refused[name]
    assert "has unknown AuxLogits" in refused["torchvision"]
    assert "has fc.weight (1000, 2048), not (1008, 2048)" in refused["classes"]
    assert "is damaged or no file of weights" in refused["damaged"] and "does not exist" in refused["absent"]


@pytest.mark.parametrize("name", ["Mixed_5b", "Mixed_6c", "Mixed_7b", "Mixed_7c"])
def test_last_branch_pools_what_is_in_the_picture_and_the_very_last_takes_the_largest(net, name):
    block = net.get_submodule(name)
    x = torch.randn(1, block.branch_pool.conv.in_channels, 5, 6, generator=torch.Generator().manual_seed(0))
    reduce = (lambda spot: spot.amax((2, 3))) if name == "Mixed_7c" else (lambda spot: spot.mean((2, 3)))
    expected = block.branch_pool(pool(x, reduce))
    torch.testing.assert_close(block(x)[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-5)


def test_other_branches_are_torchvisions(net):
    for name, plain in (("Mixed_5b", InceptionA(192, 32)), ("Mixed_7c", InceptionE(2048))):
        block = net.get_submodule(name)
        plain.load_state_dict(block.state_dict())
        x = torch.randn(1, block.branch_pool.conv.in_channels, 5, 5, generator=torch.Generator().manual_seed(0))
        own, theirs = block(x), plain.eval()(x)
        last = block.branch_pool.conv.out_channels
        assert own[:, :-last].equal(theirs[:, :-last]) and not own[:, -last:].allclose(theirs[:, -last:])


def test_features_are_what_the_classes_are_told_from_and_of_each_picture_alone(net):
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        features, alone = net(x), net(x[1:])
        classes = Inception3.forward(net, x)
    assert features.shape == (2, 2048) and not features[0].allclose(features[1])
    torch.testing.assert_close(F.linear(features, net.fc.weight, net.fc.bias), classes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[1:], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"Inception got \(2, 3, 224, 224\), expected \(B, 3, 299, 299\)"):
        net(x[..., :224, :224])

"""Weights of the feature networks: the published fill rule, and files that are refused in one sentence."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from metrics.i3d import I3D
from metrics.weights import _filled, fill, load

SOURCE = "the shelf"


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))


@pytest.fixture
def state():
    """What a file holds: the weights of another network of that kind."""
    other = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    fill(other, salt="file:")
    return other.state_dict()


def save(state, path, **kwargs):
    torch.save(state, path, **kwargs)
    return path


def refusal(net, path, kind=ValueError, **kwargs):
    """The sentence with which `load` refuses the file, which must leave the network as it was."""
    before = {key: x.clone() for key, x in net.state_dict().items()}
    with pytest.raises(kind) as caught:
        load(net, path, SOURCE, **kwargs)
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("name", ["i3d", "audioclip_audio"])
def test_rule_gives_the_published_numbers_for_every_kind_of_key(metrics_manifest, name):
    shapes, checks = metrics_manifest["nets"][name]["keys"], metrics_manifest["fill_checks"][name]
    for key, check in checks.items():
        filled = _filled(key, tuple(shapes[key]), metrics_manifest["salt"]).astype("<f4")
        assert hashlib.sha256(filled.tobytes()).hexdigest() == check["sha256_f32le"], key


def test_fill_gives_a_whole_network_the_published_numbers(metrics_manifest):
    net = I3D()
    fill(net, metrics_manifest["salt"])
    state = net.state_dict()
    for key, check in metrics_manifest["fill_checks"]["i3d"].items():
        assert hashlib.sha256(state[key].numpy().tobytes()).hexdigest() == check["sha256_f32le"], key


def test_fill_leaves_the_window_and_the_counters_alone():
    net = nn.BatchNorm1d(4)
    net.register_buffer("window", torch.hann_window(8))
    fill(net)
    assert torch.equal(net.window, torch.hann_window(8)) and net.num_batches_tracked == 0


def test_fill_depends_on_names_and_salt_and_on_nothing_else(net):
    twin = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    torch.manual_seed(7)
    fill(net)
    fill(twin)
    assert all(torch.equal(x, twin.state_dict()[key]) for key, x in net.state_dict().items())
    fill(twin, salt="other:")
    assert not torch.equal(net[0].weight, twin[0].weight)
    assert not np.array_equal(_filled("a.bias", (4,), ""), _filled("b.bias", (4,), ""))


def test_filled_layer_keeps_the_size_of_what_passes_through_it():
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    layers = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    fill(layers)
    with torch.inference_mode():
        assert layers(x).std().item() == pytest.approx(2**0.5, rel=0.1)  # He's rule: each ReLU's half is made up for


@pytest.mark.parametrize("zipped", [True, False])
def test_file_is_loaded_whole_in_the_new_format_and_the_old(net, state, tmp_path, zipped):
    path = save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    load(net, path, SOURCE)
    assert all(torch.equal(x, state[key]) for key, x in net.state_dict().items())


def test_counters_may_be_absent(net, state, tmp_path):
    del state["1.num_batches_tracked"]
    load(net, save(state, tmp_path / "net.pt"), SOURCE)
    assert torch.equal(net[1].running_var, state["1.running_var"])


def test_prefix_picks_one_network_out_of_a_file_of_several(net, state, tmp_path):
    audio = {f"audio.{key}": x for key, x in state.items()}
    several = {**audio, "text.weight": torch.ones(2), "0.weight": torch.ones(1), "epoch": 30}
    load(net, save(several, tmp_path / "net.pt"), SOURCE, prefix="audio.")
    assert torch.equal(net[0].weight, state["0.weight"])


def test_missing_file_is_refused_with_the_place_to_get_it(net, tmp_path):
    path = tmp_path / "net.pt"
    assert refusal(net, path, FileNotFoundError) == f"{path} does not exist; get it from the shelf"


@pytest.mark.parametrize("zipped", [True, False])
def test_file_cut_short_anywhere_is_refused(net, state, tmp_path, zipped):
    path = save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:size])
        assert refusal(net, path) == f"{path} is damaged or no file of weights; get it from the shelf"


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x80\x02", b"weights", bytes(range(256))])
def test_file_of_something_else_is_refused(net, tmp_path, content):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    assert refusal(net, path) == f"{path} is damaged or no file of weights; get it from the shelf"


def test_file_that_would_run_code_is_refused(net, tmp_path):
    path = save(nn.Linear(2, 2), tmp_path / "net.pt")
    assert refusal(net, path) == f"{path} is damaged or no file of weights; get it from the shelf"


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {"state_dict": {}}, {0: torch.ones(2)}, {}, 3.0])
def test_file_without_a_table_of_tensors_is_refused(net, tmp_path, content):
    path = save(content, tmp_path / "net.pt")
    assert refusal(net, path) == f"{path} holds no table of tensors by name; get it from the shelf"


def test_file_without_the_network_asked_for_is_refused(net, state, tmp_path):
    path = save(state, tmp_path / "net.pt")
    assert refusal(net, path, prefix="audio.") == f"{path} holds no tensors named audio.*; get it from the shelf"


def test_missing_key_is_named(net, state, tmp_path):
    del state["1.running_mean"]
    path = save(state, tmp_path / "net.pt")
    assert refusal(net, path) == f"{path} lacks 1.running_mean; get it from the shelf"


def test_unknown_key_is_named(net, state, tmp_path):
    path = save({**state, "2.weight": torch.ones(1)}, tmp_path / "net.pt")
    assert refusal(net, path) == f"{path} has unknown 2.weight; get it from the shelf"


def test_wrong_shape_is_named_with_the_right_one(net, state, tmp_path):
    path = save({**state, "0.weight": torch.ones(4, 3, 5)}, tmp_path / "net.pt")
    assert refusal(net, path) == f"{path} has 0.weight (4, 3, 5), not (4, 3, 3); get it from the shelf"


def test_long_lists_are_cut(net, tmp_path):
    path = save({"0.bias": torch.ones(4)}, tmp_path / "net.pt")
    expected = "lacks 0.weight, 1.weight, 1.bias and 2 more"
    assert refusal(net, path) == f"{path} {expected}; get it from the shelf"

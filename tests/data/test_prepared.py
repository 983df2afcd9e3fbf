"""Prepared latents: files written in blocks, clips read as slices, and what is said of files that are not whole."""

import json
import math
import pickle
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from data import prepared
from data.index import INDEX, is_prepared
from data.prepared import LatentFile, LatentWriter, Moments, PreparedDataset, is_whole, latent_path

LATENT, MEL = (2, 3, 3), (10, 4)


def tensors(frames, seed):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"mean": LATENT, "std": LATENT, "mel": MEL}
    return {name: torch.randn(frames, *shape, generator=rng) for name, shape in shapes.items()}


def write(path, frames, seed, cuts=(), sha256="x"):
    """A file of random numbers, written in the blocks between `cuts`."""
    x, edges = tensors(frames, seed), [0, *cuts, frames]
    with LatentWriter(path, frames, LATENT, MEL, {"sha256": sha256}) as writer:
        for begin, end in pairwise(edges):
            writer.write(**{name: value[begin:end] for name, value in x.items()})
    return x


@pytest.fixture
def root(tmp_path):
    """Three files with 5, 2 and 4 frames in two classes, and one that could not be encoded."""
    files = [("a/x.mp4", 5), ("a/y.mp4", 2), ("b/z.mp4", 4)]
    for i, (path, frames) in enumerate(files):
        write(latent_path(tmp_path / "train", path), frames, i, sha256=str(i))
    records = [{"path": path, "frames": n, "class": path[0], "sha256": str(i), "bytes": 9}
               for i, (path, n) in enumerate(files)]  # fmt: skip
    index = {
        "version": 2,
        "facts": {"image_size": 24},
        "class_names": ["a", "b"],
        "audio_scale": 2.0,
        "splits": {"train": {"files": records, "skipped": [{"path": "b/q.mp4", "reason": "silent", "sha256": ""}]}},
    }
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


# -------------------------------------------------------------------------------------------------------- the writer


def test_file_written_in_blocks_is_that_written_at_once_to_the_byte(tmp_path):
    write(tmp_path / "one.safetensors", 7, 0)
    x = write(tmp_path / "many.safetensors", 7, 0, cuts=(1, 4, 6))
    read = load_file(tmp_path / "many.safetensors")
    assert all(read[name].equal(x[name].half()) for name in ("mean", "std", "mel")) and len(read) == 4
    one, many = (safe_open(tmp_path / f"{name}.safetensors", framework="pt").metadata() for name in ("one", "many"))
    tables = [Moments.table_of(metadata["moments_mean"]) for metadata in (one, many)]
    torch.testing.assert_close(*tables, rtol=1e-14, atol=1e-14)


def test_header_leaves_room_for_any_number(tmp_path):
    """The header is measured before the numbers in it are known."""
    assert len(str(Moments(3))) == 4 * 3 * 25
    moments = Moments(3)
    moments.table = torch.tensor([[-1e-300, math.pi, 1e300]] * 4, dtype=torch.float64)
    assert len(str(moments)) == 4 * 3 * 25 and Moments.table_of(str(moments)).equal(moments.table)


def test_moments_are_those_of_what_is_stored_by_channel(tmp_path):
    write(tmp_path / "f.safetensors", 7, 0, cuts=(3,))
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        metadata, mean, mel = file.metadata(), file.get_tensor("mean").double(), file.get_tensor("mel").double()
    table = Moments.table_of(metadata["moments_mean"])
    x = mean.transpose(0, 1).flatten(1)
    torch.testing.assert_close(table, torch.stack([x.sum(1), (x**2).sum(1), x.amin(1), x.amax(1)]))
    whole = torch.stack([mel.sum(), (mel**2).sum(), mel.min(), mel.max()])
    torch.testing.assert_close(Moments.table_of(metadata["moments_mel"])[:, 0], whole)


def test_block_that_breaks_off_leaves_no_file(tmp_path):
    with (
        pytest.raises(RuntimeError, match="decoder"),
        LatentWriter(tmp_path / "f.safetensors", 3, LATENT, MEL, {}) as writer,
    ):
        writer.write(**tensors(2, 0))
        raise RuntimeError("decoder")
    assert not list(tmp_path.iterdir())


def test_too_few_frames_and_numbers_beyond_float16_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="got 2 of 3 frames"),
        LatentWriter(tmp_path / "f.safetensors", 3, LATENT, MEL, {}) as writer,
    ):
        writer.write(**tensors(2, 0))
    with (
        pytest.raises(ValueError, match="float16"),
        LatentWriter(tmp_path / "f.safetensors", 2, LATENT, MEL, {}) as writer,
    ):
        writer.write(**tensors(2, 0) | {"mean": torch.full((2, *LATENT), 1e6)})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- the data set


def test_every_window_of_every_long_enough_file_comes_in_turn(root):
    data = PreparedDataset(root, "train", 3)
    found = [(data[i]["path"][-17:], data[i]["start"], data[i]["y"]) for i in range(len(data))]
    x, z = "x.mp4.safetensors", "z.mp4.safetensors"
    assert found == [(x, 0, 0), (x, 1, 0), (x, 2, 0), (z, 0, 1), (z, 1, 1)]
    assert data.path(4) == str(root / "train" / "b" / z) and data.num_classes == 2
    with pytest.raises(IndexError):
        data[5]


def test_clip_is_the_slice_of_the_file_and_its_mel_is_scaled(root):
    data, x = PreparedDataset(root, "train", 3), tensors(5, 0)
    item = data[1]
    assert item["mean"].equal(x["mean"][1:4].half().float()) and item["std"].equal(x["std"][1:4].half().float())
    assert item["a"].equal(2 * x["mel"][1:4].half().float())
    assert PreparedDataset(root, "train", 3, audio_scale=0.5)[1]["a"].equal(item["a"] / 4)
    assert data.file(0)["mean"].shape == (5, *LATENT)


def test_skipped_files_have_reasons(root):
    data = PreparedDataset(root, "train", 3)
    assert [(path[-18:], reason) for path, reason in data.skipped] == [
        ("/y.mp4.safetensors", "shorter than 3 frames"),
        (str(root / "train/b/q.mp4")[-18:], "silent"),
    ]
    assert data.summary() == "train: 5 clips in 2 files, 2 classes, skipped 1 shorter than 3 frames, 1 silent"
    with pytest.raises(ValueError, match="no usable"):
        PreparedDataset(root, "train", 6)


def flipped(path, bit):
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_clip_with_a_flipped_bit_is_refused_and_its_neighbours_are_not(root):
    path = root / "train" / "a" / "x.mp4.safetensors"
    values = 5 * math.prod(MEL) + 2 * 5 * math.prod(LATENT)
    for frame in (0, 4):  # of mean
        whole = path.read_bytes()
        flipped(path, 8 * (len(whole) - 2 * values + 2 * frame * math.prod(LATENT)) + 3)
        data = PreparedDataset(root, "train", 2)
        with pytest.raises(ValueError, match=r"x\.mp4\.safetensors is damaged \(in frames .*\); run prepare\.py again"):
            data[frame and 3]
        assert data[1]["start"] == 1 and data[4]["path"].endswith("y.mp4.safetensors") and not is_whole(path)
        path.write_bytes(whole)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["of every byte", "at all"])
def test_flipped_bit_of_a_file_is_noticed(tmp_path, step):
    path = tmp_path / "f.safetensors"
    with LatentWriter(path, 2, (1, 1, 1), (1, 2), {"sha256": "x"}, ("psnr_db",)) as writer:
        writer.write(**{name: torch.rand(2, *shape) for name, shape in writer.shapes.items()})
        writer.numbers["psnr_db"] = 40 / 3
    whole = path.read_bytes()
    assert is_whole(path) and float(LatentFile(path).metadata["psnr_db"]) == 40 / 3
    for bit in range(0, 8 * len(whole), step):
        flipped(path, bit)
        assert not is_whole(path), f"bit {bit % 8} of byte {bit // 8} of {whole}"
        path.write_bytes(whole)


def test_few_files_are_open_at_a_time_and_workers_open_their_own(root, monkeypatch):
    monkeypatch.setattr(prepared, "OPEN_FILES", 1)
    data = PreparedDataset(root, "train", 2)
    items = [data[i] for i in (0, 4, 0, 7)]
    assert len(data._open_files[1]) == 1 and items[0]["mean"].equal(items[2]["mean"])
    assert pickle.loads(pickle.dumps(data))[0]["mean"].equal(items[0]["mean"])
    loaded = torch.cat([batch["mean"] for batch in DataLoader(data, 4, num_workers=2)])
    assert loaded.equal(torch.stack([data[i]["mean"] for i in range(len(data))]))


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "pickle", "foreign"])
def test_file_that_is_not_the_indexed_one_is_named_with_the_remedy(root, damage):
    path = root / "train" / "a" / "x.mp4.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "other":
        write(path, 5, 9, sha256="another video")
    elif damage == "pickle":
        torch.save({"mean": torch.zeros(5)}, path)
    else:
        save_file({"mean": torch.zeros(5, 2)}, path)
    with pytest.raises(ValueError, match=r"x\.mp4\.safetensors is .*; run prepare\.py again"):
        PreparedDataset(root, "train", 3)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a/x.mp4"', '"a/../../x.mp4"'),
        ('"a/x.mp4"', '"/a/x.mp4"'),
        ('"a/x.mp4"', '"c/x.mp4"'),
        ('"frames": 5', '"frames": -5'),
        ('"frames": 5', '"frames": "5"'),
        ('"audio_scale": 2.0', '"audio_scale": NaN'),
        ('"skipped"', '"left out"'),
        ('"train": {', '"train": 3, "test": {'),
    ],
)
def test_index_that_cannot_be_right_is_refused(root, old, new):
    text = (root / INDEX).read_text()
    assert old in text
    (root / INDEX).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=r"prepared\.json is damaged .*; remove it and run prepare\.py again"):
        PreparedDataset(root, "train", 3)


def test_folder_is_prepared_once_its_index_is_there(root, tmp_path):
    assert is_prepared(root) and is_prepared(str(root)) and not is_prepared(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no split 'test' \(found: train\)"):
        PreparedDataset(root, "test")
    (root / INDEX).write_text((root / INDEX).read_text().replace('"version": 2', '"version": 99'))
    with pytest.raises(ValueError, match="version 99"):
        PreparedDataset(root)
    (root / INDEX).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        PreparedDataset(root)
    (root / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"run prepare\.py"):
        PreparedDataset(root)


def test_class_names_of_an_older_index_are_composed(root):
    """An index of before may hold "é" as two characters, as macOS does."""
    index = json.loads((root / INDEX).read_text().replace('"a/', '"e\\u0301/').replace('"a"', '"e\\u0301"'))
    (root / INDEX).write_text(json.dumps(index))
    (root / "train" / "a").rename(root / "train" / "e\u0301")
    data = PreparedDataset(root, "train", 3)
    assert data.class_names == ("\u00e9", "b") and [data[i]["y"] for i in range(5)] == [0, 0, 0, 1, 1]

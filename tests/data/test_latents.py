"""Clips cut from encoded files: the clips of ClipDataset, in its order, without decoding a video."""

import pytest
import torch

from data.clips import ClipDataset
from data.latents import EncodedFile, LatentDataset
from data.synthetic import write_dataset


def encoded(frames, y=0, start=0):
    """A file whose latents say which file and which frame they are of."""
    number = start + torch.arange(frames, dtype=torch.float32)
    mean = number[:, None, None, None].expand(frames, 2, 3, 3)
    return EncodedFile(mean, mean + 0.5, number[:, None, None].expand(frames, 10, 4), y, f"file_{start}.mp4")


def test_every_window_of_every_file_comes_in_turn():
    cut = LatentDataset([encoded(5, 0, 0), encoded(3, 1, 100), encoded(4, 2, 200)], clip_frames=3)
    firsts = [int(item["mean"][0, 0, 0, 0]) for item in map(cut.__getitem__, range(len(cut)))]
    assert firsts == [0, 1, 2, 100, 200, 201]
    assert [cut[i]["y"] for i in range(6)] == [0, 0, 0, 1, 2, 2]


def test_picture_and_sound_of_a_clip_are_of_the_same_frames():
    cut = LatentDataset([encoded(6)], clip_frames=2)
    for i in range(len(cut)):
        item = cut[i]
        expected = torch.tensor([i, i + 1.0])
        assert item["mean"].shape == (2, 2, 3, 3) and item["a"].shape == (2, 10, 4)
        assert item["mean"][:, 0, 0, 0].equal(expected) and item["a"][:, 0, 0].equal(expected)
        assert item["std"][:, 1, 2, 2].equal(expected + 0.5)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("balls")
    write_dataset(root, train=4, test=0, frames=12)
    return ClipDataset(root, clip_frames=10, image_size=32)


def test_clips_are_those_of_clip_dataset_in_its_order(videos):
    """The pictures stand for their latents, and every 160 samples of sound for a mel frame."""
    files = []
    for i in range(len(videos.entries)):
        item = videos.file(i)
        a = item["wave"].reshape(-1, 10, 160)
        files.append(EncodedFile(item["frames"], item["frames"], a, item["y"], item["path"]))
    cut = LatentDataset(files, videos.clip_frames)
    assert len(cut) == len(videos) == 12
    for i in range(len(cut)):
        ours, theirs = cut[i], videos[i]
        assert {k: ours[k] for k in ("y", "path", "start")} == {k: theirs[k] for k in ("y", "path", "start")}
        assert ours["mean"].equal(theirs["frames"])
        torch.testing.assert_close(ours["a"].flatten(), theirs["wave"], rtol=0, atol=1e-5)

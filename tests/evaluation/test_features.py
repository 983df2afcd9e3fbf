"""Features: computed once per content, shared among processes, never half a file, and not dependent on the batch."""

import functools
import hashlib
import json
import threading
import time
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data.av import write_clip
from evaluation.features import RANDOM, CompatSound, Extractor, Motion, Sound, extract, shared
from evaluation.videos import find_videos
from tests.closeness import assert_close_by_size

ALONE = SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None)


def bar(**_):
    return nullcontext(SimpleNamespace(update=lambda: None))


class Eye(nn.Module):
    """(B, 48) mean colours of 4x4 cells -> (B, 6)"""

    def __init__(self):
        super().__init__()
        self.look = nn.Linear(48, 6)

    def forward(self, x):
        return self.look(x)


@functools.cache
def colours(clip):
    """(48,) the mean colours of 4x4 cells; a file is decoded once for all tests."""
    x = clip.picture().float().mean(0).movedim(-1, 0) / 255  # (3,H,W)
    return nn.functional.adaptive_avg_pool2d(x, 4).flatten()


class Cells(Extractor):
    """A small network that counts what it is asked to embed."""

    name, module, source, protocol = "cells", Eye, "nowhere", "4x4 cells"

    def __init__(self, file=None, device="cpu"):
        super().__init__(file, device)
        self.batches = []

    def read(self, clip):
        return colours(clip)

    def embed(self, batch):
        self.batches.append(len(batch))
        return self.net(batch)


class Eights(Cells):
    """One whose features depend on the group, as batch norms make them."""

    name, group = "eights", 8

    def embed(self, batch):
        return super().embed(batch) - batch[:, :6].mean(0)


def place(folder, *seeds, name="{}.mp4"):
    """Short films of noise; equal seeds give equal content."""
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        frames = torch.randint(256, (1, 8, 8, 3), generator=rng).repeat(16, 1, 1, 1).byte()
        write_clip(folder / name.format(f"{seed:02d}"), frames, 0.1 * torch.randn(25600, generator=rng))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eighteen clips, for tests that only read them."""
    place(path := tmp_path_factory.mktemp("films"), *range(18))
    return path


@pytest.fixture(scope="module")
def clips(folder):
    """Those eighteen."""
    return clips_of(folder)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """What one process makes of them in batches of four."""
    return run(clips, Cells(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def groups(clips, tmp_path_factory):
    """What one process makes of their groups of eight."""
    return run(clips, Eights(), tmp_path_factory.mktemp("groups"), batch_size=24)


def clips_of(folder):
    return find_videos(folder, "test", False).clips(100)


def run(clips, extractor, cache, batch_size=4, processes=ALONE):
    return extract(clips, extractor, cache, processes, batch_size, bar)


# -------------------------------------------------------------------------------------------------------------- cache


def test_second_run_computes_nothing_and_gives_the_same_to_the_bit(clips, tmp_path):
    first, again, extractor = run(clips, Cells(), tmp_path), Cells(), Cells()
    second = run(clips, again, tmp_path)
    assert (first.computed, first.cached, second.computed, second.cached) == (18, 0, 0, 18)
    assert again.batches == [] and second.seconds_per_clip is None and first.seconds_per_clip > 0
    assert torch.equal(first.features, second.features) and first.facts == extractor.facts


def test_features_are_in_the_order_of_the_clips_whatever_was_there_before(clips, whole, tmp_path):
    run(clips[5:9], Cells(), tmp_path)
    extractor = Cells()
    found = run(clips[::-1], extractor, tmp_path)
    assert_close_by_size(found.features, whole.features.flip(0))
    assert sum(extractor.batches) == found.computed == 14 and found.cached == 4


def test_renamed_copy_is_not_computed_again(tmp_path):
    place(tmp_path / "a", 1, 2)
    run(clips_of(tmp_path / "a"), Cells(), tmp_path / "cache")
    place(tmp_path / "b", 2, 1, name="renamed {}.mp4")
    extractor = Cells()
    assert run(clips_of(tmp_path / "b"), extractor, tmp_path / "cache").cached == 2 and extractor.batches == []


def test_two_files_of_equal_content_are_computed_once(tmp_path):
    place(tmp_path / "films", 1, 2)
    place(tmp_path / "films", 1, name="copy.mp4")
    extractor = Cells()
    found = run(clips_of(tmp_path / "films"), extractor, tmp_path / "cache")
    assert sum(extractor.batches) == found.computed == 2 and found.cached == 1
    assert torch.equal(found.features[0], found.features[2]) and not torch.equal(*found.features[:2])


def test_changed_file_of_the_same_name_is_computed_again(tmp_path):
    place(tmp_path / "films", 1, name="film.mp4")
    before = run(clips_of(tmp_path / "films"), Cells(), tmp_path / "cache").features
    place(tmp_path / "films", 2, name="film.mp4")
    after = run(clips_of(tmp_path / "films"), Cells(), tmp_path / "cache").features
    assert not torch.allclose(before, after)


def test_interrupted_run_goes_on_where_it_stopped(clips, whole, tmp_path, monkeypatch):
    embed = Cells.embed

    def until_the_third(self, batch):
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return embed(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Cells, "embed", until_the_third)
        run(clips, Cells(), tmp_path)
    extractor = Cells()
    found = run(clips, extractor, tmp_path)
    assert sum(extractor.batches) == found.computed == 10 and found.cached == 8  # two batches of four were kept
    assert_close_by_size(found.features, whole.features)


@pytest.mark.parametrize("spoilt", [lambda data: data[:40], lambda data: data[:-30], lambda data: b"",
                                    lambda data: b"not a zip", lambda data: data[:120] + b"\0" * 20 + data[140:]],
                         ids=["beginning", "almost all", "empty", "foreign", "overwritten"])  # fmt: skip
def test_damaged_file_of_the_cache_is_computed_again_and_no_other(clips, tmp_path, spoilt):
    clips = clips[:5]
    whole = run(clips, Cells(), tmp_path).features
    path = sorted(tmp_path.rglob("*.npz"))[2]
    path.write_bytes(spoilt(path.read_bytes()))
    extractor = Cells()
    found = run(clips, extractor, tmp_path)
    assert extractor.batches == [1] and found.computed == 1
    assert_close_by_size(found.features, whole)
    assert run(clips, Cells(), tmp_path).computed == 0


def test_nothing_but_whole_files_is_left_in_the_cache(clips, tmp_path):
    run(clips, Cells(), tmp_path)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 18 and {path.suffix for path in left} == {".npz"}


# -------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("fact", ["name", "protocol", "weights"])
def test_features_made_otherwise_are_kept_apart(clips, tmp_path, fact):
    run(clips[:3], Cells(), tmp_path)
    other = Cells()
    setattr(other, fact, "other")
    assert run(clips[:3], other, tmp_path).computed == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_antialias_batch_norm_and_scale_are_facts_of_a_feature(monkeypatch):
    for kind in (Motion, Sound, CompatSound):
        monkeypatch.setattr(kind, "module", Eye)
    networks = [Motion(None), Motion(None, antialias=True), Sound(None), CompatSound(None)]
    assert len({network.identity for network in networks}) == 4
    assert [network.weights for network in networks] == [RANDOM] * 4


def test_weights_of_a_file_are_told_by_its_hash(tmp_path):
    torch.save(Eye().state_dict(), tmp_path / "eye.pt")
    found = Cells(tmp_path / "eye.pt")
    assert found.weights == hashlib.sha256((tmp_path / "eye.pt").read_bytes()).hexdigest()
    assert found.identity != Cells().identity and json.dumps(found.facts)


# -------------------------------------------------------------------------------------------------------------- batch


@pytest.mark.parametrize("batch_size", [1, 5, 18, 100])
def test_features_do_not_depend_on_the_batch_size(clips, whole, tmp_path, batch_size):
    assert_close_by_size(whole.features, run(clips, Cells(), tmp_path, batch_size).features)


@pytest.mark.parametrize("kind", [Sound, pytest.param(Motion, marks=pytest.mark.slow)])
def test_features_of_the_real_networks_depend_on_the_batch_size_by_float32_rounding_only(
    clips, tmp_path, monkeypatch, kind
):
    """Kernels of another batch size round otherwise: by less than 1e-5 of the largest feature.

    The clips are as short as I3D takes them; sound of a tenth of their length has all the network's layers.
    """
    axis, most = {Motion: (1, 9), Sound: (0, 7056)}[kind]
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda self, clip: read(self, clip).narrow(axis, 0, most))
    extractor, clips = kind(None), clips[:2]
    two = run(clips, extractor, tmp_path / "two", batch_size=2).features
    one = run(clips[:1], extractor, tmp_path / "one", batch_size=1).features
    assert_close_by_size(two[:1], one)
    assert two.shape == (2, {"i3d": 400, "audioclip": 1024}[kind.name]) and not torch.allclose(*two)


def test_groups_are_eights_in_order_and_a_last_clip_alone_is_left_out(clips, tmp_path):
    for count, groups in ((16, [8, 8]), (17, [8, 8]), (18, [8, 8, 2]), (5, [5])):
        extractor = Eights()
        found = run(clips[:count], extractor, tmp_path / str(count), batch_size=8).features
        assert extractor.batches == groups and len(found) == sum(groups)
        x = torch.stack([extractor.read(clip) for clip in clips[: len(found)]])
        expected = torch.cat([extractor.net(part) - part[:, :6].mean(0) for part in x.split(8)])
        assert_close_by_size(found, expected.detach())


@pytest.mark.parametrize("batch_size", [1, 8, 16, 100])
def test_batch_size_changes_no_group(clips, groups, tmp_path, batch_size):
    extractor = Eights()
    found = run(clips, extractor, tmp_path, batch_size)
    assert extractor.batches == [8, 8, 2] and found.computed == 18
    assert_close_by_size(found.features, groups.features)


def test_group_is_computed_again_when_one_of_its_clips_is_another(clips, tmp_path):
    run(clips[:16], Eights(), tmp_path)
    extractor = Eights()
    found = run([*clips[:15], clips[17]], extractor, tmp_path)
    assert extractor.batches == [8] and (found.computed, found.cached) == (8, 8)


# ------------------------------------------------------------------------------------------------------------ trouble


def test_features_that_are_not_finite_name_the_file_and_are_not_kept(clips, tmp_path, monkeypatch):
    embed = Cells.embed

    def spoilt(self, batch):
        y = embed(self, batch)
        y[batch.isclose(Cells().read(clips[6])).all(1), 3] = torch.nan
        return y

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "embed", spoilt)
        with pytest.raises(ValueError, match=r"cells features of .*06\.mp4 from frame 0 are not finite; replace"):
            run(clips, Cells(), tmp_path)
    assert run(clips, Cells(), tmp_path).features.isfinite().all()


def test_file_that_cannot_be_decoded_ends_the_run_with_its_name(tmp_path):
    place(tmp_path / "films", 1, 2)
    clips = clips_of(tmp_path / "films")
    (tmp_path / "films" / "02.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"02\.mp4 cannot be read"):
        run(clips, Cells(), tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------------- memory


def test_at_most_two_batches_wait_while_one_is_embedded(clips, tmp_path):
    """A network that is slower than reading must not fill the memory with what was read."""
    reads, most_ahead, alive = [], [], []

    class Slow(Cells):
        def read(self, clip):
            reads.append(clip)
            return super().read(clip)

        def embed(self, batch):
            alive.append(weakref.ref(batch))
            time.sleep(0.05)
            most_ahead.append(len(reads) - sum(self.batches))  # of clips that are read and not embedded
            assert sum(ref() is not None for ref in alive) <= 2
            return super().embed(batch)

    run(clips, Slow(), tmp_path, batch_size=2)
    assert len(alive) == 9 and 2 < max(most_ahead) <= 6


# ---------------------------------------------------------------------------------------------------------- processes


def in_threads(count, work):
    """What `work` gives to each of `count` processes, played by threads that wait for each other."""
    barrier, results = threading.Barrier(count, timeout=20), [None] * count

    def play(i):
        process = SimpleNamespace(process_index=i, num_processes=count, wait_for_everyone=barrier.wait)
        try:
            results[i] = work(process)
        except BaseException as error:
            results[i] = error
            barrier.abort()

    threads = [threading.Thread(target=play, args=(i,)) for i in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


@pytest.mark.parametrize("count", [2, 3])
def test_processes_divide_the_clips_and_all_get_all_features(clips, whole, tmp_path, count):
    extractors = [Cells() for _ in range(count)]
    found = in_threads(count, lambda p: run(clips, extractors[p.process_index], tmp_path, processes=p))
    batches = [4, 4, 4, 4, 2]  # of one process; they go round
    assert [extractor.batches for extractor in extractors] == [batches[rank::count] for rank in range(count)]
    for one in found:
        assert one.computed == 18 and one.cached == 0
        assert torch.equal(one.features, whole.features)


def test_processes_divide_groups_and_leave_each_whole(clips, groups, tmp_path):
    extractors = [Eights() for _ in range(2)]
    found = in_threads(2, lambda p: run(clips, extractors[p.process_index], tmp_path, processes=p))
    assert [extractor.batches for extractor in extractors] == [[8, 2], [8]]
    for one in found:
        assert_close_by_size(one.features, groups.features)


def test_more_processes_than_clips_is_no_trouble(clips, tmp_path):
    found = in_threads(3, lambda p: run(clips[:2], Cells(), tmp_path, processes=p))
    assert [len(one.features) for one in found] == [2, 2, 2] and found[2].seconds_per_clip is None


def test_cache_that_processes_do_not_share_is_said(tmp_path):
    other = SimpleNamespace(process_index=1, num_processes=2, wait_for_everyone=lambda: None)

    def compute(items):
        yield from ((item, {"x": np.zeros(1)}) for item in items)

    with pytest.raises(ValueError, match="was computed but is not there; give --cache a folder that all processes see"):
        shared(["a", "b"], ["a", "b"], compute, tmp_path, other, lambda total: bar())

"""Folders of videos: layout, index, and items against the official numbers and against the whole file."""

import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from data import clips
from data.av import MediaError, Writer, read_audio, write_clip
from data.clips import ClipDataset
from data.frames import fit
from tests.closeness import assert_close_by_size
from tests.gaps import write_jumping


def video(path, frames=14, seed=0, loudness=0.5):
    """Write a clip of noise, in which a shift by one sample shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    wave = loudness * (2 * torch.rand(frames * 1600, generator=rng) - 1)
    write_clip(path, torch.randint(0, 255, (frames, 32, 32, 3), generator=rng, dtype=torch.uint8), wave)
    path.with_suffix(".wav").unlink()
    return path


def mute(path, frames=14):
    """Write a clip that has a picture only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two classes, three files with 14, 10 and 12 frames; one class is missing in test."""
    root = tmp_path_factory.mktemp("written")
    video(root / "train" / "ball" / "b.mp4", 14, 1)
    video(root / "train" / "ball" / "a.mp4", 10, 2)
    video(root / "train" / "car" / "c.mp4", 12, 3)
    video(root / "test" / "car" / "d.mp4", 11, 4)
    return root


@pytest.fixture
def root(written, tmp_path):
    """A copy of them that a test may change."""
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


def small(root, **options):
    return ClipDataset(root, **{"image_size": 16, **options})


# ----------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", ["item_30fps_stereo", "item_25fps_portrait"])
def test_item_equals_the_official_one(parity, tmp_path, name):
    case = parity(name)
    config, t = case.config, case.tensors
    start, window, first = config["clip_index"], config["sequence_length"], config["expected_start_sample_16k"]
    torch.testing.assert_close(fit(t["in.frames"], config["resolution"]), t["out.video"], rtol=0, atol=1e-5)
    track = resample(t["in.audio_track"][0], config["source_sample_rate"], 16000)
    expected = t["out.wave_expected"]
    torch.testing.assert_close(track[first : first + window * 1600], expected, rtol=0, atol=1e-4)

    media = tmp_path / "train" / config["class_of_clip"] / "clip.mp4"
    for path in (media, *(tmp_path / "test" / folder / "clip.mp4" for folder in config["classes"])):
        path.parent.mkdir(parents=True)
        shutil.copy(case.path.parent / f"{name}.mp4", path)
    data = ClipDataset(
        tmp_path, clip_frames=window, image_size=config["resolution"], normalise="clip", channels="first"
    )
    item = data[start]
    assert len(data) == config["clips_in_file"] and item["y"] == config["label"] and item["start"] == start
    torch.testing.assert_close(item["frames"], t["out.video"], rtol=0, atol=3 / 255)
    # Officially the sound starts with the first source frame (0.08 s), ours with the grid (0.1 s), so that clips are
    # slices of their file: at 25 fps they overlap but for 20 ms.
    later, peak = start * 1600 - first, track[start * 1600 : (start + window) * 1600].abs().max()
    overlap = item["wave"][: len(expected) - later] * peak / 0.95
    torch.testing.assert_close(overlap, expected[later:], rtol=0, atol=5e-3)


# ------------------------------------------------------------------------------------------------------------ items


def test_clips_start_at_every_frame_of_every_file(root):
    data = small(root)
    assert len(data) == 1 + 5 + 3
    found = [(os.path.basename(data[i]["path"]), data[i]["start"], data[i]["y"]) for i in range(len(data))]
    assert found == [("a.mp4", 0, 0), *(("b.mp4", s, 0) for s in range(5)), *(("c.mp4", s, 1) for s in range(3))]
    with pytest.raises(IndexError, match="clip 9 does not exist; there are 9"):
        data[9]


def test_a_clip_is_a_slice_of_its_file_and_beyond_the_ends_sound_is_reflected(root):
    data, context = small(root, context=932), 932
    whole, wave = data.file(1), small(root).file(1)["wave"]
    assert whole["frames"].shape == (14, 3, 16, 16) and wave.shape == (14 * 1600,)
    assert wave.abs().max().item() == pytest.approx(0.95)
    reflected = torch.from_numpy(np.pad(wave.numpy(), context, mode="reflect"))
    assert_close_by_size(whole["wave"], reflected)
    for start in range(5):
        item = data[1 + start]
        assert torch.equal(item["frames"], whole["frames"][start : start + 10])
        expected = reflected[start * 1600 : (start + 10) * 1600 + 2 * context]
        assert_close_by_size(item["wave"], expected)


def test_clip_normalisation_looks_at_the_clip_without_its_context(tmp_path):
    frames = torch.zeros(30, 32, 32, 3, dtype=torch.uint8)
    wave = torch.cat([torch.zeros(20000), torch.linspace(0.2, 0.7, 28000) * torch.sin(torch.arange(28000) / 5)])
    (tmp_path / "train").mkdir()
    write_clip(tmp_path / "train" / "a.mp4", frames, wave)
    data = small(tmp_path, normalise="clip", context=1600)
    assert data[0]["wave"].abs().max() < 1e-3 and data[0]["y"] == -1  # silence stays silent
    for start in (5, 12):
        assert data[start]["wave"].abs().max() > 0.96  # the sound swells, so the context is louder
        assert data[start]["wave"][1600:-1600].abs().max().item() == pytest.approx(0.95)
    assert small(tmp_path)[5]["wave"].abs().max() < 0.951


def test_sound_that_ends_before_the_picture_is_silence(tmp_path):
    (tmp_path / "train").mkdir()
    with Writer(tmp_path / "train" / "a.mp4", 32, 32) as writer:
        writer.write(torch.zeros(20, 32, 32, 3, dtype=torch.uint8), 0.5 * torch.ones(8000))
    wave = small(tmp_path).file(0)["wave"]
    assert wave.shape == (32000,) and wave[10000:].eq(0).all()


# ------------------------------------------------------------------------------------------------- index and layout


def test_useless_files_are_counted_and_named(root):
    folder = root / "train" / "car"
    video(folder / "short.mp4", frames=5)
    video(folder / "silent.mp4", loudness=0)
    (folder / "text.mp4").write_text("no film")
    (folder / ".hidden.mp4").write_text("no film")
    (folder / "notes.txt").write_text("no film")
    whole = (folder / "c.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    mute(folder / "mute.mp4")
    data = small(root)
    assert len(data) == 9
    reasons = {os.path.basename(path): reason for path, reason in data.skipped}
    assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == {
        "short.mp4": "shorter than 10 frames",
        "silent.mp4": "silent",
        "mute.mp4": "no sound track",
        "text.mp4": "unreadable",
        "cut.mp4": "unreadable",
    }
    assert "text.mp4 cannot be read" in reasons["text.mp4"]
    assert data.summary() == (
        "train: 9 clips in 3 files, 2 classes, skipped 1 no sound track, "
        "1 shorter than 10 frames, 1 silent, 2 unreadable"
    )


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize(
    ("jumps", "reason"),
    [
        ({"picture": 5}, "too long gaps: no new picture for 5.1 s from 0.9 s on"),
        ({"sound": 5}, "too long gaps: no sound for 5.0 s from 1.0 s on"),
        ({"picture": 1.5, "sound": 1.5}, ""),
        ({}, ""),
    ],
)
def test_clock_that_jumps_in_mid_file_is_a_gap(tmp_path, jumps, reason, b_frames):
    write_jumping(tmp_path / "a.mp4", **jumps, b_frames=b_frames)
    assert clips.examine(tmp_path, Path("a.mp4"), 10, 16000, "mean").problem == reason


def test_no_usable_file_is_one_error(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / "train" / name, frames=3)
    with pytest.raises(ValueError, match=r"no usable video: 2 shorter than 10 frames \(the first is .*a\.mp4\)"):
        small(tmp_path)


def test_index_is_kept_and_renewed_when_a_file_changes(root, monkeypatch):
    examined, examine = [], clips.examine

    def noted(folder, file, *arguments):
        examined.append(file.name)
        return examine(folder, file, *arguments)

    monkeypatch.setattr(clips, "examine", noted)
    before = small(root)
    assert sorted(examined) == ["a.mp4", "b.mp4", "c.mp4"]
    assert small(root).entries == before.entries and len(examined) == 3
    examined.clear()
    video(root / "train" / "ball" / "a.mp4", 13, 7)
    (root / "train" / "car" / "c.mp4").unlink()
    after = small(root)
    assert examined == ["a.mp4"] and [e.frames for e in after.entries] == [13, 14]
    assert after.entries[0].peak != before.entries[0].peak and after.class_names == ("ball", "car")
    assert not list(root.glob(".*.part"))


@pytest.mark.parametrize("seconds", [-(10**9), -3600, -1e-3, 1e-3, 3600, 10**9])
def test_file_changed_under_any_clock_is_examined_again(root, seconds):
    """Of the same size, and older or younger than the index: times are compared for equality, not for order."""
    path, other = root / "train" / "ball" / "a.mp4", video(root / "other.mp4", 10, seed=9)
    for file in (path, other):
        os.truncate(file, 2**17)  # zeros at the end are no fault
    before, time = small(root), path.stat().st_mtime_ns
    shutil.copy(other, path)
    os.utime(path, ns=(0, time + int(1e9 * seconds)))
    after = small(root)
    assert after.entries[0].size == before.entries[0].size == 2**17
    assert after.entries[0].peak != before.entries[0].peak and after.entries[1:] == before.entries[1:]


@pytest.mark.parametrize("damage", ["", "[1, 2", '{"version": 0}', '{"version": 3, "entries": [{"path": 1}]}'])
def test_a_damaged_index_is_made_anew(root, damage):
    before = small(root)
    (cache,) = root.glob(".index-train-*.json")
    cache.write_text(damage)
    assert small(root).entries == before.entries
    assert len(json.loads(cache.read_text())["entries"]) == 3


def test_index_of_other_settings_is_another(root):
    assert small(root).entries[0].frames == 10
    assert small(root, fps=5, clip_frames=5).entries[0].frames == 5


def test_a_folder_that_cannot_be_written_keeps_its_index_in_memory(root, monkeypatch):
    def refuse(self, text):
        raise PermissionError(self)

    monkeypatch.setattr("pathlib.Path.write_text", refuse)  # tests may run as root, whom no permission stops
    assert len(small(root)) == 9 and not list(root.glob(".index*"))


def test_progress_sees_every_file_and_only_stale_ones(root):
    seen = []

    def bar(files, total):
        seen.append(total)
        yield from files

    small(root, progress=bar)
    small(root, progress=bar)
    assert seen == [3]


def test_labels_are_the_same_in_every_split(root):
    assert small(root, split="test").class_names == ("ball", "car") and small(root, split="test")[0]["y"] == 1


def test_wrong_layouts_say_what_was_found(root, tmp_path):
    with pytest.raises(ValueError, match=r"no folder 'val' \(found: test, train\)"):
        small(root, split="val")
    with pytest.raises(ValueError, match=r"missing does not exist; give a folder with train/"):
        small(root / "missing")
    (root / "empty" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no videos"):
        small(root / "empty")
    shutil.copy(root / "test" / "car" / "d.mp4", root / "train" / "loose.mp4")
    with pytest.raises(ValueError, match=r"1 videos beside its class folders \(as loose\.mp4\) and 3 in them"):
        small(root)


def test_wrong_numbers_say_what_would_do(root):
    for options, message in [
        ({"fps": 7}, "not a whole number of samples per frame at 7 fps"),
        ({"normalise": "peak"}, "'peak', expected 'file' or 'clip'"),
        ({"context": 16000}, "context of 16000 samples is not shorter"),
    ]:
        with pytest.raises(ValueError, match=message):
            small(root, **options)


def test_a_file_that_breaks_later_is_named_and_not_replaced(root):
    data = small(root)
    (root / "train" / "ball" / "a.mp4").write_text("overwritten")
    with pytest.raises(MediaError, match=r"a\.mp4 cannot be read"):
        data[0]
    assert data[1]["start"] == 0


def test_the_peak_of_a_long_file_is_found_past_its_first_minute(tmp_path):
    wave = 0.1 * torch.sin(torch.arange(62 * 16000) / 5)
    wave[61 * 16000 :] *= 6
    write_clip(tmp_path / "a.mp4", torch.zeros(620, 16, 16, 3, dtype=torch.uint8), wave)
    entry = clips.examine(tmp_path, Path("a.mp4"), 10, 16000, "mean")
    assert entry.frames == 620 and entry.peak == read_audio(tmp_path / "a.mp4", 0, 620 * 1600).abs().max().item() > 0.5


@pytest.mark.parametrize("keep", [0, 1e9])
def test_an_index_that_is_broken_off_goes_on_with_what_was_examined(root, monkeypatch, keep):
    """Kept every few seconds, for a killed process, and at Ctrl-C."""
    monkeypatch.setattr(clips, "KEEP", keep)
    there = []

    def interrupted(entries, total):
        for i, entry in enumerate(entries):
            if i == 2:
                there.extend(root.glob(".index-train-*.json"))
                raise KeyboardInterrupt
            yield entry

    with pytest.raises(KeyboardInterrupt):
        small(root, progress=interrupted)
    totals = []
    small(root, progress=lambda entries, total: totals.append(total) or entries)
    assert totals == [1] and len(there) == (keep == 0)


def test_writing_the_index_again_and_again_stays_a_small_share_of_the_time(root, monkeypatch):
    """However large it is: seconds are those of a clock that writing 10 s each and examining 1 s each move."""
    now, written = [0.0], []
    monkeypatch.setattr(clips.time, "monotonic", lambda: now[0])

    def save(cache, entries):
        written.append(len(entries))
        now[0] += 10

    def examined():
        for i in range(2000):
            now[0] += 1
            yield clips.Entry(str(i), 1, 1, 1, 0.5, "")

    monkeypatch.setattr(clips, "_save_cache", save)
    clips._collect(examined(), {}, root)
    assert written[0] <= clips.KEEP and 9 <= len(written) <= 11 and 10 * len(written) < 2000 / 15


def test_deep_files_are_of_their_first_folders_class_and_unread_ones_are_skipped_by_name(root):
    deep = root / "train" / "ball" / "2019" / "june"
    deep.mkdir(parents=True)
    (root / "train" / "ball" / "b.mp4").rename(deep / "b.mp4")
    (deep / "c.rmvb").write_text("")
    (root / "train" / "thumbnails").mkdir()
    (root / "train" / "thumbnails" / "b.jpg").write_text("")
    data = small(root)
    found = {os.path.relpath(data[i]["path"], root / "train"): data[i]["y"] for i in range(len(data))}
    assert found == {"ball/2019/june/b.mp4": 0, "ball/a.mp4": 0, "car/c.mp4": 1} and data.class_names == ("ball", "car")
    assert data.skipped == [(str(deep / "c.rmvb"), "unread .rmvb: convert it to mp4")]
    assert data.summary().endswith("skipped 1 unread .rmvb")

"""Folders of videos: one rule for classes, nothing left out in silence, the nearest name to a wrong one."""

import os
from fractions import Fraction
from unicodedata import normalize

import av
import numpy as np
import pytest

from data.av import iter_frames, read_frames
from data.folders import SUFFIXES, by_reason, class_of, nearest, nearest_path, printable, scan, walk
from evaluation.videos import find_videos
from pipeline.conditional import find_inputs, folder_labels

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".3gp": "3gp", ".webm": "matroska", ".mkv": "matroska",
              ".avi": "avi", ".flv": "flv", ".wmv": "asf", ".ts": "mpegts", ".m2ts": "mpegts",
              ".mts": "mpegts"}  # fmt: skip


@pytest.fixture
def put(tmp_path):
    """Makes files below the folder of the test, some of which are links."""

    def put(*paths, links=()):
        for path in (tmp_path / name for name in paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for path, target in ((tmp_path / name, target) for name, target in dict(links).items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        return tmp_path

    return put


def names(files):
    return [path.as_posix() for path in files]


# ------------------------------------------------------------------------------------------------------------- classes


def test_a_file_belongs_to_the_class_of_its_first_folder_however_deep_it_lies(put):
    root = put("train/red/a.mp4", "train/red/2019/june/b.mp4", "train/blue/x/y/z/a.mp4", "test/red/deep/t.mp4")
    files, classes, skipped = scan(root, "train")
    assert names(files) == ["blue/x/y/z/a.mp4", "red/2019/june/b.mp4", "red/a.mp4"]
    assert classes == ("blue", "red") and list(map(class_of, files)) == ["blue", "red", "red"] and not skipped
    inputs, _ = find_inputs(root / "train", "picture")
    assert inputs == [root / "train" / file for file in files]
    assert folder_labels(inputs, root / "train", ("blue", "red")) == [0, 1, 1]


def test_a_folder_without_a_video_is_no_class(put):
    left = ("train/thumbnails/a.jpg", "train/__MACOSX/red/._a.mp4", "train/__MACOSX/red/b.mp4", "train/.cache/x/c.mp4",
            "train/red/.trash/d.mp4", "train/red/thumbnails/e.jpg", "train/notes.txt", "test/old/f.rmvb")  # fmt: skip
    root = put("train/red/a.mp4", "test/blue/b.mp4", *left)
    (root / "train" / "empty" / "below").mkdir(parents=True)
    files, classes, skipped = scan(root, "train")
    assert (names(files), classes, skipped) == (["red/a.mp4"], ("blue", "red"), [])


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_class_is_one_whether_its_name_is_composed_or_not_and_files_keep_their_own(put, forms):
    train, test = (normalize(form, "café") for form in forms)
    root = put(f"train/{train}/a.mp4", f"test/{test}/b.mp4")
    for split in ("train", "test"):
        (file,), classes, _ = scan(root, split)
        assert classes == (normalize("NFC", "café"),) and class_of(file) == classes[0]
        assert (root / split / file).is_file()
    inputs, _ = find_inputs(root / "test", "picture")
    assert folder_labels(inputs, root / "test", classes) == [0]


# --------------------------------------------------------------------------------------------------- nothing in silence


def test_what_looks_like_media_and_is_not_read_is_named_with_its_reason(put):
    root = put(
        "train/red/a.mp4", "train/red/B.RMVB", "train/red/deep/c.ogv", links={"train/red/d.mp4": "/nowhere/d.mp4"}
    )
    _, _, skipped = scan(root, "train")
    assert skipped == [
        ("red/B.RMVB", "unread .rmvb: convert it to mp4"),
        ("red/d.mp4", "dead link: it leads to no file"),
        ("red/deep/c.ogv", "unread .ogv: convert it to mp4"),
    ]
    assert by_reason(skipped) == "1 dead link, 1 unread .ogv, 1 unread .rmvb"
    _, of_inputs = find_inputs(root / "train", "sound")
    assert of_inputs == [(str(root / "train" / path), reason) for path, reason in skipped]


def test_a_split_with_nothing_that_is_read_says_what_there_is(put):
    with pytest.raises(ValueError, match=r"has no videos \(.*\), but 2 unread \.rmvb; put some"):
        scan(put("train/a.rmvb", "train/b.rmvb"), "train")


def test_links_are_followed_but_not_in_circles(put):
    links = {"train/red/self": "../red", "train/blue": "../far", "far/up": "../train", "train/red/x.mp4": "x.mp4"}
    files, classes, skipped = scan(put("far/b.mp4", "train/red/a.mp4", links=links), "train")
    assert names(files) == ["blue/b.mp4", "red/a.mp4"] and classes == ("blue", "red")
    assert skipped == [("red/x.mp4", "dead link: it leads to no file")]


def test_files_that_differ_in_the_suffix_only_are_all_there_but_for_the_sound_of_a_film(put):
    root = put("a.mp4", "a.mkv", "a.wav", "b.mp3", "b.wav")
    assert names(walk(root)[0]) == ["a.mkv", "a.mp4"]
    files, _ = find_inputs(root, "sound")
    assert [file.name for file in files] == ["a.mkv", "a.mp4", "b.mp3", "b.wav"]


def write_counting(path, frames=40, fps=20):
    """A film whose frame k is grey 6 k; with B-frames, but in AVI, which has no times for them, and in WMV."""
    without = {".avi": ("mjpeg", "yuvj420p"), ".wmv": ("wmv2", "yuv420p")}
    codec, pixels = without.get(path.suffix, ("libx264", "yuv420p"))
    with av.open(str(path), "w", format=CONTAINERS[path.suffix]) as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "8"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, pixels
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 6 * k, np.uint8))
            frame.pts, frame.time_base = k, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_counts_as_a_video_is_read_exactly_in_any_window(tmp_path, suffix):
    write_counting(path := tmp_path / f"film{suffix}")
    assert [video.frames for video in find_videos(tmp_path, "test", sound=False).videos] == [20]
    shown = [round(frame.float().mean().item() / 12) for frame in iter_frames(path, 10)]
    assert shown == list(range(20))
    for start in (0, 7, 15):
        window = read_frames(path, start, 4)
        assert [round(grey.item() / 12) for grey in window.float().mean((1, 2, 3))] == list(range(start, start + 4))


# --------------------------------------------------------------------------------------------------------------- words


def test_reasons_are_counted_by_their_kind_without_paths_and_details():
    skipped = [("/a: b/x.mp4", "/a: b/x.mp4 cannot be read (Invalid data); replace it"), ("y", "silent"),
               ("z", "cannot be read (End of file); replace it"), ("u", "unreadable: u is cut")]  # fmt: skip
    assert by_reason(skipped) == "2 cannot be read, 1 silent, 1 unreadable" and by_reason([]) == "none"


def test_names_that_are_not_utf8_become_text_that_is():
    name = os.fsdecode(b"caf\xe9.mp4")
    assert printable(name) == printable(printable(name)) == r"caf\xe9.mp4" and printable("é") == "é"


@pytest.mark.parametrize(
    ("name", "near"),
    [("rad", "'red'"), ("RED", "'red'"), ("gren", "'green'"), ("purple", None), ("", None), ("3", None)],
)
def test_wrong_name_is_answered_with_the_nearest_right_one_or_none(name, near):
    assert nearest(name, ("blue", "green", "red")) == (f" (did you mean {near}?)" if near else "")


def test_wrong_path_is_answered_with_the_nearest_that_is_there(put):
    root = put("runs/demo/export/config.json", "runs/demo/expert/x")
    assert nearest_path(root / "rnus/demo/export") == f" (did you mean {root}/runs/demo/export?)"
    assert (
        nearest_path(root / "runs/Demo/export/config.json") == f" (did you mean {root}/runs/demo/export/config.json?)"
    )
    right = nearest_path(root / "runs/demo/expart", lambda path: (path / "config.json").is_file())
    assert right == f" (did you mean {root}/runs/demo/export?)"
    assert nearest_path(root / "runs/zzz/export") == nearest_path(root / "nothing" / "there") == ""


def test_the_split_given_as_the_data_set_is_answered_with_the_folder_above(put):
    root = put("train/red/a.mp4", "test/red/a.mp4")
    with pytest.raises(ValueError, match=rf"no folder 'train' \(did you mean {root}\?\)"):
        scan(root / "train", "train")
    with pytest.raises(ValueError, match=r"trian does not exist \(did you mean .*/train\?\)"):
        find_inputs(root / "trian", "picture")
    with pytest.raises(ValueError, match=r"does not exist \(did you mean .*/data\?\); give a folder with train/"):
        scan(put("data/train/a.mp4") / "dtaa", "train")

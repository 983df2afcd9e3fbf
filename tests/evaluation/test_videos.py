"""Folders as clips: which windows of which files, read by time, and what makes a file unusable."""

import shutil
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from data.av import write_clip
from evaluation import drift, synchrony
from evaluation.videos import FRAMES, Clip, Folder, Video, find_videos, told

GREYS = 32  # frame k of a film is grey, level 8 (k % 32): nearest levels tell which frame is shown


def film(path, frames=FRAMES, fps=10, wave=None):
    """An mp4 whose frames say which they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = 8 * (torch.arange(frames) % GREYS).to(torch.uint8)
    wave = torch.zeros(1) if wave is None else wave
    write_clip(path, grey[:, None, None, None].repeat(1, 16, 16, 3), wave, fps)
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A film of 32 frames at 10 fps, to be copied and spoilt."""
    return film(tmp_path_factory.mktemp("template") / "film.mp4", 32)


def place(template, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(template, path)


def names(folder):
    return [video.path.relative_to(folder.path).as_posix() for video in folder.videos]


def of_lengths(*frames):
    return Folder(Path(), [Video(Path(f"{n}.mp4"), str(n), n, 16, 16, 10.0, True) for n in frames], [])


# -------------------------------------------------------------------------------------------------------------- clips


def test_every_video_gives_its_first_window_before_any_gives_its_second():
    clips = of_lengths(50, 16, 33).clips(100)
    assert [(clip.video.frames, clip.start) for clip in clips] == [
        (50, 0),
        (16, 0),
        (33, 0),
        (50, 16),
        (33, 16),
        (50, 32),
    ]


def test_windows_of_a_video_share_no_frame_and_end_within_it():
    starts = [clip.start for clip in of_lengths(63).clips(100)]
    assert starts == [0, 16, 32]  # a fourth would end at frame 64


def test_fewer_clips_are_a_part_of_more_and_all_first_windows_come_first():
    folder = of_lengths(50, 16, 33)
    for n in range(6):
        fewer, more = ({clip.key for clip in folder.clips(m)} for m in (n, n + 1))
        assert len(fewer) == n and fewer < more
    assert {clip.start for clip in folder.clips(3)} == {0} and len({clip.video for clip in folder.clips(3)}) == 3


def in_classes(names, **sizes):
    """A folder of videos whose contents are named by `names`, and whose classes are called as the keywords are."""
    root, contents = Path("root"), iter(names)
    videos = [Video(root / group / f"{i:03d}.mp4", next(contents), 80, 16, 16, 10.0, True)
              for group, size in sizes.items() for i in range(size)]  # fmt: skip
    return Folder(root, sorted(videos, key=lambda video: video.path), [])


def test_few_clips_and_few_long_videos_are_of_all_classes():
    folder = in_classes(map(str, range(63)), blue=21, green=21, red=21)
    for chosen in (folder.choose(9), folder.choose(9, frames=33), [clip.video for clip in folder.clips(9)]):
        assert sorted(map(folder.class_of, chosen)) == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3
    more = [folder.class_of(clip.video) for clip in folder.clips(72) if clip.start]  # nine of the second windows
    assert sorted(more) == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3


def test_folders_and_files_of_other_names_give_the_same_clips():
    folder = in_classes(map(str, range(63)), blue=21, green=21, red=21)
    renamed = in_classes(map(str, reversed(range(63))), x=21, y=21, z=21)  # red, green, blue, each from its last file
    for num in (1, 8, 40, 63, 100):
        assert {clip.key for clip in folder.clips(num)} == {clip.key for clip in renamed.clips(num)}
    assert folder.choose(8) != folder.videos[:8]


def test_synchrony_and_long_videos_are_of_the_same_choice():
    folder = in_classes(map(str, range(63)), blue=21, green=21, red=21)
    setting = SimpleNamespace(fake=folder, num=6, prerolled=10, shared=lambda name, version, videos, *_: videos)
    assert synchrony._events(setting, folder) == drift.long_videos(setting)[0] == folder.choose(6) != folder.videos[:6]


def test_class_is_the_first_folder_however_deep_a_file_lies():
    video = Video(Path("root/red/a/b/film.mp4"), "1", 16, 16, 16, 10.0, True)
    assert Folder(Path("root"), [], []).class_of(video) == "red"


def test_record_names_the_file_of_each_clip_and_what_chose_it():
    folder = in_classes("abcd", blue=2, red=2)
    record = folder.chosen(5)
    assert record["chosen"][:4] == ["blue/000.mp4", "blue/001.mp4", "red/000.mp4", "red/001.mp4"]
    assert record["chosen"][4] in record["chosen"][:4] and "seed 0" in record["chosen_by"]


def test_clips_of_an_endless_video_are_not_listed_beyond_those_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(
        "evaluation.videos.Clip", lambda video, start, *how: made.append(start) or Clip(video, start, *how)
    )
    assert [clip.start for clip in of_lengths(10**6, 16).clips(3)] == [0, 0, 16] == made


def test_key_follows_the_content_and_the_window_and_not_the_name(template, tmp_path):
    place(template, tmp_path / "a.mp4", tmp_path / "b.mp4")
    film(tmp_path / "c.mp4", 33)
    a, b, c, *later = (clip.key for clip in find_videos(tmp_path, "test", True).clips(6))
    assert a == b and len({a, c, *later}) == 4


# ------------------------------------------------------------------------------------------------------------ folders


def test_plain_folder_class_folders_and_the_split_of_a_data_set_are_found(template, tmp_path):
    place(template, tmp_path / "plain" / "a.mp4", tmp_path / "classes" / "red" / "a.mp4")
    place(template, tmp_path / "classes" / "blue" / "b.mp4")
    for split in ("train", "test"):
        place(template, tmp_path / "set" / split / "red" / f"{split}.mp4")
    assert names(find_videos(tmp_path / "plain", "test", True)) == ["a.mp4"]
    assert names(find_videos(tmp_path / "classes", "test", True)) == ["blue/b.mp4", "red/a.mp4"]
    assert names(find_videos(tmp_path / "set", "test", True)) == ["red/test.mp4"]
    assert names(find_videos(tmp_path / "set", "train", True)) == ["red/train.mp4"]


def test_data_set_without_the_split_is_refused_rather_than_taken_whole(template, tmp_path):
    place(template, tmp_path / "train" / "a.mp4")
    with pytest.raises(ValueError, match="has no folder 'valid', but train; give --split"):
        find_videos(tmp_path, "valid", True)


def test_hidden_and_foreign_files_are_ignored_and_suffixes_may_be_upper_case(template, tmp_path):
    place(template, tmp_path / "FILM.MP4", tmp_path / ".hidden.mp4", tmp_path / ".thumbs" / "a.mp4")
    for name in ("film.wav", "notes.txt", "run.json"):
        (tmp_path / name).write_text("no video")
    (tmp_path / "folder.mp4").mkdir()
    found = find_videos(tmp_path, "test", True)
    assert names(found) == ["FILM.MP4"] and found.problems == []


def test_hidden_folder_may_be_given_itself(template, tmp_path):
    place(template, tmp_path / ".cache" / "a.mp4")
    assert names(find_videos(tmp_path / ".cache", "test", True)) == ["a.mp4"]


def test_names_with_spaces_and_letters_of_any_language_are_read(template, tmp_path):
    place(template, tmp_path / "Пляж 北京" / "a film, ünï — 1.mp4")
    (clip,) = find_videos(tmp_path, "test", True).clips(1)
    assert clip.video.path.name == "a film, ünï — 1.mp4" and clip.picture().shape == (16, 16, 16, 3)


def test_looking_is_shown_and_changes_nothing(template, tmp_path):
    place(template, tmp_path / "a.mp4", tmp_path / "b.mp4")
    totals = []
    found = find_videos(tmp_path, "test", True, lambda looked, total: (totals.append(total), looked)[1])
    assert totals == [2] and found == find_videos(tmp_path, "test", True)


@pytest.mark.parametrize("there", [(), ("notes.txt",)])
def test_folder_without_videos_says_which_suffixes_count(tmp_path, there):
    for name in there:
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"has no videos \(\.3gp, \.avi, .*, \.wmv\); give a folder that has"):
        find_videos(tmp_path, "test", True)


# ------------------------------------------------------------------------------------------------------------ reading


def shown(clip):
    """Which frame of a film (modulo 32) each frame of the clip is."""
    return (clip.picture().float().mean((1, 2, 3)) / 8).round().int().tolist()


@pytest.mark.parametrize("fps", [10, 25, 30, Fraction(30000, 1001)])
def test_frames_are_those_shown_at_tenths_of_a_second(tmp_path, fps):
    film(tmp_path / "film.mp4", frames=round(3.25 * fps), fps=fps)
    first, second = find_videos(tmp_path, "test", True).clips(9)
    expected = [int(Fraction(j, 10) * Fraction(fps)) % GREYS for j in range(32)]
    assert shown(first) + shown(second) == expected


def test_record_says_at_which_rates_videos_were_and_that_they_were_read_by_time(template, tmp_path):
    place(template, tmp_path / "10.mp4")
    assert find_videos(tmp_path, "test", True).facts()["fps"] == [10]
    assert not find_videos(tmp_path, "test", True).facts()["resampled_by_time"]
    for fps in (25, Fraction(30000, 1001)):
        film(tmp_path / f"{float(fps):.0f}.mp4", frames=60, fps=fps)
    facts = find_videos(tmp_path, "test", True).facts()
    assert facts["fps"] == [10, 25, 29.97] and facts["resampled_by_time"]
    assert facts["videos"] == 3 and facts["sizes"] == ["16x16"]


def test_sound_of_a_clip_is_that_of_its_frames(tmp_path):
    wave = torch.zeros(51200)
    wave[25600:] = 0.5 * torch.sin(torch.arange(25600) * 0.3)  # silent in the first window only
    film(tmp_path / "film.mp4", 32, wave=wave)
    first, second = (clip.sound(44100) for clip in find_videos(tmp_path, "test", True).clips(2))
    assert first.shape == second.shape == (70560,)
    assert first[:-2000].abs().max() < 0.01 < 0.3 < second[2000:].square().mean().sqrt()


# ----------------------------------------------------------------------------------------------------------- problems


def silent_film(path, **options):
    """Two seconds of noise without a sound track."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 16
        for _ in range(20):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8), format="rgb24")
                )
            )
        container.mux(stream.encode(None))


def test_missing_sound_track_is_a_problem_only_where_sound_is_needed(template, tmp_path):
    place(template, tmp_path / "a.mp4")
    silent_film(tmp_path / "silent.mp4")
    assert names(find_videos(tmp_path, "test", sound=False)) == ["a.mp4", "silent.mp4"]
    found = find_videos(tmp_path, "test", sound=True)
    assert names(found) == ["a.mp4"] and found.problems == [(str(tmp_path / "silent.mp4"), "no sound track")]


def test_video_of_fifteen_frames_is_too_short_and_one_of_sixteen_is_not(tmp_path):
    film(tmp_path / "15.mp4", 15)
    film(tmp_path / "16.mp4", 16)
    film(tmp_path / "47 at 30.mp4", 47, fps=30)  # 16 tenths of a second begin within it
    found = find_videos(tmp_path, "test", True)
    assert names(found) == ["16.mp4", "47 at 30.mp4"]
    assert found.problems == [(str(tmp_path / "15.mp4"), "fewer than 16 frames at 10 fps: 15")]


@pytest.mark.parametrize("content", [b"", b"no video at all\n", bytes(range(256)) * 64])
def test_file_that_is_no_video_is_named_with_its_reason(template, tmp_path, content):
    place(template, tmp_path / "a.mp4")
    (tmp_path / "notes.mp4").write_bytes(content)
    found = find_videos(tmp_path, "test", True)
    ((path, reason),) = found.problems
    assert names(found) == ["a.mp4"] and path == str(tmp_path / "notes.mp4")
    assert reason.startswith("cannot be read (") and ";" not in reason


def test_folder_of_unusable_files_says_what_is_wrong_with_the_first_of_them(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.mp4").write_text("")
    with pytest.raises(
        ValueError, match=r"has no usable video: 0\.mp4: cannot .*; 2\.mp4: .* and 2 more; replace them"
    ):
        find_videos(tmp_path, "test", True)


def test_problems_are_told_in_few_words():
    assert told([("/x/a.mp4", "bad"), ("/x/b.mp4", "worse")]) == "a.mp4: bad; b.mp4: worse"


def spoil(template, path, *edits):
    """A copy in which the 32-bit number `at` bytes behind the first box of this name is another."""
    data = bytearray(template.read_bytes())
    for box, at, value in edits:
        struct.pack_into(">I", data, data.index(box) + at, value)
    path.write_bytes(data)


SAMPLES, SIZE, DURATION, STEP = (b"stts", 12), (b"stsz", 12), (b"mdhd", 20), (b"stts", 16)


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([(*SAMPLES, 10**9)], None),  # the 32 frames that are there count
        ([(*DURATION, 2**31)], None),
        ([(*SIZE, 10**9)], "cannot be read"),
        ([(*SAMPLES, 10**9), (*SIZE, 10**9)], "cannot be read"),
        ([(*SAMPLES, 10**9), (*SIZE, 10**9), (b"stsz", 8, 100)], "has a video stream without a single picture"),
        ([(*STEP, 2**31 - 1), (b"mdhd", 16, 100)], "damaged clock: "),
    ],
)
def test_header_that_claims_a_billion_frames_is_found_out(template, tmp_path, edits, reason):
    place(template, tmp_path / "a.mp4")
    spoil(template, tmp_path / "b.mp4", *edits)
    found = find_videos(tmp_path, "test", True)
    assert [video.frames for video in found.videos] == ([32, 32] if reason is None else [32])
    assert reason is None or reason in found.problems[0][1]


@pytest.mark.parametrize("kept", [0.1, 0.5])
def test_file_cut_short_is_found_out_wherever_its_header_is(template, tmp_path, kept):
    """Header last: nothing can be read. Header first: it promises more than there is."""
    place(template, tmp_path / "a.mp4", tmp_path / "header last.mp4")
    silent_film(tmp_path / "header first.mp4", movflags="faststart")
    for path in tmp_path.glob("header*.mp4"):
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"mdat") + int(kept * (len(data) - data.index(b"mdat")) / 2)])
    found = find_videos(tmp_path, "test", False)
    assert names(found) == ["a.mp4"] and len(found.problems) == 2


def test_clip_says_which_file_and_frame_it_is():
    assert str(Clip(of_lengths(50).videos[0], 16)) == "50.mp4 from frame 16"

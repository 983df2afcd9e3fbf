"""Parting videos: no video with pieces on both sides, the share that was asked for, captions that go along."""

import json

import pytest

from data.captions import read_captions
from data.folders import walk
from data.split import main, parted, split_folder, video_of

PIECES = r"(.+)_\d+"


@pytest.fixture
def pieces(tmp_path):
    """40 videos of 1 to 5 pieces, some of a video in another class than the rest."""
    folder = tmp_path / "pieces"
    for video in range(40):
        for piece in range(video % 5 + 1):
            file = folder / ("wood" if (video + piece) % 3 else "metal") / f"v{video:02d}_{piece}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    return folder


def videos(folder):
    return {video_of(file, PIECES) for file in walk(folder)[0]}


def test_no_video_has_pieces_on_both_sides_and_every_piece_is_on_one(pieces, tmp_path):
    """Row S25."""
    counts = split_folder(pieces, tmp_path / "out", 0.25, PIECES)
    train, test = (videos(tmp_path / "out" / split) for split in ("train", "test"))
    assert not train & test and train | test == videos(pieces)
    found = [file for split in ("train", "test") for file in walk(tmp_path / "out" / split)[0]]
    assert sorted(found) == walk(pieces)[0] and counts == {"train": 120 - counts["test"], "test": counts["test"]}
    assert counts["test"] == pytest.approx(30, abs=2)


def test_choice_depends_on_seed_and_names_and_more_videos_hardly_move_it():
    some = {f"v{i}": 3 for i in range(100)}
    one, again = parted(some, 0.2, 0), parted(dict(reversed(some.items())), 0.2, 0)
    assert one == again and len(one) == 20 and one != parted(some, 0.2, 1)
    assert len(one & parted(some | {f"w{i}": 3 for i in range(10)}, 0.2, 0)) >= 17
    assert [len(parted({"a": 1, "b": 1}, share, 0)) for share in (0.01, 0.99)] == [1, 1]  # neither none nor all


def test_captions_of_any_layout_go_along(pieces, tmp_path):
    rows = {"captions": ["a", "b"]}, {"caption": "d", "start": 1, "end": 2}
    lines = (json.dumps({"file_name": "metal/v00_0.mp4", **row}) for row in rows)
    (pieces / "metadata.jsonl").write_text("\n".join(lines))
    (pieces / "wood/v01_0.txt").write_text("c")
    split_folder(pieces, tmp_path / "out", 0.5, PIECES)
    said, spans = {}, {}
    for split in ("train", "test"):
        folder = tmp_path / "out" / split
        if (folder / "metadata.jsonl").exists():
            found = read_captions(folder, map(str, walk(folder)[0]))
            said |= {file: [found.texts[i] for i in places] for file, places in found.of_file.items() if places}
            spans |= found.spans
    assert said == {"metal/v00_0.mp4": ["a", "b", "d"], "wood/v01_0.mp4": ["c"]}
    assert spans == {"metal/v00_0.mp4": (None, None, (1, 2))}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--test=1"], "--test 1.0 is no share of the pieces; choose 0 to 1"),
        ([r"--video-of=x(.+)"], "--video-of x(.+) does not tell the video of metal/v00_0.mp4; give e.g."),
        ([r"--video-of=.+"], "--video-of .+ does not tell the video of metal/v00_0.mp4; give e.g."),
        ([r"--video-of=(v).*"], "all pieces are of the video v; give --video-of a pattern"),
    ],
)
def test_what_cannot_be_parted_is_refused(pieces, tmp_path, capsys, more, said):
    with pytest.raises(SystemExit):
        main([str(pieces), str(tmp_path / "out"), *more])
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folders_without_videos_and_of_an_earlier_split_are_refused(pieces, tmp_path, capsys):
    main([str(pieces), str(tmp_path / "out")])
    assert "90 pieces to train, 30 to test, no video in both" in capsys.readouterr().out
    for folder, said in ((pieces, "has train/ already; choose another"), (tmp_path / "nowhere", "has no videos; give")):
        with pytest.raises(SystemExit):
            main([str(folder), str(tmp_path / "out")])
        assert said in capsys.readouterr().err

"""Captions as hubs lay them out: read by any of three layouts, counted where they are missing, refused by line."""

import json

import pytest
import torch
from torch.utils.data import Dataset

from data.captions import Captioned, Captions, read_captions

FILES = ["blue/a.mp4", "blue/b.mp4", "c.webm"]


def jsonl(folder, *rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    return folder


def said(found: Captions) -> dict:
    return {file: [found.texts[i] for i in places] for file, places in found.of_file.items()}


def test_metadata_have_a_caption_or_several_of_each_file(tmp_path):
    rows = (
        {"file_name": "blue/a.mp4", "caption": " a  blue\nball "},
        {"file_name": "c.webm", "captions": ["x", "y", "x"]},
    )
    found = read_captions(jsonl(tmp_path, *rows), FILES)
    assert said(found) == {"blue/a.mp4": ["a blue ball"], "blue/b.mp4": [], "c.webm": ["x", "y"]}
    assert found.texts == ("a blue ball", "x", "y") and found.strays == ()
    assert found.summary() == "3 captions, 1 of 3 files without"


def test_csv_and_texts_beside_the_files_are_read_and_metadata_come_first(tmp_path):
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,caption\nblue/a.mp4,"one, two"\n', encoding="utf-8")
    (tmp_path / "blue").mkdir()
    (tmp_path / "blue" / "a.txt").write_text("not this")
    (tmp_path / "blue" / "b.txt").write_text("beside\n")
    assert said(read_captions(tmp_path, FILES)) == {"blue/a.mp4": ["one, two"], "blue/b.mp4": ["beside"], "c.webm": []}


def test_captions_of_files_that_are_not_there_are_counted_with_the_nearest(tmp_path):
    rows = {"file_name": "blue/a.mp4", "caption": "x"}, {"file_name": "blue/bb.mp4", "caption": "y"}
    found = read_captions(jsonl(tmp_path, *rows), FILES)
    assert found.strays == ("blue/bb.mp4",)
    assert "1 of files that are not there (the first is blue/bb.mp4 (did you mean 'blue/b.mp4'?))" in found.summary()


def test_no_caption_anywhere_says_what_layouts_are_read(tmp_path):
    with pytest.raises(
        ValueError, match=r"no caption for any of its videos; give metadata.jsonl or .* beside clip.mp4"
    ):
        read_captions(tmp_path, FILES)
    with pytest.raises(ValueError, match="no caption for any"):
        read_captions(jsonl(tmp_path, {"file_name": "c.webm", "caption": " "}), FILES)


@pytest.mark.parametrize(
    "row", ['{"file_name": "c.webm"', "7", '{"caption": "x"}', '{"file_name": "c.webm", "captions": [1]}',
            '{"file_name": 3, "caption": "x"}', '{"file_name": "c.webm"}', "[" * 100_000]
)  # fmt: skip
def test_broken_line_is_named(tmp_path, row):
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 3 .*mend that line"):
        read_captions(jsonl(tmp_path, {"file_name": "c.webm", "caption": "x"}, "", row), FILES)


def test_csv_without_its_columns_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("name,text\na,b\n")
    with pytest.raises(ValueError, match=r"metadata.csv, line 2 has no file_name and caption"):
        read_captions(tmp_path, FILES)


class Three(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"y": 7, "path": f"/data/train/{FILES[i]}", "x": i, "start": 0}


def test_items_bear_the_places_of_their_captions_filled_to_equal_length(tmp_path):
    captions = Captions(("a", "b", "c"), {"blue/a.mp4": (2,), "blue/b.mp4": (), "c.webm": (0, 1)})
    clips = Captioned(Three(), captions, tmp_path.__class__("/data/train"), 4, 10)
    assert [clips[i]["y"].tolist() for i in range(3)] == [[2, -1], [-1, -1], [0, 1]]
    assert len(clips) == 3 and clips[1]["x"] == 1 and clips[0]["y"].dtype == torch.int64


# --------------------------------------------------------------------------------------------------- captions of pieces


def test_rows_with_start_and_end_are_of_a_piece_of_the_file(tmp_path):
    """Row S34: captions per piece, in either layout."""
    rows = [{"file_name": "c.webm", "caption": "all"}, {"file_name": "c.webm", "caption": "x", "start": 1, "end": 2.5},
            {"file_name": "blue/a.mp4", "caption": "y"}]  # fmt: skip
    (tmp_path / "metadata.csv").write_text("file_name,caption,start,end\nc.webm,x,4,5\nblue/b.mp4,z,,\n")
    found = read_captions(jsonl(tmp_path, *rows), FILES)
    assert said(found) == {"c.webm": ["all", "x", "x"], "blue/a.mp4": ["y"], "blue/b.mp4": ["z"]}
    assert found.spans == {"c.webm": (None, (1, 2.5), (4, 5))}


class Clips(Dataset):
    """Clips of 4 frames at 10 a second, from every frame of one file."""

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return {"path": "/train/a.mp4", "start": i}


def test_clip_has_the_captions_of_the_pieces_that_its_middle_lies_in_or_else_those_of_the_file(tmp_path):
    captions = Captions(("all", "x", "y"), {"a.mp4": (0, 1, 2)}, (), {"a.mp4": (None, (1.0, 2.0), (1.5, 2.5))})
    clips = Captioned(Clips(), captions, tmp_path.__class__("/train"), 4, 10)
    of = [[place for place in clips[i]["y"].tolist() if place >= 0] for i in range(30)]
    assert of[7] == [0] and of[8] == [1] and of[13] == [1, 2] and of[18] == [2] and of[22] == [2] and of[23] == [0]
    assert all(len(clips[i]["y"]) == 3 for i in range(30))


@pytest.mark.parametrize(
    "piece", [{"start": 2, "end": 1}, {"start": 1}, {"start": "a", "end": 2}, {"start": -1, "end": 2},
              {"start": [0], "end": 1}, {"start": 0, "end": 1e999}]
)  # fmt: skip
def test_piece_that_cannot_be_is_named_by_its_line(tmp_path, piece):
    with pytest.raises(
        ValueError, match=r"metadata.jsonl, line 1 has start .* which are no piece of a film; give both"
    ):
        read_captions(jsonl(tmp_path, {"file_name": "c.webm", "caption": "x", **piece}), FILES)

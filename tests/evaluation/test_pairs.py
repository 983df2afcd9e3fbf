"""Who is compared with whom: prompts and captions of films, and the real video of each."""

import json
from pathlib import Path

import pytest

from evaluation.pairs import beginnings, partners, prompts
from evaluation.videos import Folder, Video


def folder(root, *names, problems=(), frames=16):
    """Videos that nobody reads."""
    root.mkdir(parents=True, exist_ok=True)
    videos = [Video(root / name, f"{root.name}/{name}", frames, 16, 16, 10, True) for name in sorted(names)]
    return Folder(root, videos, list(problems))


def samples(root, *rows):
    (root / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def told(pairs):
    return {video.path.name: other.path.name if isinstance(other, Video) else other
            for video, other in zip(pairs.videos, pairs.others)}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- prompts


def test_prompt_of_samples_comes_before_captions_and_films_without_one_are_left_out_and_counted(tmp_path):
    films = folder(tmp_path / "films", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    samples(films.path, {"file": "a.mp4", "prompt": "red"}, {"file": "b.mp4", "prompt": " "},
            {"file": "c.mp4"}, {"file": "d.mp4", "prompt": "blue"}, {"file": "gone.mp4", "prompt": "x"})  # fmt: skip
    (films.path / "a.txt").write_text("a caption")
    found = prompts(films, 9)
    assert told(found) == {"a.mp4": "red", "d.mp4": "blue"}
    assert str(found) == "prompts of samples.jsonl, for 2 of 4 videos"


def test_first_caption_of_each_file_is_its_text_where_there_are_no_prompts(tmp_path):
    films = folder(tmp_path / "films", "red/a.mp4", "b.mp4", "c.mp4")
    rows = ({"file_name": "red/a.mp4", "captions": ["z first", "a second"]}, {"file_name": "b.mp4", "caption": "blue"})
    (films.path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples(films.path, {"file": "red/a.mp4", "class": "red"})
    (films.path / "c.txt").write_text("beside")
    found = prompts(films, 9)
    assert told(found) == {"a.mp4": "z first", "b.mp4": "blue", "c.mp4": "beside"} and str(found) == "captions"


def test_films_without_any_text_are_refused_with_all_that_is_read(tmp_path):
    films = folder(tmp_path / "films", "a.mp4", "b.mp4")
    said = (
        r"has no caption .*give metadata.jsonl .*clip.txt .* \(samples.jsonl, where sample.py leaves prompts, has none"
    )
    with pytest.raises(ValueError, match=said):
        prompts(films, 9)
    samples(films.path, {"file": "a.mp4", "prompt": "red"})
    with pytest.raises(ValueError, match=r"has prompts of samples\.jsonl for 1 of 2 videos, and a score needs 2; give"):
        prompts(films, 9)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "samples.jsonl, line 2 is no JSON object .*; mend that line"),
        ("[]", "line 2 names no file with its prompt or input as texts; mend that line"),
        ('{"file": "b.mp4", "prompt": 3}', "line 2 names no file with its prompt"),
        ('{"prompt": "red"}', "line 2 names no file"),
    ],
)
def test_broken_line_of_samples_is_named_by_number(tmp_path, line, said):
    films = folder(tmp_path / "films", "a.mp4", "b.mp4")
    (films.path / "samples.jsonl").write_text('{"file": "a.mp4", "prompt": "red"}\n' + line + "\n\n")
    for ask in (lambda: prompts(films, 9), lambda: partners(films, films, 9)):
        with pytest.raises(ValueError, match=said):
            ask()


def test_fewer_than_all_are_chosen_among_those_that_have_a_text(tmp_path):
    films = folder(tmp_path / "films", *(f"{i}.mp4" for i in range(9)))
    samples(films.path, *({"file": f"{i}.mp4", "prompt": f"text {i}"} for i in range(4)))
    found = prompts(films, 3)
    assert len(found) == 3 and all(text == f"text {name[0]}" for name, text in told(found).items())
    assert str(found) == "prompts of samples.jsonl"  # as many as were asked for


# ------------------------------------------------------------------------------------------------------------- partners


def test_film_belongs_to_the_input_that_it_was_made_for_whatever_both_are_called(tmp_path):
    real = folder(tmp_path / "data/test", "red/a.mp4", "blue/a.mp4", "blue/b.mp4")
    films = folder(tmp_path / "films", "sample_0_a.mp4", "sample_1_a.mp4", "sample_2_b.mkv", "sample_3.mp4")
    inputs = (real.path / "blue/a.mp4", Path("/elsewhere/test/red/a.mp4"), "b.mov", "unknown.mp4")
    samples(films.path, *({"file": video.path.name, "input": str(path)} for video, path in zip(films.videos, inputs)))
    found = partners(films, real, 9)
    places = [video.path.parent.name + "/" + video.path.name for video in found.others]
    assert places == ["blue/a.mp4", "red/a.mp4", "blue/b.mp4"]
    assert str(found) == "real videos of the same name or input, for 3 of 4 videos"


def test_film_belongs_to_the_video_of_its_name_and_never_to_one_of_two(tmp_path):
    real = folder(tmp_path / "real", "red/a.mp4", "blue/a.mp4", "blue/b.mp4", "c.mov")
    films = folder(tmp_path / "films", "a.mp4", "b.mp4", "deep/blue/a.mp4", "c.mp4")
    found = partners(films, real, 9)
    assert [video.path.relative_to(films.path).as_posix() for video in found.videos] == [
        "b.mp4", "c.mp4", "deep/blue/a.mp4"]  # fmt: skip
    assert [video.path.relative_to(real.path).as_posix() for video in found.others] == [
        "blue/b.mp4", "c.mov", "blue/a.mp4"]  # fmt: skip


def test_order_pairs_as_many_of_either_and_only_where_no_name_is_known_and_nothing_was_skipped(tmp_path):
    real, films = folder(tmp_path / "real", "x.mp4", "y.mp4"), folder(tmp_path / "films", "s0.mp4", "s1.mp4")
    found = partners(films, real, 9)
    assert told(found) == {"s0.mp4": "x.mp4", "s1.mp4": "y.mp4"} and "same place in the order of names" in str(found)
    said = r"0 of 2 videos of .* have a partner in .*\(as s0.mp4, x.mp4\), and a comparison needs 2; name them alike"
    skipping = (folder(tmp_path / "films", "s0.mp4", "s1.mp4", problems=[("s.mp4", "bad")]), real)
    more = (films, folder(tmp_path / "real", "x.mp4", "y.mp4", "z.mp4"))
    for sides in (skipping, skipping[::-1], more):
        with pytest.raises(ValueError, match=said if sides[0] is not real else "0 of 2 videos"):
            partners(*sides, 9)
    with pytest.raises(ValueError, match="1 of 2 videos"):
        partners(films, folder(tmp_path / "real", "s1.mp4", "z.mp4"), 9)


def test_beginning_of_a_sound_is_all_of_it_or_as_long_as_is_heard(tmp_path):
    long, short = (folder(tmp_path / "films", "a.mp4", frames=frames).videos for frames in (300, 17))
    assert [sound.frames for sound in beginnings(long + short, 10)] == [100, 17]
    assert beginnings(long, 10)[0].key != beginnings(long, 2)[0].key

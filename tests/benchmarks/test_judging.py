"""benchmarks/judging.py: real films score as high as there is, and a task is asked about the side that was made."""

import json

import pytest
import torch

from benchmarks.judging import Film, films_in, judged
from data.av import write_clip
from data.synthetic import draw_clip, render, sound

FRAMES = 20


@pytest.fixture(scope="module")
def real():
    """(frames, wave) of real clips."""
    return [(render(clip, FRAMES), sound(clip, FRAMES)) for clip in (draw_clip(0, i) for i in range(6))]


def onsets(task, films, real):
    return judged(task, films, real)["onsets"]["accuracy"]


def test_real_films_are_synchronous_in_every_task_and_their_balls_fall(real):
    films = [Film(*film, film[1]) for film in real]
    for task in ("joint", "a2v", "v2a"):
        found = judged(task, films, real)
        assert found["f1"] == 1 and found["shuffled"] < 0.7
        assert found["onsets"]["accuracy"] == 1 if task != "a2v" else found["onsets"]["accuracy"] > 0.8  # at the ends
        assert found["av_align"]["mean"] > found["av_align"]["shuffled"]
        assert ("motion" in found) == (task != "v2a") and found.get("motion", {"mean": 0})["mean"] < 0.1


def test_what_is_asked_is_the_given_side_and_what_answers_the_made_one(real):
    other = real[1:] + real[:1]
    silent = [Film(frames, torch.zeros_like(wave), wave) for frames, wave in real]
    assert onsets("v2a", silent, real) == 0 == onsets("joint", silent, real)
    assert onsets("a2v", silent, real) > 0.8, "its pictures answer the given sounds"
    strange = [Film(frames, wave, wave) for (frames, _), (_, wave) in zip(real, other)]
    assert onsets("v2a", strange, real) == 1 and onsets("a2v", strange, real) < 0.8 > onsets("joint", strange, real)


def test_films_come_with_the_sounds_of_the_inputs_they_were_made_for(tmp_path, real):
    """The lines of samples.jsonl in any order."""
    lines = []
    for i, (frames, wave) in enumerate(real[:3]):
        for folder in ("in", "out"):
            (tmp_path / folder).mkdir(exist_ok=True)
        write_clip(tmp_path / f"in/{i}.mp4", frames, wave)
        write_clip(tmp_path / f"out/sample_{i}.mp4", frames, torch.zeros_like(wave))
        lines.append(json.dumps({"file": f"sample_{i}.mp4", "input": str(tmp_path / f"in/{i}.mp4")}))
    (tmp_path / "out/samples.jsonl").write_text("\n".join(lines[::-1]))
    films = films_in(tmp_path / "out", FRAMES)
    assert [len(film.frames) for film in films] == [FRAMES] * 3 and not any(film.wave.any() for film in films)
    for film, (_, wave) in zip(films, real):
        assert torch.corrcoef(torch.stack([film.true, wave]))[0, 1] > 0.9

"""Prompts in clips and films: switched in mid-stream, saved with the state, given by argument or by file."""

import json

import pytest
import torch
from safetensors.torch import load_file

import sample
import sample_a2v
import sample_long
import sample_v2a
from data.av import write_clip
from models import FLAV
from models.codec import Pixels
from models.text import Text
from pipeline import AVCodec, AVPipeline, AVSpec, Streams, StreamState
from tests import given
from tests.randomised import randomised
from vocoder import GriffinLim

RED, BLUE, GREEN = "a red ball", "a blue ball", "a green ball"


def prompted(**more) -> AVPipeline:
    """A tiny model with text, of random weights, in float64."""
    spec = AVSpec(n_mels=20, audio_scale=2.0, image_size=16, codec="pixels", text_encoder="words", step=1)
    model = randomised(FLAV(**given.CONFIG | {"num_classes": 0, "text_width": 64} | more), 0.2)
    return AVPipeline(model, AVCodec(spec, Pixels(), GriffinLim(20, iterations=2)), dtype=torch.float64)


@pytest.fixture(scope="module")
def pipe():
    return prompted()


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    pipe.save(folder)
    return folder


def turned(pipe, at: int = 9):
    """Red until a frame, then blue."""
    return lambda frame: int(pipe.label(RED if frame < at else BLUE))


def film(pipe, state=None, end=20, seed=0):
    streams = Streams(pipe)
    streams.join("film", state or pipe.new_stream(0, RED, seed), end, labels=turned(pipe))
    return [chunk for _, chunk in streams]


# ------------------------------------------------------------------------------------------------------------- pipeline


def test_text_of_each_frame_is_what_its_label_chooses_from_the_prompts(pipe):
    """Training gives texts of frames where clips are cut, sampling gives labels."""
    model, label = pipe.model, torch.tensor([[0, 0, 1], [1, -1, -1]])
    v, a = (torch.randn(2, 3, *shape, dtype=torch.float64) for shape in model.frame_shapes)
    t = torch.rand(2, 3, dtype=torch.float64)
    means = torch.randn(2, 64, dtype=torch.float64)
    text = Text(means[label].unsqueeze(2), (label >= 0).unsqueeze(2))
    for one, two in zip(model(v, a, t, text=text), model(v, a, t, label, prompts=means)):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_clip_follows_its_own_prompt_whatever_its_neighbours_and_the_order_of_prompts(pipe):
    both, alone = pipe.sample([0, 1], 6, [RED, BLUE]), prompted().sample([1], 6, BLUE)
    torch.testing.assert_close(both.v[1], alone.v[0], rtol=0, atol=1e-9)
    assert (pipe.sample([1], 6, RED).v[0] - alone.v[0]).abs().max() > 0.1


def test_prompt_without_a_word_is_the_null_text(pipe):
    assert torch.equal(pipe.sample([0], 5, "").v, pipe.sample([0], 5).v)
    assert pipe.label(" ... ") == -1 and pipe.label(f"  {RED} ") == pipe.label(RED)


def test_prompt_that_is_cut_is_told(caplog):
    prompted().label("red " * 10_000)
    assert "a prompt of 10000 tokens is cut to 300: red red" in caplog.text


def test_negative_prompt_takes_the_place_of_the_null_text_row_by_row(pipe):
    plain, led = (pipe.sample([0, 1], 5, RED, negative=negative).v for negative in ("", ["", GREEN]))
    torch.testing.assert_close(plain[0], led[0], rtol=0, atol=1e-9)
    assert (plain[1] - led[1]).abs().max() > 0.1
    green = pipe.sample([0], 5, GREEN, negative=GREEN).v  # both sides are equal: no guidance
    torch.testing.assert_close(green, pipe.sample([0], 5, GREEN, cfg_scale=1).v, rtol=0, atol=1e-9)
    with pytest.raises(
        ValueError, match="'a green ball' needs guidance to lead away from it; give a cfg scale above 1"
    ):
        pipe.sample([0], 5, RED, negative=GREEN, cfg_scale=1)


def test_prompts_that_cannot_be_are_refused(pipe):
    with pytest.raises(ValueError, match="this model was trained without text, so it takes no prompt; leave it out"):
        given.tiny().sample([0], 5, RED)
    with pytest.raises(ValueError, match="label 99 is that of no text; give the text itself"):
        pipe.sample([0], 5, 99)
    with pytest.raises(ValueError, match="gives tokens of width 64, this model takes 32; give --text-source"):
        prompted(text_width=32).sample([0], 5, RED)


@pytest.mark.parametrize(("frame", "seen"), [(1, {RED}), (4, {RED, BLUE}), (8, {BLUE})])
def test_film_resumed_before_amid_and_after_a_switch_goes_on_bit_for_bit(pipe, tmp_path, frame, seen):
    whole = film(pipe)
    whole[frame].state.save(tmp_path / "state.safetensors", base="film")
    state, facts = StreamState.load(tmp_path / "state.safetensors")
    other = prompted()
    other.label(GREEN)  # so that labels mean other texts there
    rest = film(other, state)
    assert len(rest) == 20 - frame - 1
    assert all(
        torch.equal(one.v, two.v) and torch.equal(one.wave, two.wave) for one, two in zip(whole[frame + 1 :], rest)
    )
    assert set(facts["prompts"]) == seen  # of the window, which is ahead of the film; not of all that was ever said


def test_film_shows_the_new_prompt_from_its_frame_on_and_nothing_of_it_before(pipe):
    switched, red = film(pipe), Streams(pipe)
    red.join("film", pipe.new_stream(0, RED), 20)
    differ = [not torch.equal(one.v, two.v) for one, two in zip(switched, [chunk for _, chunk in red])]
    assert differ == [frame >= 9 for frame in range(20)]


def test_films_of_other_pipelines_share_a_call_and_keep_their_prompts(pipe):
    other = prompted()
    state = other.new_stream(3, BLUE)
    streams = Streams(pipe)
    streams.join("red", pipe.new_stream(2, RED), 6)
    streams.join("blue", state, 6)
    made = torch.cat([chunk.v for name, chunk in streams if name == "blue"])
    torch.testing.assert_close(made, other.sample([3], 6, BLUE).v[0], rtol=0, atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- scripts


def argv(checkpoint, folder, *more):
    return [f"--model-ckpt={checkpoint}", f"--results-dir={folder}", "--device=cpu", "--dtype=float64", *map(str, more)]


def records(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_file_of_prompts_gives_each_clip_its_text_seed_and_negative(checkpoint, tmp_path):
    lines = [{"prompt": RED, "seed": 5}, {"prompt": BLUE, "negative": GREEN}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    how = ("--video-length=5", "--save-latents")
    sample.main(argv(checkpoint, tmp_path / "a", *how, f"--prompts={tmp_path / 'p.jsonl'}"))
    found = [(r["prompt"], r["seed"], r["negative"]) for r in records(tmp_path / "a")]
    assert found == [(RED, 5, ""), (BLUE, 0, GREEN)]
    sample.main(argv(checkpoint, tmp_path / "b", *how, f"--prompt={RED}", "--seed=5", "--num-videos=1"))
    one, two = (load_file(tmp_path / name / "sample_00000.latents.safetensors")["v"] for name in "ab")
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.parametrize("script", [sample_a2v, sample_v2a], ids=["a2v", "v2a"])
def test_film_for_a_given_sound_or_picture_has_its_prompt_on_record(checkpoint, tmp_path, script):
    """evaluate.py compares a film's sound with it; without one nothing is said."""
    write_clip(tmp_path / "given.mp4", torch.full((8, 16, 16, 3), 90).byte(), 0.1 * torch.randn(12800))
    argument = f"--input={tmp_path / 'given.mp4'}"
    script.main(argv(checkpoint, tmp_path / "a", argument, f"--prompt={RED}", f"--negative-prompt={GREEN}", "--seed=3"))
    script.main(argv(checkpoint, tmp_path / "b", argument))
    (said,), (bare,) = (records(tmp_path / name) for name in "ab")
    assert (said["prompt"], said["seed"], said["negative"]) == (RED, 3, GREEN) and "prompt" not in bare


def test_prompts_that_contradict_and_models_without_text_are_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "p.txt").write_text(RED)
    for more in (("--prompt=x",), ("--classes=0",)):
        with pytest.raises(SystemExit):
            sample.main(argv(checkpoint, tmp_path, f"--prompts={tmp_path / 'p.txt'}", *more))
        assert "--prompts says what every clip shows; leave --prompt and --classes out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--prompt and --classes contradict each other"):
        sample.main(argv(checkpoint, tmp_path, "--prompt=x", "--classes=0"))
    given.tiny().save(tmp_path / "classes")
    with pytest.raises(ValueError, match="trained without text, so it takes no prompt; leave it out"):
        sample.main(argv(tmp_path / "classes", tmp_path, "--prompt=x"))


def test_film_switches_prompt_by_its_schedule_and_resumes_to_the_same(checkpoint, pipe, tmp_path):
    schedule = (f"--prompt-schedule=0:{RED}, it bounces,9:{BLUE}", f"--negative-prompt={GREEN}", "--save-latents")
    sample_long.main(argv(checkpoint, tmp_path / "whole", "--frames=16", *schedule))
    sample_long.main(argv(checkpoint, tmp_path / "parts", "--frames=7", *schedule))
    state = tmp_path / "parts" / "long_00000.state.safetensors"
    resumed = ("--frames=16", f"--resume={state}", schedule[0], "--save-latents")  # the negative prompt is in the state
    sample_long.main(argv(checkpoint, tmp_path / "parts", *resumed))
    films = ("whole/long_00000", "parts/long_00000_from_000007")
    whole, rest = (load_file(tmp_path / f"{film}.latents.safetensors")["v"] for film in films)
    assert torch.equal(whole[-len(rest) :], rest)


@pytest.mark.parametrize("schedule", ["5:a", "0:", "a red ball", "0:a,0:b", ""])
def test_schedule_that_does_not_say_what_each_frame_shows_is_refused(pipe, schedule):
    with pytest.raises(ValueError, match=r"--prompt-schedule .*is not frame:prompt,\.\.\. from frame 0 on; give e.g."):
        sample_long.prompt_schedule(schedule, pipe)

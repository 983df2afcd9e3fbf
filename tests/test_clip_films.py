"""AV-Link through sample_v2a.py, sample_a2v.py and sample.py: one side held, films of clips that overlap."""

import json
import wave
from functools import partial
from itertools import pairwise

import pytest
import torch

import sample
import sample_a2v
import sample_v2a
from data.av import probe, read_audio, read_frames
from data.frames import fit
from diffusion.noise import Modality, frame_noise
from models.avlink import AVLink
from models.codec import Pixels
from models.fusion import CONDITIONING_TIMES
from models.link import SIDES
from pipeline import AVPipeline, AVSpec, pipeline_of
from pipeline.avcodec import ClipCodec
from pipeline.joined import Joined, check_joined, next_start
from pipeline.sources import PictureSource, SoundSource
from tests.closeness import assert_close_by_size
from tests.given import packets, records, run, tone, write_sound, write_video
from tests.randomised import randomised
from tests.test_whole_clips import complaint
from vocoder import GriffinLim
from vocoder.autoencoder import MelTokens

CLIP, SIZE = 8, 16
CONFIG = dict(in_channels=3, patch_size=8, audio_channels=20, audio_patch=5, text_width=64, hidden_size=16, depth=2,
              num_heads=2, video_rate=10.0, audio_rate=100.0, link_size=16, link_heads=2, placement=[1],
              prediction="data")  # fmt: skip
GENERATED = {"picture": "sound", "sound": "picture"}


def tiny(text: bool = True, **config) -> AVPipeline:
    """Clips of 8 frames of 16 px, 20 mel bins, random weights, in float64."""
    spec = AVSpec(n_mels=20, audio_scale=2.0, image_size=SIZE, codec="pixels", clip_frames=CLIP,
                  text_encoder="words" if text else None)  # fmt: skip
    model = randomised(AVLink(**CONFIG | config | ({} if text else {"text_width": 0})), 0.2)
    codec = ClipCodec(spec, Pixels(), MelTokens(GriffinLim(20, iterations=2), 16000))
    return pipeline_of(model, codec, dtype=torch.float64)


@pytest.fixture(scope="module")
def pipe():
    return tiny(text=False)


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("linked")
    pipe.model.save_pretrained(folder)
    pipe.codec.save(folder)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Videos of 8, 21 and 30 frames, with sound."""
    folder = tmp_path_factory.mktemp("films")
    for frames in (CLIP, 21, 30):
        write_video(folder / f"{frames}.mp4", frames, seed=frames)
    return folder


def latents(pipe, given, B=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    v, a = (torch.rand(B, *shape, generator=rng) for shape in pipe.codec.unit_shapes)
    return {"picture": v, "sound": a}[given]


def calls_of(model, monkeypatch):
    """What the model is called with from now on."""
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *x, **how: calls.append((x, how)) or forward(*x, **how))
    return calls


# ------------------------------------------------------------------------------------------------- one side for another


@pytest.mark.parametrize("given", SIDES)
def test_given_side_is_held_and_guidance_costs_the_made_sides_tower(pipe, given, monkeypatch):
    """Rows A14 and A16 to A18."""
    calls, x, i = calls_of(pipe.model, monkeypatch), latents(pipe, given), SIDES.index(given)
    made = pipe.sample([0, 1], given={given: x}, num_timesteps=3)
    linked, alone = [c for c in calls if c[1].get("given")], [c for c in calls if c[1].get("alone")]
    assert len(linked) == len(alone) == 3 and all(how["alone"] == GENERATED[given] for _, how in alone)
    times = [(inputs[2], how["t_a"]) for inputs, how in linked]
    assert all(t[i].eq(CONDITIONING_TIMES[i]).all() for t in times)
    assert [t[1 - i][0].item() for t in times] == [0, 1 / 3, 2 / 3]
    eps = pipe._noise([0, 1], pipe.codec.unit_shapes, 0)[i]
    for inputs, _ in linked:
        assert_close_by_size(inputs[i], CONDITIONING_TIMES[i] * x.double() + (1 - CONDITIONING_TIMES[i]) * eps)
    assert (made.v, made.a)[i].equal(x.double()) and (made.frames, made.wave)[i] is None
    calls.clear()
    pipe.sample([0, 1], given={given: x}, num_timesteps=3, cfg_scale=1)
    assert len(calls) == 3 and not any("alone" in how for _, how in calls)


def test_papers_steps_and_guidance_are_taken_where_none_are_given(pipe, monkeypatch):
    calls = calls_of(pipe.model, monkeypatch)
    pipe.sample([0], given={"picture": latents(pipe, "picture", 1)})
    assert len(calls) == 2 * 64 and pipe.cfg_scale == 5.0


def test_nothing_of_the_given_side_is_known_at_guidance_0_and_its_noise_is_its_samples_own(pipe):
    one, two = (latents(pipe, "picture", seed=seed) for seed in (0, 1))
    led = partial(pipe.sample, [0, 1], num_timesteps=2)
    assert led(given={"picture": one}, cfg_scale=0).a.equal(led(given={"picture": two}, cfg_scale=0).a)
    assert not led(given={"picture": one}).a.equal(led(given={"picture": two}).a)
    alone = pipe.sample([1], given={"picture": one[1:]}, num_timesteps=2)
    assert_close_by_size(alone.a, led(given={"picture": one}).a[1:])


def test_conditioning_times_are_the_checkpoints(monkeypatch):
    pipe = tiny(text=False, conditioning_times=[0.9, 0.7])
    calls = calls_of(pipe.model, monkeypatch)
    pipe.sample([0], given={"sound": latents(pipe, "sound", 1)}, num_timesteps=1)
    assert calls[0][1]["t_a"].eq(0.7).all()


@pytest.mark.parametrize("given", SIDES)
def test_features_of_a_side_that_is_told_nothing_are_computed_once_a_clip(given, monkeypatch):
    pipe, x, ran = tiny(text=False, reinject=False), None, []
    x = {given: latents(pipe, given)}
    getattr(pipe.model, given).layers[0].register_forward_hook(lambda *_: ran.append(1))
    i = SIDES.index(GENERATED[given])
    cached = pipe.sample([0, 1], given=x, num_timesteps=4)
    assert len(ran) == 1
    forward = pipe.model.forward
    monkeypatch.setattr(pipe.model, "forward", lambda *sides, features=None, **how: forward(*sides, **how))
    anew = pipe.sample([0, 1], given=x, num_timesteps=4)
    assert len(ran) == 1 + 1 + 4
    assert_close_by_size((cached.v, cached.a)[i], (anew.v, anew.a)[i])


def test_texts_of_both_sides_are_the_prompt_and_guidance_leads_away_from_the_negative_one(monkeypatch):
    """Row A19: with no prompt, with one, and with one to lead away from."""
    pipe, x = tiny(), None
    x = {"picture": latents(pipe, "picture", 1)}
    calls = calls_of(pipe.model, monkeypatch)
    made = {}
    for y, negative in (("", ""), ("a red ball", ""), ("a red ball", "a blue ball")):
        calls.clear()
        made[y, negative] = pipe.sample([0], y=y, negative=negative, given=x, num_timesteps=1).a
        (linked, alone) = (how["text"].mask.sum().item() for _, how in calls)
        assert (linked, alone) == (len(y.split()), len(negative.split()))
    assert len({float(a.sum()) for a in made.values()}) == 3


# -------------------------------------------------------------------------------------------------------- both, in turn


def test_text_becomes_a_picture_by_its_tower_and_that_a_sound_by_the_link(pipe):
    """Row A33's second way: the picture first, then its sound."""
    both = pipe.sample([3], num_timesteps=2, cfg_scale=2)
    v, _ = pipe._noise([3], pipe.codec.unit_shapes, 0)
    for k in range(2):
        t = torch.tensor([k / 2]).double()
        v = v + pipe.model(v, None, t, alone="picture")[0] / 2
    assert_close_by_size(both.v, v)
    assert_close_by_size(both.a, pipe.sample([3], given={"picture": both.v}, num_timesteps=2, cfg_scale=2).a)
    assert both.frames.shape == (1, CLIP, SIZE, SIZE, 3) and both.wave.shape == (1, CLIP * 1600)


@pytest.mark.parametrize("trained", SIDES)
def test_tower_that_is_not_linked_makes_its_side_and_the_other_is_empty(trained):
    pipe = tiny()
    torch.nn.init.zeros_(getattr(pipe.model, GENERATED[trained]).head.linear.weight)
    made = pipe.sample([0], y="a red ball", num_timesteps=2)
    if trained == "picture":
        assert made.wave.abs().max() < 1e-3 and made.v.std() > 0.1
    else:
        assert not made.v.any() and made.a.std() > 0.1


# ---------------------------------------------------------------------------------------------- films longer than clips


@pytest.mark.parametrize(("clip", "frames", "unit", "firsts"), [
    (8, 8, 1, [0]), (8, 21, 1, [0, 6, 12, 13]), (20, 60, 4, [0, 12, 24, 36, 40]), (20, 61, 4, [0, 12, 24, 36, 44]),
    (31, 240, 1, [0, 23, 46, 69, 92, 115, 138, 161, 184, 207, 209]), (8, 9, 4, [0, 4]),
])  # fmt: skip
def test_clips_cover_a_film_and_overlap_by_a_quarter_or_more(clip, frames, unit, firsts):
    found = [0]
    while found[-1] + clip < frames:
        found.append(next_start(found[-1], clip, frames, unit))
    assert found == firsts and found[-1] + clip - frames < unit
    assert all(two - one <= 0.75 * clip and not two % unit for one, two in pairwise(found))


@pytest.mark.parametrize("given", SIDES)
def test_clips_begin_with_the_end_of_the_one_before_and_have_noise_of_their_own(pipe, films, given, monkeypatch):
    asked, made, sampled = [], [], pipe.sample

    def watched(*what, **how):
        asked.append(how)
        made.append(sampled(*what, **how))
        return made[-1]

    monkeypatch.setattr(pipe, "sample", watched)
    checkpointed = {"picture": sample_v2a, "sound": sample_a2v}[given]
    monkeypatch.setattr("cli.load_pipeline", lambda args, **_: setattr(args, "num_timesteps", 1) or pipe)
    out = films.parent / f"watched_{given}"
    checkpointed.main(["--model-ckpt=x", f"--input={films / '21.mp4'}", f"--results-dir={out}"])
    assert [how["clip"] for how in asked] == [[0], [1], [2], [3]] and asked[0]["begun"] is None
    for now, before, overlap in zip(made[1:], made, (2, 2, 7)):
        if given == "picture":
            assert now.a[:, : overlap * 10].equal(before.a[:, -overlap * 10 :])
            assert not now.a[:, overlap * 10 :].equal(before.a[:, : -overlap * 10])
        else:
            assert (now.frames[:, :overlap].int() - before.frames[:, -overlap:]).abs().max() <= 1
        x, y = ((m.v, m.a)[SIDES.index(given)] for m in (now, before))
        assert x.shape == y.shape and not x.equal(y)
    assert (probe(out / records(out)[0]["file"]).frames(10) - 21) in (0, 1) and records(out)[0]["frames"] == 21


def test_each_clip_of_a_film_has_noise_of_its_own_that_any_row_may_have(pipe):
    shapes = pipe.codec.unit_shapes
    rows = pipe._noise([3, 4], shapes, 7, [2, 0])
    for noise, kind, shape in zip(rows, (Modality.VIDEO, Modality.AUDIO), shapes):
        for row, place in zip(noise, ((7, 3, 2), (7, 4, 0))):
            assert row.float().equal(frame_noise(*place, kind, shape))


def test_source_gives_each_clip_what_a_whole_file_encoded_at_once_has_there_and_keeps_a_window(pipe, films):
    picture, sound = (kind(films / "30.mp4", pipe.codec, CLIP) for kind in (PictureSource, SoundSource))
    frames = fit(read_frames(films / "30.mp4", 0, 30), SIZE)
    wave = read_audio(films / "30.mp4", 0, 30 * 1600)
    context = pipe.codec.context
    whole = torch.nn.functional.pad(0.95 / wave.abs().max() * wave[None], (context, context), mode="reflect")
    whole = pipe.codec.encode_sound(whole)
    for first in (0, 6, 18, 22):
        assert_close_by_size(sound.clip(first, CLIP), whole[:, first * 10 : (first + CLIP) * 10], 1e-4)
        assert picture.clip(first, CLIP).equal(pipe.codec.frames.encode(frames[None, first : first + CLIP])[0])
        assert max(len(source._kept) for source in (picture, sound)) <= CLIP + 2
    late = PictureSource(films / "21.mp4", pipe.codec, CLIP).clip(16, CLIP)  # 3 frames past the end
    assert late[:, 5:].eq(late[:, 4:5]).all() and not late[:, 3].equal(late[:, 4])


def test_films_of_any_length_are_made_side_by_side_as_alone(pipe, films, checkpoint, tmp_path):
    how = ["--num-timesteps", 1, "--seed", 3]
    together = run("v2a", checkpoint, tmp_path / "a", "--input", films, "--batch-size", 3, *how)
    alone = run("v2a", checkpoint, tmp_path / "b", "--input", films, "--batch-size", 1, *how)
    assert [r["frames"] for r in records(together)] == [21, 30, CLIP]
    for one, two in zip(records(together), records(alone)):
        (a, _), (b, _) = (read_wave(folder / r["file"]) for folder, r in ((together, one), (alone, two)))
        assert len(a) == one["frames"] * 1600 and (a - b).abs().max() < 0.02 * a.abs().max()


def read_wave(film):
    with wave.open(str(film.with_suffix(".wav"))) as file:
        data = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
        return data.float() / 32768, file.getframerate()


def test_given_tracks_are_copied_packet_for_packet(films, checkpoint, tmp_path):
    source, how = films / "21.mp4", ["--num-timesteps", 1]
    for script, kind in (("v2a", "video"), ("a2v", "audio")):
        out = run(script, checkpoint, tmp_path / script, "--input", source, *how)
        assert packets(out / records(out)[0]["file"], kind) == packets(source, kind)
    made = read_frames(tmp_path / "a2v" / records(tmp_path / "a2v")[0]["file"], 0, 21)
    assert made.shape == (21, SIZE, SIZE, 3) and made.float().std() > 1
    assert json.loads((tmp_path / "a2v/run.json").read_text())["arguments"]["method"] == "held"


class Given:
    """A source that is asked for nothing but its length."""

    def __init__(self, frames):
        self.frames = frames


def film_of(pipe, clips, frames):
    """The sound that clips (CLIP, 1600) become."""
    joined, tokens, parts = Joined(pipe, Given(frames), "picture", CLIP), torch.zeros(CLIP * 10, 20), []
    for clip in clips:
        parts.append(joined.add(clip(joined.first).view(CLIP, 1600), tokens))
    assert joined.ended
    return torch.cat(parts).flatten()


def test_sound_that_clips_agree_on_is_joined_as_it_is_and_one_they_do_not_without_a_click(pipe):
    """440 Hz, whose phase is the same in all clips, or another in each."""

    def sine(first, phase=0.0):
        return 0.5 * torch.sin(2 * torch.pi * 440 * (first * 1600 + torch.arange(CLIP * 1600)) / 16000 + phase)

    whole = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(21 * 1600) / 16000)
    assert_close_by_size(film_of(pipe, [sine] * 4, 21), whole, 1e-4)
    other = film_of(pipe, [partial(sine, phase=phase) for phase in (0.0, 3.1, 1.0, 4.5)], 21)
    jump, usual = (x.diff().abs().max().item() for x in (other, whole))
    assert len(other) == len(whole) and jump < 1.02 * usual


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_made_is_one_sentence(films, checkpoint, pipe, tmp_path, capsys):
    short, song = write_video(tmp_path / "short.mp4", 7), write_sound(tmp_path / "a.wav", tone(2), 16000, "pcm_s16le")

    def refused(script, *more):
        command = ["--model-ckpt", checkpoint, "--results-dir", tmp_path / "out", "--device", "cpu", *more]
        return complaint(capsys, script.main, *command)

    assert "short.mp4 has 7 frames, shorter than the clip of 8; give a longer file" in refused(
        sample_v2a, "--input", short
    )
    assert "a.wav has no video stream" in refused(sample_v2a, "--input", song)
    silent = write_video(tmp_path / "silent.mp4", 10, sound=False)
    assert "silent.mp4 has no audio stream" in refused(sample_a2v, "--input", silent)
    told = refused(sample_v2a, "--input", films / "21.mp4", "--method", "guide")
    assert "--method guide does not fit a model of av-link; take held" in told
    told = refused(sample_v2a, "--input", films / "21.mp4", "--prompt", "a red ball")
    assert "this model was trained without text, so it takes no prompt; leave it out" in told
    told = refused(sample, "--negative-prompt", "a ball", "--cfg-scale", 1)
    assert "without text" in told
    with pytest.raises(ValueError, match=r"conditioning times \[0.9, 1.2\] are not two in \(0, 1\]"):
        tiny(conditioning_times=[0.9, 1.2])
    with pytest.raises(ValueError, match=r"the given sound .* is not"):
        pipe.sample([0], given={"sound": torch.zeros(1, 30, 20)})


def test_clips_too_short_to_overlap_are_refused_in_time(pipe, monkeypatch):
    monkeypatch.setattr(type(pipe.codec), "unit", 7)
    check_joined(pipe.codec, CLIP, CLIP)
    with pytest.raises(
        ValueError, match="clips of 8 frames cannot overlap where they move by 7; give --video-length 8"
    ):
        check_joined(pipe.codec, 21, CLIP)

"""The bouncing ball: picture and sound follow the formula, and the detectors find their events in real mp4 files."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.synthetic import (
    BALLS,
    TEST_START,
    BallClip,
    ball_class,
    ball_height,
    calibrate,
    detect_bounces,
    detect_pings,
    draw_clip,
    main,
    render,
    sound,
    write_dataset,
)
from metrics.sync import event_counts, f1, match_events, shuffled_f1

RATE = 16000
COUNT = 12  # of test clips


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(0, TEST_START + i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def balloons():
    return [draw_clip(0, TEST_START + i, "balloon") for i in range(COUNT)]


def score(frames, waves, tolerance=1.0, motion="bounce"):
    """(F1, F1 of shuffled pairs) of clips of 32 frames, with the ping threshold fixed on the same clips."""
    height = calibrate(waves)
    seen, heard = [detect_bounces(f, motion) for f in frames], [detect_pings(w, RATE, 10, height) for w in waves]
    counts = [event_counts(v, a, 32, tolerance) for v, a in zip(seen, heard)]
    return f1(counts), shuffled_f1(seen, heard, 32, tolerance)


def test_bounces_are_a_period_apart_and_the_first_completes_the_phase():
    clip = BallClip(label=0, period=10.0, phase=0.25)
    np.testing.assert_allclose(clip.bounce_times(32), [7.5, 17.5, 27.5])
    np.testing.assert_allclose(BallClip(label=0, period=8.0, phase=0.0).bounce_times(16), [0, 8])  # the end is outside


def test_ball_is_on_the_floor_exactly_at_bounces_and_highest_halfway(clips):
    for clip in clips[:3]:
        bounces = clip.bounce_times(64)
        phase = clip.phase_at(bounces)
        np.testing.assert_allclose(np.minimum(phase, 1 - phase), 0, atol=1e-9)
        np.testing.assert_allclose(clip.phase_at(bounces + clip.period / 2), 0.5, atol=1e-9)


def test_frame_k_shows_the_ball_at_time_k_and_a_half_under_the_same_gravity_for_all(clips):
    for clip in clips[:6]:
        since = (np.arange(32) + 0.5 + clip.phase * clip.period) % clip.period  # frames since the last bounce
        gravity = 40 * 8 / 12**2  # px per frame^2: a ball of period 12 rises 40 px
        expected = gravity / 2 * since * (clip.period - since)
        np.testing.assert_allclose(ball_height(render(clip, 32)), expected, atol=0.1)


def test_ping_begins_within_a_millisecond_of_its_bounce(clips):
    for clip in clips:
        wave = sound(clip, 32).numpy()
        for bounce in clip.bounce_times(32):
            at = bounce * RATE / 10
            before, after = wave[max(0, int(at) - 16) : int(np.ceil(at))], wave[int(np.ceil(at)) : int(at) + 16]
            assert not before.any() and (len(after) < 8 or abs(after).max() > 0.1)


def test_clip_begins_with_the_tail_of_the_ping_before_it():
    clip = BallClip(label=2, period=7.0, phase=0.1)  # 0.7 frames = 70 ms after a bounce
    assert sound(clip, 1)[:100].abs().max() > 0.1
    torch.testing.assert_close(sound(clip, 32)[:1600], sound(clip, 1))


def test_sound_peaks_at_095_at_the_pitch_of_its_class():
    for clip in (draw_clip(0, i) for i in range(3)):
        wave = sound(clip, 32)
        assert wave.abs().max() == pytest.approx(0.95, abs=0.02)
        spectrum = torch.fft.rfft(wave).abs()
        assert spectrum.argmax().item() * RATE / len(wave) == pytest.approx(BALLS[clip.label].pitch, abs=20)


def test_clip_depends_on_seed_and_index_only():
    assert draw_clip(0, 5) == draw_clip(0, 5)
    drawn = {draw_clip(seed, index) for seed in (0, 1) for index in (0, 1, TEST_START)}
    assert len({clip.phase for clip in drawn}) == 6


def test_drawn_clips_keep_their_golden_values():
    clip = draw_clip(seed=7, index=4)
    assert (clip.label, clip.period, clip.phase, clip.motion) == (1, 9.027967317653088, 0.0208967681298744, "bounce")
    pictures = hashlib.sha256(render(clip, 32).numpy().tobytes()).hexdigest()
    assert pictures == "da827f9b562e322017843a6dae97dd7a47e4f60bdc9f1882db6a735eb068c86e"


def test_label_is_the_position_among_sorted_class_names():
    assert [ball.name for ball in BALLS] == sorted(ball.name for ball in BALLS)


def test_class_is_read_from_colour_and_is_minus_one_without_a_ball(clips):
    for clip in clips[:3]:
        frames = render(clip, 8)
        assert (ball_class(frames) == clip.label).all()
    without = frames.clone()
    without[2:5] = without[2:5, :, :1]  # the leftmost column shows no ball
    assert (ball_class(without) == np.where(np.isin(np.arange(8), [2, 3, 4]), -1, clip.label)).all()


def test_missing_balls_are_bridged_and_an_empty_clip_has_no_events(clips):
    frames = render(clips[0], 32)
    whole = ball_height(frames)
    frames[10] = frames[10, :, :1]
    assert ball_height(frames)[10] == pytest.approx((whole[9] + whole[11]) / 2)
    empty = frames[:, :, :1].expand_as(frames)
    assert len(detect_bounces(empty)) == 0 and np.isnan(ball_height(empty)).all()


def test_detected_pings_are_unbiased_and_bounces_at_most_half_a_frame_off(clips):
    height = calibrate([sound(clip, 32) for clip in clips])
    errors = {"ping": [], "bounce": []}
    for clip in clips:
        true, pings = clip.bounce_times(32), detect_pings(sound(clip, 32), RATE, 10, height)
        bounces = detect_bounces(render(clip, 32))
        errors["ping"] += [pings[j] - true[i] for i, j in match_events(true, pings)]
        errors["bounce"] += [bounces[j] - true[i] for i, j in match_events(true, bounces)]
    assert np.abs(errors["ping"]).max() < 0.03 and abs(np.mean(errors["ping"])) < 0.01  # frames: 3 ms, 1 ms
    assert np.abs(errors["bounce"]).max() <= 0.5 and abs(np.mean(errors["bounce"])) < 0.15


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_pings_are_found_at_any_sample_rate(rate):
    clip = draw_clip(0, 0)
    wave = sound(clip, 40, rate)
    found = detect_pings(wave, rate, 10, calibrate([wave], rate))
    np.testing.assert_allclose(found, clip.bounce_times(40), atol=0.03)


def test_quiet_ping_is_heard_and_noise_is_not():
    clip = draw_clip(0, 2)
    wave = sound(clip, 32)
    height = calibrate([wave])
    assert len(detect_pings(0.2 * wave, RATE, 10, height)) == len(clip.bounce_times(32))
    noise = 0.02 * torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    assert len(detect_pings(noise, RATE, 10, height)) == 0


def test_silence_cannot_be_calibrated_on():
    with pytest.raises(ValueError, match="no wave to calibrate on has any sound"):
        calibrate([torch.zeros(1600)])


def test_real_clips_in_memory_are_in_step_and_shuffled_ones_are_not(clips):
    real, chance = score([render(c, 32) for c in clips], [sound(c, 32) for c in clips])
    assert real >= 0.98 and chance <= 0.45


def test_balloon_is_its_bouncing_twin_upside_down_with_the_same_sound(clips, balloons):
    for ball, balloon in zip(clips[:6], balloons):
        mirrored = 40 * (ball.period / 12) ** 2 - ball_height(render(ball, 32))  # both move between floor and top
        np.testing.assert_allclose(ball_height(render(balloon, 32)), mirrored, atol=0.1)
        torch.testing.assert_close(sound(balloon, 32), sound(ball, 32), rtol=0, atol=0)
        assert balloon.bounce_times(32).tolist() == ball.bounce_times(32).tolist()


def test_balloon_is_highest_in_the_frame_whose_middle_is_its_bounce(balloons):
    for clip in balloons[:6]:
        striking = replace(clip, phase=-3.5 / clip.period % 1)
        assert striking.bounce_times(5) == pytest.approx([3.5])
        heights = ball_height(render(striking, 7))
        assert heights.argmax() == 3 and heights[:3] == pytest.approx(heights[:3:-1], abs=0.05)  # the same both ways


def test_detector_of_one_motion_finds_the_other_out_of_step(clips, balloons):
    for drawn, motion in ((clips, "balloon"), (balloons, "bounce")):
        wrong, _ = score([render(c, 32) for c in drawn], [sound(c, 32) for c in drawn], motion=motion)
        assert wrong <= 0.1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("ball")
    write_dataset(root, train=3, test=COUNT)
    return root


def test_real_mp4_files_are_in_step_and_shuffled_ones_are_not(dataset, clips):
    from data.av import read_audio, read_frames

    paths = [dataset / "test" / clip.ball.name / f"ball_{i:05d}.mp4" for i, clip in enumerate(clips)]
    frames, waves = [read_frames(path, 0, 32, 10) for path in paths], [read_audio(path, 0, 51200) for path in paths]
    real, chance = score(frames, waves)
    assert real >= 0.98 and chance <= 0.45
    assert all((ball_class(f) == clip.label).all() for f, clip in zip(frames, clips))


def test_real_mp4_files_of_balloons_are_in_step_and_shuffled_ones_are_not(tmp_path, balloons):
    from data.av import read_audio, read_frames

    main([str(tmp_path), "--train", "0", "--test", str(COUNT), "--motion", "balloon"])
    paths = [tmp_path / "test" / clip.ball.name / f"ball_{i:05d}.mp4" for i, clip in enumerate(balloons)]
    frames, waves = [read_frames(path, 0, 32, 10) for path in paths], [read_audio(path, 0, 51200) for path in paths]
    real, chance = score(frames, waves, motion="balloon")
    assert real >= 0.98 and chance <= 0.45
    errors = []
    for film, clip in zip(frames, balloons):
        true, turns = clip.bounce_times(32), detect_bounces(film, "balloon")
        errors += [turns[j] - true[i] for i, j in match_events(true, turns)]
    assert np.abs(errors).max() <= 0.5 and abs(np.mean(errors)) < 0.15  # frames


def test_dataset_has_one_folder_per_class_and_split(dataset):
    found = sorted(str(path.relative_to(dataset)) for path in (dataset / "train").rglob("*.mp4"))
    assert found == ["train/blue/ball_00000.mp4", "train/green/ball_00001.mp4", "train/red/ball_00002.mp4"]


def test_second_call_leaves_what_is_there_and_adds_what_is_missing(dataset):
    kept, missing = dataset / "train/red/ball_00002.mp4", dataset / "train/blue/ball_00000.mp4"
    before = kept.stat().st_mtime_ns
    missing.unlink()
    write_dataset(dataset, train=3, test=COUNT)
    assert kept.stat().st_mtime_ns == before and missing.is_file()


@pytest.mark.parametrize("other", [("--seed", "1"), ("--motion", "balloon")])
def test_folder_of_another_seed_or_motion_is_refused_with_one_sentence(dataset, capsys, other):
    with pytest.raises(SystemExit) as stop:
        main([str(dataset), *other])
    assert stop.value.code == 2 and "choose another folder" in capsys.readouterr().err


def test_folder_that_says_nothing_of_motion_is_one_of_bouncing_balls(dataset):
    facts = dataset / "synthetic.json"
    facts.write_text(json.dumps({"seed": 0, "frames": 32}))
    write_dataset(dataset, train=3, test=COUNT)
    with pytest.raises(ValueError, match="choose another folder"):
        write_dataset(dataset, train=3, test=COUNT, motion="balloon")


def test_help_does_not_import_torch():
    check = "import sys, data.synthetic; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0

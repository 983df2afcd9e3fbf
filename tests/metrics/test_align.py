"""Onsets against flow: published numbers, lags and chance worked out by hand, and a square that jumps to clicks."""

import math
from itertools import chain

import numpy as np
import pytest

from metrics.align import (
    Chance,
    OnsetScores,
    _suppressed,
    against_chance,
    audio_onsets,
    av_align,
    chance_corrected,
    lag,
    matched_iou,
    motion,
    motion_peaks,
    onset_scores,
)

FPS, RATE, FRAMES = 10, 16000, 40
CLIPS = 8


def jumps_of(seed):
    """Frames at which the square of this clip jumps, three to six apart."""
    jumps = 3 + np.cumsum(np.random.default_rng(seed).integers(3, 7, size=12))
    return jumps[jumps < FRAMES - 3]


def picture(jumps, seed=0, frames=FRAMES, size=(64, 64)):
    """A white square that stands still, and is elsewhere from each of these frames on: uint8 (T, H, W, 3)."""
    corners = np.random.default_rng(seed).integers(0, min(size) - 16, size=(len(jumps) + 1, 2))
    clip = np.zeros((frames, *size, 3), np.uint8)
    for start, end, (y, x) in zip([0, *jumps], [*jumps, frames], corners):
        clip[start:end, y : y + 16, x : x + 16] = 255
    return clip


def clicks(times, loudness=0.5, seconds=FRAMES / FPS, rate=RATE):
    """5 ms of a square wave at each of these times in s: (N,)."""
    wave, loudness = np.zeros(round(seconds * rate)), np.broadcast_to(loudness, np.shape(times))
    for time, level in zip(times, loudness):
        start = round(time * rate)
        wave[start : start + rate // 200] = level
    return wave


@pytest.fixture(scope="module")
def clips():
    """Peaks seen and heard in clips whose square jumps as it clicks."""
    seen = [motion_peaks(motion(picture(jumps_of(i), seed=i)), FPS) for i in range(CLIPS)]
    heard = [audio_onsets(clicks(jumps_of(i) / FPS), RATE) for i in range(CLIPS)]
    return seen, heard


@pytest.mark.parametrize("case", range(5))
def test_av_align_gives_the_published_numbers(metrics_manifest, case):
    case = metrics_manifest["sync"]["cases"]["av_align"][case]
    assert av_align(case["audio_peaks"], case["video_peaks"], case["fps"]) == pytest.approx(case["iou"], rel=1e-9)


def test_busy_sound_lifts_av_align_above_one_and_never_the_matched_iou():
    audio, video = [0.96, 0.98, 1.02, 1.04], [1.0]
    assert av_align(audio, video, fps=10) == 4 / (4 + 1 - 4)
    assert matched_iou(audio, video, fps=10) == 1 / 4
    assert av_align([1.0] * 3, [1.0, 2.0], fps=10) == 3 / 2


def test_av_align_excludes_a_distance_of_one_frame_and_the_matched_iou_includes_it():
    assert av_align([1.25], [1.0], fps=4) == 0
    assert matched_iou([1.25], [1.0], fps=4) == 1
    assert av_align([1.249], [1.0], fps=4) == 1 and av_align([0.751], [1.0], fps=4) == 1


def test_distance_of_one_frame_does_not_hang_on_the_last_bit():
    frames = np.arange(0, 90, 3)
    assert matched_iou((frames + 1) / 10, frames / 10, fps=10) == 1
    assert matched_iou((frames + 1) / 29.97, frames / 29.97, fps=29.97) == 1


def test_matched_iou_counts_in_frames_not_in_seconds():
    audio, video = [1.0, 2.06, 3.0], [1.02, 2.0]
    assert matched_iou(audio, video, fps=10) == 2 / 3
    assert matched_iou(audio, video, fps=25) == 1 / 4  # 0.06 s are 1.5 frames
    assert matched_iou(audio, video, fps=25, tolerance=2) == 2 / 3


@pytest.mark.parametrize("audio, video", [([], []), ([1.0], []), ([], [1.0])])
def test_without_peaks_the_score_is_zero(audio, video):
    assert av_align(audio, video, fps=10) == matched_iou(audio, video, fps=10) == 0


@pytest.mark.parametrize("case", range(3))
def test_onset_scores_give_the_published_numbers(metrics_manifest, golden_wave, case):
    case = metrics_manifest["sync"]["cases"]["onset"][case]
    wave = golden_wave[case["wave_clip"], 0, : case["n_samples"]] / 32768
    scores = onset_scores(case["target_onsets"], case["pred_onsets"], wave, case["sr"], case["delta_s"])
    assert scores.accuracy == pytest.approx(case["acc"], rel=1e-9)
    assert scores.ap == pytest.approx(case["ap"], rel=1e-9)
    assert scores.count_match == case["count_match"]


@pytest.mark.parametrize("case", range(3))
def test_suppression_keeps_the_published_onsets(metrics_manifest, golden_wave, case):
    case = metrics_manifest["sync"]["cases"]["onset"][case]
    wave = np.abs(golden_wave[case["wave_clip"], 0, : case["n_samples"]] / 32768)
    confidence = {o: wave[max(o - 1102, 0) : o + 1102].max() for o in case["pred_onsets"]}
    assert _suppressed(case["pred_onsets"], confidence, 0.05 * case["sr"]) == case["pred_onsets_after_nms"]


def test_suppression_overlooks_the_onset_after_each_one_it_deletes():
    confidence = {100: 0.9, 110: 0.3, 120: 0.2, 130: 0.1}
    assert _suppressed([100, 110, 120, 130], confidence, 50) == [100, 120]  # 120 then deletes 130 itself
    assert _suppressed([100, 110, 120, 160], confidence | {160: 0.1}, 50) == [100, 120]


def test_right_onsets_score_one_and_onsets_far_away_score_zero():
    times = np.array([0.5, 1.0, 1.5])
    wave = clicks(times, [0.9, 0.5, 0.7])
    right = (times * RATE).astype(int)
    assert onset_scores(right, right, wave, RATE) == OnsetScores(1.0, 1.0, True)
    far = onset_scores(right + RATE // 4, right[:2], wave, RATE)
    assert far.accuracy == 0 and not far.count_match


def test_average_precision_falls_as_a_false_onset_gets_louder():
    targets, predictions = [8000, 16000], [8000, 16000, 24000]
    quiet, loud = (clicks([0.5, 1.0, 1.5], [0.8, 0.6, false]) for false in (0.3, 0.9))
    assert onset_scores(targets, predictions, quiet, RATE).ap == 1  # ranked: hit, hit, false
    assert onset_scores(targets, predictions, loud, RATE).ap == pytest.approx((1 / 2 + 2 / 3) / 2)  # false, hit, hit
    assert onset_scores(targets, predictions, loud, RATE).accuracy == 1


def test_targets_left_without_predictions_cost_accuracy_and_no_precision():
    wave = clicks([0.5], 0.8)
    assert onset_scores([8000, 16000, 24000, 32000], [8000], wave, RATE) == OnsetScores(1 / 4, 1.0, False)
    assert onset_scores([8000], [], wave, RATE) == OnsetScores(0.0, 0.0, False)


def test_onset_outside_the_wave_is_refused():
    with pytest.raises(ValueError, match="onset 900 lies outside a wave of 800 samples; give onsets in samples"):
        onset_scores([5], [100, 900], np.zeros(800), RATE)


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_each_click_is_heard_once_and_in_time_and_none_in_silence(rate):
    times = np.array([0.7, 1.51, 2.9])
    np.testing.assert_allclose(audio_onsets(clicks(times, rate=rate), rate), times, atol=0.015)
    assert len(audio_onsets(np.zeros(RATE), RATE)) == 0


def test_motion_is_large_only_where_the_picture_changes():
    found = motion(picture([5, 12, 20]))
    assert found.shape == (FRAMES - 1,)
    assert set(np.argsort(found)[-3:]) == {4, 11, 19}  # frame 5 differs from frame 4
    assert np.delete(found, [4, 11, 19]).max() < 0.01 * found[[4, 11, 19]].min()


def test_motion_of_a_moving_texture_is_its_speed():
    rng = np.random.default_rng(0)
    texture = np.repeat(rng.integers(0, 256, (64, 64, 1), dtype=np.uint8), 3, -1)
    still, slow, fast = (motion([texture, np.roll(texture, shift, axis=1)])[0] for shift in (0, 1, 3))
    assert still < 0.01
    assert slow == pytest.approx(1, rel=0.15) and fast == pytest.approx(3, rel=0.15)


def test_motion_reads_an_endless_iterator_no_further_than_asked():
    frames = picture([3], frames=8)
    taken = []

    def stream():
        for frame in frames:
            taken.append(len(taken))
            yield frame

    np.testing.assert_array_equal(motion(stream()), motion(frames))
    assert taken == list(range(8))  # each frame once


def test_motion_does_not_depend_on_the_resolution_of_large_frames():
    texture = np.random.default_rng(0).integers(0, 256, (32, 64, 1), dtype=np.uint8).repeat(3, -1)
    pair = [texture, np.roll(texture, 1, axis=1)]
    large, larger = (motion([f.repeat(k, 0).repeat(k, 1) for f in pair])[0] for k in (2, 8))
    assert larger == pytest.approx(large, rel=1e-3)  # both at 128 px on the long side


@pytest.mark.parametrize(
    "frames, says",
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "at least 2 frames"),
        (np.zeros((2, 8, 8), np.uint8), r"uint8 \(8, 8\), expected uint8 \(H, W, 3\)"),
        (np.zeros((2, 8, 8, 3)), r"float64 \(8, 8, 3\), expected uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "give frames of one size"),
    ],
)
def test_frames_that_are_no_video_are_refused(frames, says):
    with pytest.raises(ValueError, match=says):
        motion(frames)


def test_motion_peaks_are_maxima_above_the_mean_timed_at_the_frame_that_shows_them():
    magnitudes = [9, 0, 0, 5, 0, 0.5, 0, 6, 6, 6, 0, 0, 9]  # mean 3.2; the ends have one neighbour only
    np.testing.assert_allclose(motion_peaks(magnitudes, fps=10), [0.4, 0.9])


def test_constant_motion_has_no_peaks():
    assert len(motion_peaks(np.full(20, 2.0), fps=10)) == 0


@pytest.mark.parametrize("fps", [8, 10, 24, 29.97])
@pytest.mark.parametrize("shift", [0, 3, -2])
def test_sound_moved_by_whole_frames_has_that_lag(fps, shift):
    moving = np.zeros(60)
    moving[jumps_of(0) + 10] = np.random.default_rng(0).uniform(1, 3, len(jumps_of(0)))
    events = np.flatnonzero(moving)
    wave = clicks((events + 1 + shift) / fps, moving[events] / 4, seconds=61 / fps)
    found = lag(moving, wave, RATE, fps)
    assert found.frames == shift
    assert found.peak == pytest.approx(1, abs=1e-3)


def test_lag_scales_away_the_size_and_the_rest_level_of_both():
    moving = np.abs(np.random.default_rng(0).normal(size=30)) + 1
    wave = np.concatenate([np.zeros(800), np.repeat(0.1 + 0.2 * moving, RATE // FPS), np.zeros(800)])
    assert lag(moving, wave, RATE, FPS) == (0, pytest.approx(1))


def test_sound_that_swells_when_the_picture_rests_correlates_negatively():
    moving = np.random.default_rng(0).uniform(0, 1, size=30)
    wave = np.concatenate([np.zeros(800), np.repeat(1 - moving, RATE // FPS), np.zeros(800)])
    assert lag(moving, wave, RATE, FPS, most=0) == (0, pytest.approx(-1))


def test_lags_that_leave_less_than_half_of_the_clip_are_not_tried():
    moving, wave = np.zeros(9), clicks([0.7], seconds=1.0)
    moving[0] = 1  # seen at 0.1 s, heard at 0.7 s: 6 of 9 frames later
    assert lag(moving, wave, RATE, FPS).frames != 6
    assert lag(np.append(moving, np.zeros(5)), np.append(wave, np.zeros(8000)), RATE, FPS).frames == 6


@pytest.mark.parametrize("moving, wave", [(np.ones(9), clicks([0.5])), (np.eye(9)[4], np.zeros(RATE))])
def test_still_picture_or_silence_has_no_lag(moving, wave):
    found = lag(moving, wave, RATE, FPS)
    assert math.isnan(found.frames) and found.peak == 0


def test_sound_that_ends_before_the_picture_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"wave lasts 0.9 s, 10 frames at 10 fps last 1 s; pad the sound"):
        lag(np.ones(9), np.zeros(RATE * 9 // 10), RATE, FPS)


def test_stereo_and_integer_waves_are_refused():
    for wave in (np.zeros((2, RATE)), np.zeros(RATE, np.int16)):
        with pytest.raises(ValueError, match="expected float"):
            audio_onsets(wave, RATE)


def test_square_that_jumps_as_it_clicks_scores_high_and_far_above_chance(clips):
    found = against_chance(lambda v, a: matched_iou(a, v, FPS), *clips)
    assert found.mean > 0.9
    assert found.shuffled < 0.6
    assert found.low > 0.3 and found.z > 5


def test_sounds_of_other_clips_score_no_better_than_chance(clips):
    seen, heard = clips
    found = against_chance(lambda v, a: matched_iou(a, v, FPS), seen, heard[2:] + heard[:2], rotations=(1, 3, 5))
    assert found.low < 0 < found.high


@pytest.mark.parametrize("shift", [3, -2])
def test_lag_of_a_video_is_that_of_its_moved_sound(shift):
    jumps = jumps_of(0)
    found = lag(motion(picture(jumps)), clicks((jumps + shift) / FPS), RATE, FPS)
    assert found.frames == shift and found.peak > 0.8


def test_against_chance_pairs_each_picture_with_its_own_sound_and_then_with_those_further_on():
    calls = []
    against_chance(lambda v, a: calls.append((v, a)) or 0.0, range(4), range(4), rotations=(1, 3))
    own, first, third = [(i, i) for i in range(4)], [(0, 1), (1, 2), (2, 3), (3, 0)], [(0, 3), (1, 0), (2, 1), (3, 2)]
    assert calls == list(chain(own, first, third))


def test_chance_is_the_mean_over_rotations_and_the_difference_is_per_clip():
    found = against_chance(lambda v, a: float(10 * v + a), range(6), range(6))
    assert (found.mean, found.shuffled, found.difference) == pytest.approx((27.5, 27.5, 0))
    pictures = sounds = list("abcdefg")
    same = against_chance(lambda v, a: float(v == a), pictures, sounds)
    assert same == Chance(1.0, 0.0, 1.0, 0.0, 1.0, 1.0) and same.z == math.inf


def test_interval_of_the_difference_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [chance_corrected(rng.normal(0.3, 1, 40), rng.normal(0, 1, 40), 200, level=0.9) for _ in range(200)]
    assert 0.84 <= np.mean([f.low <= 0.3 <= f.high for f in found]) <= 0.95


def test_standard_error_is_that_of_the_mean_difference():
    scores, shuffled = np.random.default_rng(0).normal(size=(2, 400))
    found = chance_corrected(scores, shuffled)
    assert found.standard_error == pytest.approx((scores - shuffled).std() / 20, rel=0.1)
    assert found.z == pytest.approx((scores - shuffled).mean() / found.standard_error)
    assert chance_corrected(scores, shuffled) == found != chance_corrected(scores, shuffled, seed=1)


def test_unequal_or_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="5 clips cannot be rotated by 5; give at least 6"):
        against_chance(lambda v, a: 0.0, range(5), range(5))
    with pytest.raises(ValueError, match="6 pictures but 7 sounds; give one sound per picture"):
        against_chance(lambda v, a: 0.0, range(6), range(7))
    with pytest.raises(ValueError, match=r"scores \(3,\) and shuffled \(3, 2\) must both be \(n,\)"):
        chance_corrected(np.zeros(3), np.zeros((3, 2)))

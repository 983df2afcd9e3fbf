"""Counting events: one-to-one matching, F1 worked out by hand, its interval, and chance."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from metrics.sync import EventCounts, bootstrap_f1, event_counts, f1, match_events, most_pairs, shuffled_f1


def test_nearest_pair_wins_a_contested_event_and_the_loser_takes_what_is_left():
    # 10.4 is nearer to 10.5 than 10 is, so 10 is left with 9.2; in list order 10 would have taken 10.5.
    assert match_events([10, 10.4], [9.2, 10.5], tolerance=1) == [(1, 1), (0, 0)]


def test_one_sound_serves_one_picture_event_only():
    assert match_events([5.0, 5.5, 6.0], [5.4], tolerance=1) == [(1, 0)]


def test_tolerance_includes_its_bound_and_nothing_beyond():
    assert match_events([3.5], [4.5], tolerance=1) == [(0, 0)]
    assert match_events([3.5], [4.51], tolerance=1) == []


@pytest.mark.parametrize("a, b", [([], []), ([1.0], []), ([], [1.0])])
def test_without_events_nothing_matches(a, b):
    assert match_events(a, b) == []


def test_event_in_the_margin_is_matched_but_not_counted():
    # 1.8 lies in the margin and so is no event itself, but it is the sound of the bounce at 2.5.
    assert event_counts([2.5, 15.5], [1.8, 9.0], frames=20) == EventCounts(v=2, v_matched=1, a=1, a_matched=0)
    assert event_counts([1.8, 9.0], [2.5, 15.5], frames=20) == EventCounts(v=1, v_matched=0, a=2, a_matched=1)


def test_both_margins_are_equally_wide():
    edges = np.array([1.9, 2.0, 17.9, 18.0])  # of 20 frames: counted from 2 up to, not including, 18
    assert event_counts(edges, [], frames=20).v == 2


def test_f1_pools_events_rather_than_averaging_clips():
    clips = [EventCounts(v=4, v_matched=3, a=2, a_matched=2), EventCounts(v=1, v_matched=0, a=3, a_matched=1)]
    precision, recall = 3 / 5, 3 / 5
    assert f1(clips) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(clips[0]) == pytest.approx(2 * 0.75 * 1 / 1.75)


def test_precision_is_over_pictures_and_recall_over_sounds():
    one_of_four_seen = EventCounts(v=4, v_matched=1, a=1, a_matched=1)
    assert f1(one_of_four_seen) == pytest.approx(2 * 0.25 / 1.25)


def test_silence_before_a_still_picture_scores_zero():
    assert f1(event_counts([], [], frames=32)) == 0


def clips_of(rng, n, p):
    hits = rng.binomial(4, p, size=n)
    return [EventCounts(4, h, 4, h) for h in hits]


def test_bootstrap_interval_covers_the_true_f1_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_f1(clips_of(rng, 40, 0.7), resamples=200, level=0.9) for _ in range(200)]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.84 <= covered <= 0.95


def test_bootstrap_interval_is_repeatable_and_narrows_with_clips():
    few, many = (clips_of(np.random.default_rng(1), n, 0.7) for n in (10, 1000))
    assert bootstrap_f1(few, seed=3) == bootstrap_f1(few, seed=3)
    assert bootstrap_f1(many, seed=3) != bootstrap_f1(many, seed=4)
    width_few, width_many = (np.diff(bootstrap_f1(clips))[0] for clips in (few, many))
    assert width_many < width_few / 5


def test_shuffling_gives_each_picture_the_sound_of_another_clip():
    clips = [[4.0 + 3 * i] for i in range(7)]  # no two clips share an event
    assert f1([event_counts(c, c, frames=32) for c in clips]) == 1
    assert shuffled_f1(clips, clips, frames=32) == 0
    assert shuffled_f1(clips, clips[2:] + clips[:2], frames=32, rotations=(5,)) == 1  # 2 + 5 of 7 places: its own again


def test_too_few_clips_to_shuffle_are_refused_with_the_number_needed():
    with pytest.raises(ValueError, match="5 clips cannot be rotated by 5; give at least 6"):
        shuffled_f1([[1.0]] * 5, [[1.0]] * 5, frames=32)


def test_as_many_pairs_are_made_as_there_can_be():
    """The nearest two are not a pair here: each of them would leave another alone."""
    assert most_pairs([0.0, 0.1], [0.06, 0.19], tolerance=0.1) == 2 and len(match_events([0, 10], [6, 19], 10)) == 1
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.uniform(0, 2, 6), rng.uniform(0, 2, 7)
        rows, columns = linear_sum_assignment(near := np.abs(a[:, None] - b) <= 0.1, maximize=True)
        assert most_pairs(a, b, 0.1) == near[rows, columns].sum()


def test_pairs_a_tolerance_apart_count_whatever_their_last_bit():
    assert abs(0.4 - 0.3) > 0.1
    assert most_pairs([0.3, 1.0], [0.4, 1.101], tolerance=0.1) == 1
    assert most_pairs([], [0.4], tolerance=0.1) == most_pairs([0.4], [], tolerance=0.1) == 0

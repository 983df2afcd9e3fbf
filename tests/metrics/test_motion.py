"""metrics/motion.py against closed forms: free flight, a body that hovers, bounces, and what cannot be judged."""

import math

import numpy as np
import pytest

from data.synthetic import GRAVITY, ball_height, draw_clip, render
from metrics.motion import flight_errors, motion_error

G = 2.0


def thrown(frames: int, speed: float = 9.0, gravity: float = G):
    """Heights of a free flight: a parabola."""
    k = np.arange(frames, dtype=float)
    return speed * k - gravity * k**2 / 2


def test_parabola_of_the_right_gravity_has_no_error_and_of_another_the_difference():
    right, wrong = flight_errors(thrown(9), G), flight_errors(thrown(9, gravity=3.5), G)
    np.testing.assert_allclose(right, 0, atol=1e-12)
    np.testing.assert_allclose(wrong, 1.5, atol=1e-12)
    assert len(right) >= 5


def test_ball_that_hovers_misses_gravity():
    found = motion_error([np.full(20, 7.0), np.full(12, 3.0)], G)
    assert (found.mean, found.low, found.high, found.median, found.clips) == (G, G, G, G, 2)
    assert found.counted == 1


def test_what_lies_on_the_floor_is_not_bouncing():
    rests = np.concatenate([thrown(10)[5:], np.full(6, thrown(10)[-1])])
    errors = flight_errors(rests, G)
    assert len(errors) == len(rests) - 2 and errors[0] < 1e-9 and errors[-4:].tolist() == [G] * 4


def bouncing(frames: int, first: float, period: float = 8.0):
    """Heights of a ball that bounces at first + j period, sampled in the middle of frames."""
    s = (np.arange(frames) + 0.5 - first) / period % 1
    return G / 2 * period**2 * s * (1 - s)


@pytest.mark.parametrize("first", np.arange(0, 8, 0.25))
def test_every_frame_that_a_bounce_touches_is_left_out_wherever_the_clip_begins(first):
    height = bouncing(24, first)
    assert np.abs(np.diff(height, 2) + G).max() > 5
    errors = flight_errors(height, G)
    np.testing.assert_allclose(errors, 0, atol=1e-9)
    assert 9 <= len(errors) < 22


def test_balls_as_they_are_drawn_fall_by_the_gravity_that_the_scene_states():
    found = motion_error([ball_height(render(draw_clip(0, i), 20)) for i in range(6)], GRAVITY)
    assert found.mean < 0.1 and found.median < 0.1 and found.clips == 6 and 0.5 < found.counted < 0.9


def test_clips_without_a_ball_say_nothing():
    assert motion_error([np.full(9, np.nan), thrown(9, gravity=1.0), [1.0, 2.0]], G)[0] == pytest.approx(1)
    nothing = motion_error([np.full(9, np.nan), [1.0]], G)
    assert math.isnan(nothing.mean) and nothing.clips == 0 == nothing.counted


def test_interval_is_of_clips_and_holds_the_mean():
    found = motion_error([thrown(9, gravity=G + wrong) for wrong in (0, 0, 1, 1)], G)
    assert found.low <= found.mean == pytest.approx(0.5) and found.mean <= found.high and found.low < 0.3

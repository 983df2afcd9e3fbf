"""Divergence and inception score against closed forms, and where probabilities underflow."""

import math

import pytest
import torch

from metrics.classes import divergence_of_others, divergences, inception_score


def logits(*rows):
    """Of distributions, shifted as a softmax does not see."""
    p = torch.tensor(rows, dtype=torch.float64)
    return p.log() + torch.arange(len(p), dtype=torch.float64).unsqueeze(1)


def test_divergence_of_two_classes_is_the_textbooks_and_has_a_direction():
    p, q = 0.8, 0.3
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    back = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    found = divergences(logits([p, 1 - p], [q, 1 - q]), logits([q, 1 - q], [p, 1 - p]))
    assert found.tolist() == pytest.approx([expected, back], abs=1e-12) and abs(expected - back) > 0.02


def test_divergence_of_equal_classes_is_0_and_of_a_sure_one_from_none_is_log_K():
    sure, none = torch.tensor([[2000.0, 0, 0, 0]]), torch.zeros(1, 4)
    assert divergences(sure, sure).item() == 0 and divergences(none, none).item() == 0
    assert divergences(sure, none).item() == pytest.approx(math.log(4), abs=1e-12)


def test_divergence_stays_exact_where_probabilities_underflow():
    """exp(-2000) is 0 in float64; with an epsilon the divergence would end at 14 nats."""
    a, b = torch.tensor([[2000.0, 0.0]]), torch.tensor([[0.0, 2000.0]])
    assert divergences(a, b).item() == pytest.approx(2000, abs=1e-9)


def test_divergence_of_others_is_the_mean_of_all_the_others_one_by_one():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_by_one = [divergences(a[i : i + 1], b[j : j + 1]).item() for i in range(5) for j in range(5) if i != j]
    assert divergence_of_others(a, b) == pytest.approx(sum(one_by_one) / 20, abs=1e-12)


@pytest.mark.parametrize("K", [2, 5, 50])
def test_inception_score_is_K_for_K_clear_classes_and_1_where_all_are_alike(K):
    assert inception_score(2000 * torch.eye(K).repeat(3, 1)) == pytest.approx(K, abs=1e-9)
    assert inception_score(torch.zeros(7, K)) == pytest.approx(1, abs=1e-12)  # of no class
    assert inception_score(2000 * torch.eye(K)[:1].repeat(7, 1)) == pytest.approx(1, abs=1e-12)  # all of one


def test_inception_score_of_two_unsure_sounds_is_the_closed_form():
    """p(y) is even, so the exponent is log 2 minus the entropy of a sound's classes."""
    p = 0.9
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert inception_score(logits([p, 1 - p], [1 - p, p])) == pytest.approx(2 * math.exp(-entropy), abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), "3 and 2 rows are no pairs"),
        (torch.zeros(3, 1), torch.zeros(3, 1), "logits of 1 class say nothing; give a tagger of 2 classes or more"),
        (torch.full((1, 2), -torch.inf), torch.zeros(1, 2), "hold NaN or infinity"),
    ],
)
def test_what_are_no_pairs_of_classes_is_refused(a, b, said):
    with pytest.raises(ValueError, match=said):
        divergences(a, b)

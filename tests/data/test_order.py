"""Order of training clips: every clip once per epoch, the same row of clips for any number of processes."""

from itertools import chain

import numpy as np
import pytest

from data.order import ClipOrder, epoch_order


def global_row(clips, batch, steps, seed=0, ranks=1, start=0):
    """Clips in the order of the global batches, from what each rank sees."""
    seen = [list(ClipOrder(clips, batch // ranks, seed, start, steps, rank, ranks)) for rank in range(ranks)]
    return [list(chain.from_iterable(of_step)) for of_step in zip(*seen)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_clip_comes_once_per_epoch(ranks):
    """24 clips in batches of 4: an epoch is 6 steps."""
    row = global_row(24, batch=4, steps=18, ranks=ranks)
    for epoch in range(3):
        assert sorted(chain.from_iterable(row[6 * epoch : 6 * (epoch + 1)])) == list(range(24))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_clip_comes_once_per_epoch_that_does_not_end_with_a_batch(ranks):
    row = list(chain.from_iterable(global_row(10, batch=4, steps=15, ranks=ranks)))  # 60 places, 6 epochs
    for epoch in range(6):
        assert sorted(row[10 * epoch : 10 * (epoch + 1)]) == list(range(10))


def test_global_batches_do_not_depend_on_the_number_of_processes():
    one = global_row(50, batch=8, steps=20, ranks=1)
    assert one == global_row(50, batch=8, steps=20, ranks=2) == global_row(50, batch=8, steps=20, ranks=4)


def test_ranks_see_different_clips():
    first, second = (set(ClipOrder(16, 2, 0, 0, 1, rank, 2).at(0)) for rank in (0, 1))
    assert len(first) == len(second) == 2 and not first & second


def test_resumed_order_goes_on_where_it_stopped():
    whole = global_row(10, batch=3, steps=12)
    assert global_row(10, batch=3, steps=12, start=7) == whole[7:]
    assert len(ClipOrder(10, 3, 0, 7, 12)) == 5


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_order(seed, epoch, 40).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4 and list(range(40)) not in orders


def test_batch_larger_than_the_data_set_runs_through_several_epochs():
    assert np.bincount(ClipOrder(3, 9, 0, 0, 1).at(0)).tolist() == [3, 3, 3]


def test_order_is_the_same_on_every_machine():
    """A golden value: a change would give resumed runs other clips."""
    assert epoch_order(seed=1, epoch=2, clips=8).tolist() == [6, 1, 5, 2, 7, 3, 4, 0]

"""In which order training sees its clips: every clip once per epoch, the same for any number of processes."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, clips: int) -> np.ndarray:
    """(clips,) permutation of one epoch, from a counter generator keyed by seed and epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, 2], counter=[0, epoch, 0, 0])).permutation(clips)


class ClipOrder(Sampler[list[int]]):
    """Batches of clip indices of one process, step by step.

    The global batch of step s takes positions s * B .. (s + 1) * B - 1 of the endless row of shuffled epochs, and
    process `rank` its share of it, so data order is a function of (seed, step, place in the global batch).

    Args:
        clips: number of clips. batch_size: of this process; B = batch_size * ranks.
        start, stop: steps to yield.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, ranks: int = 1):
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.start, self.stop, self.rank, self.ranks = start, stop, rank, ranks

    def rows(self) -> range:
        """Places of this process in the global batch."""
        return range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

    def at(self, step: int) -> list[int]:
        """Clip indices of this process at a step."""
        positions = (step * self.batch_size * self.ranks + row for row in self.rows())
        return [int(epoch_order(self.seed, p // self.clips, self.clips)[p % self.clips]) for p in positions]

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.at, range(self.start, self.stop))

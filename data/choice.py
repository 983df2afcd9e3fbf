"""Which of many are taken: by seed and content, spread over classes, whatever files and folders are called."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import sha256


def choose(items: Sequence, num: int, seed: int, content: Callable, group: Callable = lambda item: "") -> list:
    """All items as they are given or, if they are more, `num` of them; fewer are the beginning of more.

    Each item draws two numbers from the seed and its content. The first puts the items of a group of m in order; the
    second, u, places the j-th of them at (j + u) / m, and the items placed first are taken. So each group gives one
    item in every m-th part of the way: groups of equal size differ by one at most, others keep their proportions, and
    inside a group the choice is random. Neither the order given nor names matter, but for which items are of one group.

    Args:
        content: content(item), equal for items that may stand for each other, such as the hash of a file.
        group: group(item), its class; by default all are of one.
    """
    if num >= len(items):
        return list(items)
    groups = defaultdict(list)
    for k, item in enumerate(items):
        groups[group(item)].append((*_two(seed, content(item)), k))
    placed = [((j + u) / len(draws), first, k) for draws in groups.values()
              for j, (first, u, k) in enumerate(sorted(draws))]  # fmt: skip
    return [items[k] for *_, k in sorted(placed)[:num]]


def _two(seed: int, content: str) -> tuple[float, float]:
    """Two numbers in [0, 1), as good as independent."""
    digest = sha256(f"{seed} {content}".encode(errors="surrogateescape")).digest()  # names of files need not be UTF-8
    return tuple(int.from_bytes(half) / 2**128 for half in (digest[:16], digest[16:]))

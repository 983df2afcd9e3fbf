"""Tables in Markdown whose figures are of one seed, or of several."""

from collections.abc import Callable, Sequence


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells under a head."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *lines])


def over_seeds(
    found: Sequence[dict],
    value: Callable[[dict], float | None],
    interval: Callable[[dict], Sequence[float] | None] | None = None,
) -> str:
    """A figure of one seed with its interval, if it has one, or the mean of several with the lowest and the highest.

    Args:
        found: figures of each seed; of those without the value none counts, and without any the cell is empty.
    """
    there = [(number, seed) for seed in found if (number := value(seed)) is not None]
    if not there:
        return ""
    numbers = [number for number, _ in there]
    mean = f"{sum(numbers) / len(numbers):.3f}"
    if len(numbers) > 1:
        return f"{mean} ({min(numbers):.3f} to {max(numbers):.3f}, {len(numbers)} seeds)"
    ends = interval(there[0][1]) if interval else None
    return f"{mean} ({ends[0]:.3f} to {ends[1]:.3f})" if ends else mean


def synchrony(found: Sequence[dict]) -> list[str]:
    """Cells of what `judging.judged` says of sound and picture: onset accuracy, event F1, and its chance."""
    return [
        over_seeds(found, lambda x: x["onsets"]["accuracy"], lambda x: x["onsets"]["interval"]),
        over_seeds(found, lambda x: x["f1"], lambda x: x["interval"]),
        over_seeds(found, lambda x: x["shuffled"]),
    ]


def cell(figure: dict | None) -> str:
    """A figure and its interval."""
    if not figure:
        return ""
    ends = " ({:.2f} to {:.2f})".format(*figure["interval"]) if figure["interval"] else ""
    return f"{figure['value']:.2f}{ends}"

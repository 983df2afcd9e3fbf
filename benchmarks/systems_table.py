"""The tables of benchmarks/systems.py, in Markdown, of whatever figures are there."""

from collections.abc import Callable, Collection, Mapping, Sequence

TASKS = {"joint": "text to both", "a2v": "A2V", "v2a": "V2A"}
MOVING = ("joint", "a2v")  # whose pictures are made
NONE = "—"  # of what a system cannot do
MISSING = ""  # of what is not measured yet


def markdown(figures: Mapping[str, dict], rows: Mapping) -> str:
    """Three tables for each budget: synchrony, other figures, and what they cost.

    Args:
        figures: by BUDGET/ROW/SEED/PART, as systems.py keeps them. rows: by name, in order, each with a title and the
            tasks that it does.
    """
    limits = list(dict.fromkeys(key.split("/")[0] for key in figures))
    return "\n".join(_of_limit(limit, grouped(figures, limit), rows) for limit in limits)


def grouped(figures: Mapping[str, dict], limit: str) -> dict[str, dict[str, list[dict]]]:
    """Row -> part (training, or a task) -> its figures, one for each seed, by seed."""
    rows: dict[str, dict[str, list[dict]]] = {}
    for key in sorted(figures, key=lambda key: int(key.split("/")[2])):
        found, row, _, part = key.split("/")
        if found == limit:
            rows.setdefault(row, {}).setdefault(part, []).append(figures[key])
    return rows


def _of_limit(limit: str, found: Mapping[str, dict], rows: Mapping) -> str:
    there = {row.title: (found[name], row.tasks) for name, row in rows.items() if name in found}
    tables = (
        ([f"{limit} of training", *(f"{task}: {what}" for task in TASKS.values() for what in ("F1", "chance"))],
         _synchrony),
        (["onset accuracy, AV-Align, motion", *(f"onsets, {task}" for task in TASKS.values()),
          *(f"AV-Align (chance), {task}" for task in TASKS.values()),
          *(f"motion error, {TASKS[task]}" for task in MOVING)], _others),
        (["cost", "parameters", "of them learning last", "steps", "frames", "seconds of steps", "CPU s", "peak MiB",
          *(f"s a clip, {task}" for task in TASKS.values()), "peak MiB, sampling"], _costs),
    )  # fmt: skip
    return "\n".join(_table(head, {title: cells(*parts) for title, parts in there.items()}) for head, cells in tables)


def _table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([title, *cells] for title, cells in rows.items())]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _synchrony(parts: Mapping[str, list[dict]], tasks: Collection[str]) -> list[str]:
    def interval(found):
        return found["interval"]

    return [
        cell
        for task in TASKS
        for cell in (
            _cell(parts, tasks, task, lambda found: found["f1"], interval),
            _cell(parts, tasks, task, lambda found: found["shuffled"]),
        )
    ]


def _others(parts: Mapping[str, list[dict]], tasks: Collection[str]) -> list[str]:
    def aligned(task: str) -> str:
        value, chance = (_cell(parts, tasks, task, lambda found, name=name: found["av_align"][name])
                         for name in ("mean", "shuffled"))  # fmt: skip
        return value if value in (NONE, MISSING) else f"{value} ({chance})"

    def interval(found):
        return found["motion"]["low"], found["motion"]["high"]

    return [
        *(_cell(parts, tasks, task, lambda found: found["onsets"]["accuracy"]) for task in TASKS),
        *map(aligned, TASKS),
        *(_cell(parts, tasks, task, lambda found: found["motion"]["mean"], interval) for task in MOVING),
    ]


def _costs(parts: Mapping[str, list[dict]], tasks: Collection[str]) -> list[str]:
    """Mean over seeds of what is summed over stages; the largest peak."""
    seeds = [list(stages.values()) for stages in parts["training"]]

    def summed(name: str) -> str:
        return f"{sum(stage[name] for stages in seeds for stage in stages) / len(seeds):,.0f}"

    last, steps = seeds[0][-1], " + ".join(str(stage["steps"]) for stage in seeds[0])
    peak = max(stage["peak_mib"] for stages in seeds for stage in stages)
    sampling = [found["peak_mib"] for task in TASKS for found in parts.get(task, [])]
    return [
        *(f"{last[name]:,}" for name in ("parameters", "learning")),
        steps,
        *map(summed, ("frames", "step_seconds", "cpu_seconds")),
        f"{peak:,.0f}",
        *(_cell(parts, tasks, task, lambda found: found["seconds_a_clip"]) for task in TASKS),
        f"{max(sampling):,.0f}" if sampling else MISSING,
    ]


def _cell(
    parts: Mapping[str, list[dict]],
    tasks: Collection[str],
    task: str,
    value: Callable[[dict], float | None],
    interval: Callable[[dict], Sequence[float]] | None = None,
) -> str:
    """A figure of a task: of one seed with its interval, of several their mean, with the lowest and highest of them."""
    if task not in tasks:
        return NONE
    found = [(number, seed) for seed in parts.get(task, []) if (number := value(seed)) is not None]
    if not found:
        return MISSING
    numbers = [number for number, _ in found]
    mean = f"{sum(numbers) / len(numbers):.3f}"
    if len(numbers) > 1:
        return f"{mean} ({min(numbers):.3f} to {max(numbers):.3f}, {len(numbers)} seeds)"
    return mean if interval is None else "{} ({:.3f} to {:.3f})".format(mean, *interval(found[0][1]))

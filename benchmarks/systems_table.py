"""The tables of benchmarks/systems.py, in Markdown, of whatever figures are there."""

from collections.abc import Callable, Collection, Mapping

from benchmarks.judging import MOVING
from benchmarks.layout import over_seeds, synchrony, table

TASKS = {"joint": "text to both", "a2v": "A2V", "v2a": "V2A"}
NONE = "—"  # of what a system cannot do; what is not measured yet is empty


def markdown(figures: Mapping[str, dict], rows: Mapping) -> str:
    """Three tables for each budget: synchrony, what the picture is worth, and what it all costs.

    Args:
        figures: by BUDGET/ROW/SEED/PART, as systems.py keeps them. rows: by name, in order, each with a title and the
            tasks that it does.
    """
    limits = dict.fromkeys(key.split("/")[0] for key in figures)
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
    figures = ("onset accuracy", "event F1", "chance")
    heads = {
        _synchrony: [f"{limit} of training", *(f"{task}: {what}" for task in TASKS.values() for what in figures)],
        _pictures: ["AV-Align and motion", *(f"AV-Align, {task}" for task in TASKS.values()),
                    *(f"motion error, {TASKS[task]}" for task in MOVING)],
        _costs: ["cost", "parameters", "learning in the last stage", "steps", "frames", "seconds of steps", "CPU s",
                 "peak MiB", *(f"s a clip, {task}" for task in TASKS.values()), "peak MiB of sampling"],
    }  # fmt: skip
    there = [(row, found[name]) for name, row in rows.items() if name in found]
    lines = {cells: [[row.title, *cells(parts, row.tasks)] for row, parts in there] for cells in heads}
    return "\n".join(table(head, lines[cells]) for cells, head in heads.items())


def _synchrony(parts: Mapping[str, list[dict]], tasks: Collection[str]) -> list[str]:
    return [cell for task in TASKS for cell in (synchrony(parts.get(task, [])) if task in tasks else [NONE] * 3)]


def _pictures(parts: Mapping[str, list[dict]], tasks: Collection[str]) -> list[str]:
    def aligned(task: str) -> str:
        value, chance = (_cell(parts, tasks, task, lambda x, name=name: x["av_align"][name])
                         for name in ("mean", "shuffled"))  # fmt: skip
        return f"{value}; chance {chance}" if value not in ("", NONE) else value

    def moved(task: str) -> str:
        return _cell(parts, tasks, task, lambda x: x["motion"]["mean"], lambda x: _ends(x["motion"]))

    return [*map(aligned, TASKS), *map(moved, MOVING)]


def _ends(motion: Mapping) -> tuple[float, float]:
    return motion["low"], motion["high"]


def _costs(parts: Mapping[str, list[dict]], tasks: Collection[str]) -> list[str]:
    """Means over seeds of what is summed over stages; the largest peaks."""
    seeds = [list(stages.values()) for stages in parts["training"]]

    def summed(name: str) -> str:
        return f"{sum(stage[name] for stages in seeds for stage in stages) / len(seeds):,.0f}"

    last = seeds[0][-1]
    steps = " + ".join(f"{sum(stage['steps'] for stage in stages) / len(seeds):.0f}" for stages in zip(*seeds))
    training = max(stage["peak_mib"] for stages in seeds for stage in stages)
    sampling = max((found["peak_mib"] for task in TASKS for found in parts.get(task, [])), default=None)
    return [
        *(f"{last[name]:,}" for name in ("parameters", "learning")),
        steps,
        *map(summed, ("frames", "step_seconds", "cpu_seconds")),
        f"{training:,.0f}",
        *(_cell(parts, tasks, task, lambda x: x["seconds_a_clip"]) for task in TASKS),
        "" if sampling is None else f"{sampling:,.0f}",
    ]


def _cell(parts: Mapping, tasks: Collection[str], task: str, value: Callable, interval: Callable | None = None) -> str:
    return over_seeds(parts.get(task, []), value, interval) if task in tasks else NONE

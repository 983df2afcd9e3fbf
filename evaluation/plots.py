"""Pictures of figures: curves with their bands, and pairs of clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from data.folders import printable

if TYPE_CHECKING:
    from evaluation.videos import Clip

DPI = 110
EVERY = 4  # of a clip's 16 frames that are shown


def plain(text: str) -> str:
    """Text that can be drawn and of which no letter is taken for a formula: files may be called anything."""
    return printable(text).replace("$", r"\$")


def curves(lines: dict[str, tuple], title: str, x: str, y: str) -> Figure:
    """Lines (xs, ys) or, with a band, (xs, ys, low, high), by name."""
    figure = Figure(figsize=(7, 3.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys, *band) in lines.items():
        (line,) = axes.plot(xs, ys, label=plain(name))
        if band:
            axes.fill_between(xs, *band, alpha=0.25, color=line.get_color(), label="95 %")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def closest_pairs(pairs: list[tuple[Clip, Clip]], distances: list[float]) -> Figure:
    """Frames of generated clips, each beside the training clip nearest to it."""
    import torch

    figure = Figure(figsize=(9, 1.05 * len(pairs)), dpi=DPI, layout="constrained")
    rows = figure.subplots(len(pairs), 2, squeeze=False)
    for axes, pair, distance in zip(rows, pairs, distances):
        for side, clip in zip(axes, pair):
            side.imshow(torch.cat(list(clip.picture()[::EVERY]), 1).numpy())  # frames side by side
            side.set(xticks=[], yticks=[])
            side.set_title(plain(f"{clip.video.path.name}, frame {clip.start}"), fontsize="x-small")
        axes[0].set_ylabel(f"{distance:.3g}", fontsize="x-small")
    return figure


def against_seconds(points: dict[str, dict[str, list[tuple[float, float, str]]]]) -> Figure:
    """One panel per figure: its value against seconds, a line per curve, "" for one alone, its points
    (seconds, value, label) named."""
    figure = Figure(figsize=(7, 2.6 * len(points)), dpi=DPI, layout="constrained")
    for axes, (name, found) in zip(figure.subplots(len(points), 1, squeeze=False)[:, 0], points.items()):
        for curve, places in found.items():
            seconds, values, labels = zip(*sorted(places))
            axes.plot(seconds, values, "o-", label=plain(curve))
            for at in zip(labels, zip(seconds, values)):
                axes.annotate(*at, xytext=(4, 4), textcoords="offset points", fontsize="small")
        axes.set(xlabel="seconds per clip", ylabel=name)
        axes.spines[["top", "right"]].set_visible(False)
        if any(found):
            axes.legend(frameon=False, fontsize="small")
    return figure

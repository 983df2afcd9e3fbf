"""What evaluate.py leaves behind: a table for the terminal, pictures, and one page that holds all of it."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

    from evaluation.setting import Figure, Result

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .8rem .3rem 0;
vertical-align: top; border-bottom: 1px solid #ddd } td.n { font-variant-numeric: tabular-nums; white-space: nowrap }
small { color: #666 } img { max-width: 100% } .note { color: #a40 }"""


def shown(x: float | None) -> str:
    """A number in four significant digits."""
    return "" if x is None else f"{x:.4g}" if math.isfinite(x) else str(x)


def interval(figure: Figure) -> str:
    """The ends of its interval."""
    return "" if figure.low is None else f"{shown(figure.low)} to {shown(figure.high)}"


def table(figures: list[Figure]) -> str:
    """Figures as lines of text, columns aligned."""
    head = ("figure", "value", "95 %", "reference", "clips", "note")
    rows = [head] + [(f.name, shown(f.value), interval(f), shown(f.reference), _counts(f), _noted(f)) for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _noted(figure: Figure) -> str:
    """Its note; a warning is a sentence, too long for a table that is printed beside it."""
    return ", ".join(filter(None, (figure.note, figure.warning and "not told from real")))


def _counts(figure: Figure) -> str:
    return f"{figure.fake}/{figure.real}" if figure.real else str(figure.fake)


def save_plots(plots: dict[str, Plot], folder: Path) -> None:
    """NAME.png of each plot."""
    for name, plot in plots.items():
        plot.savefig(folder / f"{name}.png")


def page(result: Result, facts: dict) -> str:
    """One HTML page with its pictures inside, readable without anything else.

    Args:
        facts: shown below the figures, by name.
    """
    rows = "".join(_row(figure) for figure in result.figures)
    pictures = "".join(f"<h3>{html.escape(name.replace('_', ' '))}</h3>{_picture(plot)}" for name, plot in
                       result.plots.items())  # fmt: skip
    about = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Evaluation</title><style>{STYLE}</style><h1>Evaluation</h1>"
        "<table><tr><th>figure<th>value<th>95 %<th>reference<th>clips<th>protocol</tr>"
        f"{rows}</table><p><small>Clips: generated/real. Intervals and references are named in the protocol column."
        f"</small></p>{pictures}<h2>What was compared</h2><table>{about}</table></html>\n"
    )


def _row(figure: Figure) -> str:
    reference = shown(figure.reference)
    about = [figure.protocol, figure.interval and f"interval: {figure.interval}",
             figure.reference_is and f"reference: {figure.reference_is}"]  # fmt: skip
    note = "".join(f" <span class=note>{html.escape(said)}</span>" for said in (figure.note, figure.warning) if said)
    cells = "".join(f"<td class=n>{html.escape(cell)}</td>"
                    for cell in (shown(figure.value), interval(figure), reference, _counts(figure)))  # fmt: skip
    small = html.escape(". ".join(filter(None, about)))
    return f"<tr><td>{html.escape(figure.name)}</td>{cells}<td><small>{small}</small>{note}</td></tr>"


def _picture(plot: Plot) -> str:
    data = io.BytesIO()
    plot.savefig(data, format="png")
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}'>"

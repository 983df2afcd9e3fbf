"""What measures share: a setting to work on, and figures with their protocol as the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.features import RANDOM, Extracted, Extractor, extract, shared
from evaluation.videos import Clip, Folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

FAD_SCALE = 1e4  # of the published FAD
LEVEL = "95 %"


@dataclass(frozen=True)
class Figure:
    """One figure, with all that one needs to compare it with another of that name.

    reference: the same figure where the best possible is known: between real clips, or of the real videos.
    warning: why the figure says nothing, in a sentence; "" if it does.
    """

    name: str
    value: float
    protocol: str
    fake: int  # clips or videos
    real: int = 0
    low: float | None = None
    high: float | None = None
    interval: str = ""  # what low and high are the ends of
    reference: float | None = None
    reference_is: str = ""
    note: str = ""
    warning: str = ""


@dataclass
class Result:
    """What a measure gives: figures, plots by name, and data for the JSON."""

    figures: list[Figure]
    plots: dict[str, Plot] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: Result) -> Result:
        return Result(self.figures + other.figures, self.plots | other.plots, self.data | other.data)


class Setting:
    """What measures work on: folders, how many clips of each, and features that are computed when first asked for.

    Args:
        fake, real, train: folders; train only for memorisation.
        num: clips of each folder; fewer where it has fewer.
        extractors: those that the measures need, by class.
        cache: folder of features. processes: an `accelerate.PartialState`. seed: of the subsets of intervals.
        progress: makes a bar: progress(total=, desc=).
        prerolled: first frames of long videos, which pre-rolling made.
        onset_tolerance: largest distance in s of onsets that agree, of onset-acc.
    """

    def __init__(
        self,
        fake: Folder,
        real: Folder,
        train: Folder | None,
        num: int,
        extractors: dict[type[Extractor], Extractor],
        cache: Path,
        processes,
        batch_size: int,
        seed: int,
        progress: Callable,
        prerolled: int = 10,
        onset_tolerance: float = 0.1,
    ):
        self.fake, self.real, self.train, self.num = fake, real, train, num
        self.extractors, self.cache, self.processes = extractors, cache, processes
        self.batch_size, self.seed, self.progress, self.prerolled = batch_size, seed, progress, prerolled
        self.onset_tolerance = onset_tolerance
        self.extracted: dict[str, Extracted] = {}  # what was asked for, for the record

    def features(self, name: str, clips: list[Clip], kind: type[Extractor]) -> Extracted:
        """Features of clips; `name` says whose they are, for the record."""
        key = f"{name} {kind.name}"
        if key not in self.extracted:
            how = (self.extractors[kind], self.cache, self.processes, self.batch_size, self.progress)
            self.extracted[key] = extract(clips, *how)
        return self.extracted[key]

    def shared(self, name: str, version: str, items: list, keys: list[str], compute: Callable) -> list[dict]:
        """Arrays of items that are no features, kept and shared as these are.

        Args:
            name: on the bar. version: of what is kept. items, keys, compute: as of `evaluation.features.shared`.
        """
        return shared(items, keys, compute, self.cache / version, self.processes,
                      lambda total: self.progress(total=total, desc=name)).arrays  # fmt: skip

    def pair(self, kind: type[Extractor]):
        """Features of the generated and of the real clips."""
        return tuple(
            self.features(name, kind.of(folder, self.num), kind).features
            for name, folder in (("fake", self.fake), ("real", self.real))
        )

    def real_twice(self, kind: type[Extractor], n: int):
        """Features of 2n real clips, for real against real: further videos than those judged, as far as there are any.

        Not further windows of the same videos, which are alike and would stand on both sides. In the order of their
        content, since halves are drawn by place and names must not matter.
        """
        judged, clips = (kind.of(self.real, num) for num in (self.num, min(2 * n, len(self.real.videos))))
        if len(clips) <= len(judged):
            return self.features("real", judged, kind).features
        return self.features("real against real", sorted(clips, key=lambda clip: clip.key), kind).features

    def note(self, kind: type[Extractor]) -> str:
        return RANDOM if self.extractors[kind].weights == RANDOM else ""

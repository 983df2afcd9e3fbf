"""What can be measured on two folders of videos, each figure with its protocol: the registry `MEASURES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.features import RANDOM, CompatSound, Extracted, Extractor, Motion, Sound, extract
from evaluation.videos import Clip, Folder
from metrics.distances import frechet, kernel_distance
from metrics.intervals import dispersion_band, real_against_real, subsample_band
from metrics.nearest import memorisation

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

DRAWS = 50  # subsets of a band: a Fréchet distance of 2048 clips takes a second
FAD_SCALE = 1e4  # of the published FAD
FEWEST = 4  # clips of a side; intervals take halves, and a distance takes 2
LEVEL = "95 %"


@dataclass(frozen=True)
class Figure:
    """One figure, with all that one needs to compare it with another of that name.

    reference: the same figure where the best possible is known: between real clips, or of the real videos.
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
    ):
        self.fake, self.real, self.train, self.num = fake, real, train, num
        self.extractors, self.cache, self.processes = extractors, cache, processes
        self.batch_size, self.seed, self.progress, self.prerolled = batch_size, seed, progress, prerolled
        self.extracted: dict[str, Extracted] = {}  # what was asked for, for the record

    def features(self, name: str, clips: list[Clip], kind: type[Extractor]) -> Extracted:
        """Features of clips; `name` says whose they are, for the record."""
        key = f"{name} {kind.name}"
        if key not in self.extracted:
            how = (self.extractors[kind], self.cache, self.processes, self.batch_size, self.progress)
            self.extracted[key] = extract(clips, *how)
        return self.extracted[key]

    def pair(self, kind: type[Extractor]):
        """Features of the generated and of the real clips."""
        return tuple(
            self.features(name, folder.clips(self.num), kind).features
            for name, folder in (("fake", self.fake), ("real", self.real))
        )

    def note(self, kind: type[Extractor]) -> str:
        return RANDOM if self.extractors[kind].weights == RANDOM else ""


def fvd(setting: Setting) -> Result:
    """Fréchet video distance."""
    return Result([_frechet_figure(setting, "FVD", Motion)])


def kvd(setting: Setting) -> Result:
    """Kernel video distance, unbiased."""
    fake, real = setting.pair(Motion)
    low, high = subsample_band(fake, real, kernel_distance, DRAWS, seed=setting.seed)
    floor = real_against_real(real, kernel_distance, len(fake), setting.seed)
    return Result([Figure(
        name="KVD",
        value=kernel_distance(fake, real),
        protocol=f"{setting.extractors[Motion].protocol}; unbiased MMD^2, kernel (x.y/400 + 1)^3",
        fake=len(fake), real=len(real), low=low, high=high, interval=f"{LEVEL}, by subsampling halves",
        reference=floor.value, reference_is=f"real against real, {floor.n} clips a side",
        note=setting.note(Motion),
    )])  # fmt: skip


def fad(setting: Setting) -> Result:
    """Fréchet audio distance: as published, and as one should take it."""
    compat = _frechet_figure(setting, "FAD compat", CompatSound, FAD_SCALE, compat=True)
    return Result([compat, _frechet_figure(setting, "FAD sound", Sound, FAD_SCALE)])


def _frechet_figure(
    setting: Setting, name: str, kind: type[Extractor], scale: float = 1.0, compat: bool = False
) -> Figure:
    """A Fréchet distance with its dispersion and its floor."""
    fake, real = setting.pair(kind)

    def distance(a, b):
        return scale * frechet(a, b, compat).distance

    low, high = dispersion_band(fake, real, distance, DRAWS, seed=setting.seed)
    floor = real_against_real(real, distance, len(fake), setting.seed)
    rule = "matrix root of the released evaluation" if compat else "nuclear norm"
    return Figure(
        name=name,
        value=distance(fake, real),
        protocol=f"{setting.extractors[kind].protocol}; Frechet distance x {scale:g}, float64, {rule}",
        fake=len(fake), real=len(real), low=low, high=high,
        interval=f"{LEVEL} dispersion over clips, no confidence interval: the distance is biased in n",
        reference=floor.value, reference_is=f"real against real, {floor.n} clips a side",
        note=setting.note(kind),
    )  # fmt: skip


def memorised(setting: Setting) -> Result:
    """How near generated clips are to the nearest training clip, against real clips."""
    from evaluation.plots import closest_pairs

    train = setting.train.clips(max(setting.num, len(setting.train.videos)))
    fake, real = setting.pair(Motion)
    found = memorisation(fake, setting.features("train", train, Motion).features, real)
    protocol = f"{setting.extractors[Motion].protocol}; distance to the nearest of {len(train)} training clips"
    counts = {"fake": len(fake), "real": len(real), "note": setting.note(Motion)}
    figures = [
        Figure("memorisation ratio", found.ratio, f"{protocol}; median over the median of real clips", **counts,
               reference=1.0, reference_is="fresh samples; copies give 0"),
        Figure("memorised share", found.share, f"{protocol}; share within the 1st percentile of real clips", **counts,
               reference=0.01, reference_is="fresh samples; copies give 1"),
    ]  # fmt: skip
    clips = setting.fake.clips(setting.num)
    pairs = [(clips[i], train[j]) for i, j in found.closest.tolist()]
    plot = closest_pairs(pairs, found.distance[found.closest[:, 0]].tolist())
    return Result(figures, {"closest_pairs": plot}, {"closest": [{"fake": str(a), "train": str(b)} for a, b in pairs]})


@dataclass(frozen=True)
class Measure:
    """A measure, the networks that it needs, whether videos need a sound track, and what refuses a setting early."""

    run: Callable[[Setting], Result]
    networks: tuple[type[Extractor], ...] = ()
    sound: bool = False
    check: Callable[[Setting], object] = lambda setting: None


def enough_clips(setting: Setting) -> None:
    """Refuse sides of which no interval can be made.

    Raises:
        ValueError: a side has fewer than 4 clips.
    """
    for folder in (setting.fake, setting.real):
        if (found := len(folder.clips(setting.num))) < FEWEST:
            raise ValueError(f"{folder.path} gives {found} clips, and distances need {FEWEST}; give more, or a --num "
                             f"of at least {FEWEST}")  # fmt: skip


def measures() -> dict[str, Measure]:
    """Those that evaluate.py offers, by name."""
    from evaluation.drift import long, long_videos, loops
    from evaluation.synchrony import enough_videos, sync

    return {
        "fvd": Measure(fvd, (Motion,), check=enough_clips),
        "kvd": Measure(kvd, (Motion,), check=enough_clips),
        "fad": Measure(fad, (CompatSound, Sound), sound=True, check=enough_clips),
        "sync": Measure(sync, sound=True, check=enough_videos),
        "long": Measure(long, (Motion, Sound), sound=True, check=long_videos),
        "loops": Measure(loops, check=long_videos),
        "memorisation": Measure(memorised, (Motion,)),
    }

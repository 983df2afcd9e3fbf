"""What can be measured on two folders of videos: distances and memorisation, and the registry of all measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from evaluation.drift import long, long_videos, loops
from evaluation.features import CompatSound, Extractor, Motion, Sound
from evaluation.listening import (
    Clap,
    Tags,
    clap,
    clap_sound,
    enough_sounds,
    has_partners,
    has_prompts,
    inception,
    kl,
)
from evaluation.plots import closest_pairs
from evaluation.setting import FAD_SCALE, LEVEL, Figure, Result, Setting
from evaluation.synchrony import enough_videos, sync
from metrics.distances import frechet, kernel_distance
from metrics.intervals import Distance, dispersion_band, real_against_real, subsample_band
from metrics.nearest import memorisation

DRAWS = 50  # subsets of a band: a Fréchet distance of 2048 clips takes a second
FEWEST = 4  # clips of a side; intervals take halves, and a distance takes 2
FEW = 8  # clips of a side; with fewer, halves of one data set miss its real against real in a tenth of draws


def fvd(setting: Setting) -> Result:
    """Fréchet video distance."""
    return Result([_frechet_figure(setting, "FVD", Motion)])


def kvd(setting: Setting) -> Result:
    """Kernel video distance, unbiased."""
    rule, interval = "unbiased MMD^2, kernel (x.y/400 + 1)^3", f"{LEVEL}, by subsampling halves"
    return Result([_distance_figure(setting, "KVD", Motion, kernel_distance, rule, subsample_band, interval)])


def fad(setting: Setting) -> Result:
    """Fréchet audio distance: as published, and as one should take it."""
    compat = _frechet_figure(setting, "FAD compat", CompatSound, FAD_SCALE, compat=True)
    return Result([compat, _frechet_figure(setting, "FAD sound", Sound, FAD_SCALE)])


def _frechet_figure(
    setting: Setting, name: str, kind: type[Extractor], scale: float = 1.0, compat: bool = False
) -> Figure:
    """A Fréchet distance with its dispersion and its floor."""

    def distance(a, b):
        return scale * frechet(a, b, compat).distance

    root = "matrix root of the released evaluation" if compat else "nuclear norm"
    rule = f"Frechet distance x {scale:g}, float64, {root}"
    interval = f"{LEVEL} dispersion over clips, no confidence interval: the distance is biased in n"
    return _distance_figure(setting, name, kind, distance, rule, dispersion_band, interval)


def _distance_figure(
    setting: Setting, name: str, kind: type[Extractor], distance: Distance, rule: str, band: Callable, interval: str
) -> Figure:
    """A distance with its band, and what real clips have against each other, as many a side if there are so many."""
    fake, real = setting.pair(kind)
    low, high = band(fake, real, distance, DRAWS, seed=setting.seed)
    floor = real_against_real(setting.real_twice(kind, len(fake)), distance, len(fake), setting.seed)
    figure = Figure(
        name=name,
        value=distance(fake, real),
        protocol=f"{setting.extractors[kind].protocol}; {rule}",
        fake=len(fake), real=len(real), low=low, high=high, interval=interval,
        reference=floor.value, reference_is=f"real against real, {floor.n} clips a side",
        note=setting.note(kind),
    )  # fmt: skip
    return replace(figure, warning=too_few(figure))


def too_few(figure: Figure) -> str:
    """What to say where a distance's interval reaches down to real against real: generated clips may be real ones."""
    clips = min(figure.fake, figure.real)
    if figure.low > figure.reference and clips >= FEW:
        return ""
    span = f"{figure.name} {figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"
    return (
        f"{span} of {clips} clips says nothing: {figure.reference_is}, is {figure.reference:.4g}; "
        "give more clips, unless the model is that good"
    )


def memorised(setting: Setting) -> Result:
    """How near generated clips are to the nearest training clip, against real clips."""
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
    return {
        "fvd": Measure(fvd, (Motion,), check=enough_clips),
        "kvd": Measure(kvd, (Motion,), check=enough_clips),
        "fad": Measure(fad, (CompatSound, Sound), sound=True, check=enough_clips),
        "sync": Measure(sync, sound=True, check=enough_videos),
        "long": Measure(long, (Motion, Sound), sound=True, check=long_videos),
        "loops": Measure(loops, check=long_videos),
        "memorisation": Measure(memorised, (Motion,)),
        "clap": Measure(clap, (Clap,), sound=True, check=has_prompts),
        "clap-sound": Measure(clap_sound, (Clap,), sound=True, check=has_partners),
        "kl": Measure(kl, (Tags,), sound=True, check=has_partners),
        "inception": Measure(inception, (Tags,), sound=True, check=enough_sounds),
    }

"""What can be measured on two folders of videos: distances and memorisation, and the registry of all measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from evaluation.drift import long, long_videos, loops
from evaluation.features import CompatSound, Extractor, Motion, Motion12, Pictures, Sound
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
from evaluation.onsets import onset_accuracy
from evaluation.plots import closest_pairs
from evaluation.setting import FAD_SCALE, LEVEL, Figure, Result, Setting
from evaluation.synchrony import enough_videos, sync
from evaluation.videos import Folder
from metrics.distances import frechet, kernel_distance
from metrics.intervals import Distance, dispersion_band, real_against_real, subsample_band
from metrics.nearest import memorisation

DRAWS = 50  # subsets of a band: a Fréchet distance of 2048 clips takes a second
FEWEST = 4  # clips of a side; intervals take halves, and a distance takes 2
FEW = 8  # clips of a side; with fewer, halves of one data set miss its real against real in a tenth of draws


def fvd(setting: Setting) -> Result:
    """Fréchet video distance."""
    return Result([_frechet_figure(setting, "FVD", Motion)])


def fvd12(setting: Setting) -> Result:
    """Fréchet video distance of clips of 12 frames at 6 fps."""
    return Result([_frechet_figure(setting, "FVD12", Motion12)])


def fid(setting: Setting) -> Result:
    """Fréchet inception distance of pictures; videos are drawn whole where its dispersion is measured."""
    return Result([_frechet_figure(setting, "FID", Pictures, rows=Pictures.each)])


def kvd(setting: Setting) -> Result:
    """Kernel video distance, unbiased."""
    rule, interval = "unbiased MMD^2, kernel (x.y/400 + 1)^3", f"{LEVEL}, by subsampling halves"
    return Result([_distance_figure(setting, "KVD", Motion, kernel_distance, rule, subsample_band, interval)])


def fad(setting: Setting) -> Result:
    """Fréchet audio distance: as published, and as one should take it."""
    compat = _frechet_figure(setting, "FAD compat", CompatSound, FAD_SCALE, compat=True)
    return Result([compat, _frechet_figure(setting, "FAD sound", Sound, FAD_SCALE)])


def _frechet_figure(
    setting: Setting, name: str, kind: type[Extractor], scale: float = 1.0, compat: bool = False, rows: int = 1
) -> Figure:
    """A Fréchet distance with its dispersion and its floor; `rows` features lie side by side in those of one item."""

    def distance(a, b):
        a, b = (x.reshape(len(x) * rows, -1) for x in (a, b))
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
    """A measure, the networks that it needs, and what refuses a setting early.

    sound: whether generated videos need a sound track, and real ones are used only with one where any has one.
    compares: whether it compares with real sounds, so that it is left out where there are none.
    """

    run: Callable[[Setting], Result]
    networks: tuple[type[Extractor], ...] = ()
    sound: bool = False
    compares: bool = False
    check: Callable[[Setting], object] = lambda setting: None


def enough_of(kind: type[Extractor]) -> Callable[[Setting], None]:
    """Refuses sides of which no interval can be made, with a ValueError: fewer than 4 clips or videos."""

    def check(setting: Setting) -> None:
        for folder in (setting.fake, setting.real):
            if (found := len(kind.of(folder, setting.num))) < FEWEST:
                raise ValueError(f"{folder.path} gives {found} {kind.counted}, and distances need {FEWEST}; give more, "
                                 f"or a --num of at least {FEWEST}")  # fmt: skip

    return check


def left_out(chosen: dict[str, Measure], real: Folder) -> str:
    """What to say of measures that compare with real sounds where there are none; "" where nothing is left out.

    Raises:
        ValueError: nothing is left.
    """
    names = [name for name, measure in chosen.items() if measure.compares]
    if not names or real.sounds:
        return ""
    missing = f"no video of {real.path} has a sound track"
    if len(names) == len(chosen):
        raise ValueError(f"{missing}, and {', '.join(names)} compare with real sounds; give videos with sound, or "
                         "other --metrics")  # fmt: skip
    return f"{missing}, so what compares with real sounds is left out: {', '.join(names)}"


def measures() -> dict[str, Measure]:
    """Those that evaluate.py offers, by name."""
    return {
        "fvd": Measure(fvd, (Motion,), check=enough_of(Motion)),
        "kvd": Measure(kvd, (Motion,), check=enough_of(Motion)),
        "fvd12": Measure(fvd12, (Motion12,), check=enough_of(Motion12)),
        "fid": Measure(fid, (Pictures,), check=enough_of(Pictures)),
        "fad": Measure(fad, (CompatSound, Sound), sound=True, compares=True, check=enough_of(Sound)),
        "sync": Measure(sync, sound=True, check=enough_videos),
        "long": Measure(long, (Motion, Sound), sound=True, compares=True, check=long_videos),
        "loops": Measure(loops, check=long_videos),
        "memorisation": Measure(memorised, (Motion,)),
        "clap": Measure(clap, (Clap,), sound=True, check=has_prompts),
        "clap-sound": Measure(clap_sound, (Clap,), sound=True, compares=True, check=has_partners),
        "kl": Measure(kl, (Tags,), sound=True, compares=True, check=has_partners),
        "onset-acc": Measure(onset_accuracy, sound=True, compares=True, check=has_partners),
        "inception": Measure(inception, (Tags,), sound=True, check=enough_sounds),
    }

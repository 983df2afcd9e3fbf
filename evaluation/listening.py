"""What networks of transformers hear: CLAP score of texts and of sounds, KL of classes, inception score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data.captions import NoCaptionsError
from evaluation.features import RANDOM, Extractor
from evaluation.pairs import Pairs, Sounding, beginnings, partners, prompts
from evaluation.setting import LEVEL, Figure, Result, Setting
from evaluation.videos import FPS, Video
from metrics.classes import divergence_of_others, divergences, inception_score
from metrics.cosine import cosine_of_others, cosines
from metrics.intervals import bootstrap, dispersion_band
from metrics.listeners import Listener, load_clap, load_tagger

DRAWS = 200  # subsets of a dispersion: a score of 2048 sounds takes milliseconds
FEWEST = 4  # sounds of an inception score, whose dispersion takes halves
INTERVAL = f"{LEVEL} bootstrap over pairs"


class _Heard(Extractor):
    """Whole sounds as a network of transformers hears them, one at a time."""

    alone = True
    load: Callable[[str | None], Listener]

    def __init__(self, source: str | None, device: str = "cpu"):
        self.net, self.device = self.load(source).to(device), device
        self.weights = RANDOM if source is None else self.net.digest
        self.protocol = f"the first {self.net.seconds} s at most, mono at {self.net.sample_rate} Hz, of each sound"

    def read(self, clip: Sounding) -> Tensor:
        return self.net.hear(clip.sound(self.net.sample_rate))

    def embed(self, batch: Tensor) -> Tensor:
        return self.net(batch)


class Clap(_Heard):
    """Embeddings of CLAP."""

    name, load = "clap", staticmethod(load_clap)


class Tags(_Heard):
    """Logits of a tagger."""

    name, load = "tagger", staticmethod(load_tagger)


def clap(setting: Setting) -> Result:
    """CLAP score: mean cosine of a sound and its text, beside that of real videos with their captions."""
    found = prompts(setting.fake, setting.num)
    scores, chance = _read_scores(setting, "fake", found)
    figure = _mean(setting, Clap, "CLAP score", "mean cosine of a sound and its text", scores, found, chance)
    if real := _captioned(setting):
        reference = _read_scores(setting, "real", real)[0].mean().item()
        figure = replace(figure, real=len(real), reference=reference, reference_is=f"real videos with their {real}")
    return _paired(figure, found, chance)


def clap_sound(setting: Setting) -> Result:
    """CLAP score of two sounds: mean cosine of a generated sound and the real one."""
    found = partners(setting.fake, setting.real, setting.num)
    fake, real = _heard_pairs(setting, Clap, found)
    scores, chance = cosines(fake, real), cosine_of_others(fake, real)
    rule = "mean cosine of a generated sound and the real one, both as long as the shorter"
    figure = _mean(setting, Clap, "CLAP score of sounds", rule, scores, found, chance)
    return _paired(replace(figure, real=len(found), reference=1.0, reference_is="equal sounds"), found, chance)


def kl(setting: Setting) -> Result:
    """KL divergence of the classes of a generated sound from those of the real one."""
    found = partners(setting.fake, setting.real, setting.num)
    fake, real = _heard_pairs(setting, Tags, found)
    scores, chance = divergences(real, fake), divergence_of_others(real, fake)
    rule = f"mean KL(real || generated) in nats, softmax over {fake.shape[1]} logits, both as long as the shorter"
    figure = _mean(setting, Tags, "KL of classes", rule, scores, found, chance)
    return _paired(replace(figure, real=len(found), reference=0.0, reference_is="equal sounds"), found, chance)


def inception(setting: Setting) -> Result:
    """Inception score of the sounds, beside that of as many real ones, where there are any."""
    videos, seconds = setting.fake.choose(setting.num), setting.extractors[Tags].net.seconds
    fake = _heard(setting, "fake sounds", beginnings(videos, seconds), Tags)
    low, high = dispersion_band(fake, fake, lambda a, _: inception_score(a), DRAWS, seed=setting.seed)
    figure = Figure(
        name="inception score", value=inception_score(fake),
        protocol=f"{_by(setting, Tags)}; exp of the mean KL from the mean, softmax over {fake.shape[1]} logits, all "
        "sounds at once",
        fake=len(fake), low=low, high=high,
        interval=f"{LEVEL} dispersion over sounds, no confidence interval: the score grows with n",
        note=_note(setting, Tags),
    )  # fmt: skip
    if setting.real.sounds:
        real = _heard(setting, "real sounds", beginnings(setting.real.choose(len(videos)), seconds), Tags)
        beside = {"reference": inception_score(real), "reference_is": f"{len(real)} real sounds"}
        figure = replace(figure, real=len(real), **beside)
    return Result([figure])


def has_prompts(setting: Setting) -> None:
    """Refuse generated videos without texts, as of `prompts`; damaged captions of real ones, too."""
    prompts(setting.fake, setting.num)
    _captioned(setting)


def has_partners(setting: Setting) -> None:
    """Refuse folders whose videos do not belong together, as of `partners`."""
    partners(setting.fake, setting.real, setting.num)


def enough_sounds(setting: Setting) -> None:
    """Refuse sides of which no inception score says anything.

    Raises:
        ValueError: a side has fewer than 4 videos.
    """
    for folder in (side for side in (setting.fake, setting.real) if side.sounds):
        if (found := len(folder.choose(setting.num))) < FEWEST:
            raise ValueError(f"{folder.path} gives {found} videos, and an inception score needs {FEWEST}; give more, "
                             f"or a --num of at least {FEWEST}")  # fmt: skip


def _captioned(setting: Setting) -> Pairs | None:
    """Real videos with their captions, where they have some, and sound."""
    try:
        return prompts(setting.real, setting.num) if setting.real.sounds else None
    except NoCaptionsError:
        return None


def _read_scores(setting: Setting, name: str, found: Pairs) -> tuple[Tensor, float]:
    """Cosine of each sound and its text, and the mean with the texts of other videos."""
    sounds = beginnings(found.videos, setting.extractors[Clap].net.seconds)
    heard, read = _heard(setting, f"{name} with text", sounds, Clap), _texts(setting, found.others)
    return cosines(heard, read), cosine_of_others(heard, read)


def _heard_pairs(setting: Setting, kind: type[_Heard], found: Pairs) -> tuple[Tensor, Tensor]:
    """Features (n, d) of generated and of real sounds, each pair cut to the shorter."""
    most = setting.extractors[kind].net.seconds * FPS
    frames = [min(fake.frames, real.frames, most) for fake, real in zip(found.videos, found.others)]
    sides = {"fake": found.videos, "real": found.others}
    return tuple(_heard(setting, f"{name} in pairs", list(map(Sounding, videos, frames)), kind)
                 for name, videos in sides.items())  # fmt: skip


def _heard(setting: Setting, name: str, sounds: list[Sounding], kind: type[_Heard]) -> Tensor:
    return setting.features(name, sounds, kind).features


def _texts(setting: Setting, texts: list[str]) -> Tensor:
    """Embeddings (n, d) of texts, each computed once and kept as those of sounds are."""
    extractor = setting.extractors[Clap]

    def read(missing: list[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for text in missing:
            with torch.inference_mode():
                yield text, {"features": extractor.net.read(text).float().cpu().numpy()}

    found = setting.shared("texts", f"{extractor.identity}-texts", texts, texts, read)
    return torch.from_numpy(np.stack([arrays["features"] for arrays in found]))


def _mean(
    setting: Setting, kind: type[_Heard], name: str, rule: str, scores: Tensor, found: Pairs, chance: float
) -> Figure:
    """What figures of pairs have in common."""
    low, high = bootstrap(scores.numpy(), seed=setting.seed)
    noted = (f"chance {chance:.3g}", *_counted(found), _note(setting, kind))
    protocol = f"{_by(setting, kind)}; {rule}; chance: those of other videos; {found}"
    return Figure(name, scores.mean().item(), protocol, len(found), low=low, high=high, interval=INTERVAL,
                  note=", ".join(noted))  # fmt: skip


def _paired(figure: Figure, found: Pairs, chance: float) -> Result:
    """The figure, and who was compared with whom."""
    pairs = [{"video": str(video.path), "with": str(other.path) if isinstance(other, Video) else other}
             for video, other in zip(found.videos, found.others)]  # fmt: skip
    about = {"rule": found.rule, "pairs": pairs, "videos": found.of, "chance": chance}
    return Result([figure], {}, {figure.name: about})


def _counted(found: Pairs) -> list[str]:
    return [] if len(found) == found.of else [f"{len(found)} of {found.of} videos"]


def _by(setting: Setting, kind: type[_Heard]) -> str:
    return f"{setting.extractors[kind].net.called}; {setting.extractors[kind].protocol}"


def _note(setting: Setting, kind: type[_Heard]) -> str:
    """The network's name, and whether it has weights: no table without it."""
    return ", ".join(filter(None, (setting.extractors[kind].net.called, setting.note(kind))))

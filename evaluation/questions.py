"""What people are asked of a pair of videos: the questions of the papers' studies, by name.

The papers name what was asked about; the wording is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

WORDINGS = {
    "picture": "Which picture looks better?",
    "sound": "Which sound is better?",
    "synchrony": "In which do sound and picture fit together better?",
    "motion": "Which motion is smoother?",
    "audio quality": "Which sound is better by itself: clearer, more natural, with less noise?",
    "video quality": "Which picture is better by itself: sharper, more natural, with steadier motion?",
    "audio-video alignment": "In which do sound and picture belong together better, all in all?",
    "semantic alignment": "In which do the things that you see and the things that you hear match better?",
    "temporal alignment": "In which are sounds heard more exactly at the moment when what makes them is seen?",
}


@dataclass(frozen=True)
class Questions:
    """What a study asks of each pair, and how large it is.

    texts: the questions by the short names under which they are tallied.
    pairs: of videos, each with a sample of either method. voters: who answer about each pair.
    """

    texts: Mapping[str, str]
    pairs: int = 20
    voters: int = 5


def _worded(*names: str) -> Mapping[str, str]:
    return {name: WORDINGS[name] for name in names}


_ALIGNMENT = ("audio-video alignment", "semantic alignment", "temporal alignment")
SETS = {
    "r-flav": Questions(_worded("picture", "sound", "synchrony", "motion")),
    "av-link": Questions(_worded("audio quality", *_ALIGNMENT), pairs=50),
    "av-link-a2v": Questions(_worded("video quality", *_ALIGNMENT), pairs=50),
}

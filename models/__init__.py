"""The models, all behind the same door; the codecs of pictures, and the encoders of text.

    model = load_model("runs/demo/export")            # of the system that its config.json names
    dv, da = model(v, a, t, y=None, t_a=None, y_a=None, text=None)

`model.rolls` tells whether diffusion/rolling.py makes streams with it, or diffusion/clip.py whole clips. A new system
is one class and one line in MODELS.
"""

import json
from pathlib import Path

from models.avlink import AVLink
from models.checkpoint import Pretrained
from models.flav import FLAV, FLAV_presets
from models.syncflow import SyncFlow
from models.tabled import TabledFLAV

MODELS: dict[str, type[Pretrained]] = {kind.system: kind for kind in (FLAV, SyncFlow, AVLink)}


def model_class(folder: Path) -> type[Pretrained]:
    """The class of the model in a folder, by the system that its config.json names; the released ones name none.

    Raises:
        ValueError: there is no such system.
    """
    system = json.loads((Path(folder) / "config.json").read_text()).get("system", FLAV.system)
    if system not in MODELS:
        raise ValueError(f"{folder} holds a model of system {system!r:.40}, unknown to this version; it knows "
                         f"{', '.join(MODELS)}")  # fmt: skip
    return MODELS[system]


def load_model(folder: str | Path) -> Pretrained:
    """The model in a local folder."""
    return model_class(Path(folder)).from_pretrained(folder)


def model_of_preset(preset: str) -> type[Pretrained]:
    """The class that a preset belongs to.

    Raises:
        ValueError: there is no such preset.
    """
    presets = {name: kind for kind in MODELS.values() for name in kind.presets}
    if preset not in presets:
        raise ValueError(f"--model {preset} is unknown; choose one of {', '.join(presets)}")
    return presets[preset]


__all__ = [
    "FLAV",
    "MODELS",
    "AVLink",
    "FLAV_presets",
    "SyncFlow",
    "TabledFLAV",
    "load_model",
    "model_class",
    "model_of_preset",
]

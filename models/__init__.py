"""The model and the frame codecs."""

from models.flav import FLAV, FLAV_presets
from models.tabled import TabledFLAV

__all__ = ["FLAV", "FLAV_presets", "TabledFLAV"]

"""The model and the frame codecs."""

from models.flav import FLAV, FLAV_presets

__all__ = ["FLAV", "FLAV_presets"]

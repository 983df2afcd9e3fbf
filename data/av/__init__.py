"""Media files in and out: the only package that imports PyAV."""

from data.av.mux import mux
from data.av.read import (
    AudioInfo,
    Channels,
    Gap,
    MediaError,
    MediaInfo,
    grid_length,
    iter_audio,
    iter_frames,
    probe,
    probe_audio,
    read_audio,
    read_frames,
    select_frames,
)
from data.av.write import PRESETS, Writer, replace_older, samples_before, to_int16, write_clip

__all__ = [
    "PRESETS",
    "AudioInfo",
    "Channels",
    "Gap",
    "MediaError",
    "MediaInfo",
    "Writer",
    "grid_length",
    "iter_audio",
    "iter_frames",
    "mux",
    "probe",
    "probe_audio",
    "read_audio",
    "read_frames",
    "replace_older",
    "samples_before",
    "select_frames",
    "to_int16",
    "write_clip",
]

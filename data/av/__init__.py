"""Media files in and out: the only package that imports PyAV."""

from data.av.anew import encode_film
from data.av.bounds import check_bounds
from data.av.grid import grid_length, select_frames
from data.av.media import MediaError
from data.av.mux import mux
from data.av.pictures import iter_frames, read_frames
from data.av.probe import AudioInfo, Gap, MediaInfo, probe, probe_audio
from data.av.sound import Channels, iter_audio, read_audio
from data.av.write import PRESETS, Writer, replace_older, samples_before, to_int16, write_clip

__all__ = [
    "PRESETS",
    "AudioInfo",
    "Channels",
    "Gap",
    "MediaError",
    "MediaInfo",
    "Writer",
    "check_bounds",
    "encode_film",
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

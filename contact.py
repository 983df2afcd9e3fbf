"""Contact sheet of clips: the frames of each above the log-mel spectrogram of its sound, on one time axis.

python contact.py CLIP.mp4 [MORE.mp4 ...] --out sheet.png
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from data.folders import printable

if TYPE_CHECKING:  # torch and matplotlib load after the arguments are known to be good
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

WIDEST, THUMBNAIL = 14.0, 1.2  # inches: at most of the time axis, of one frame
THUMBNAILS = 32  # at most so many frames of a clip side by side
TITLE, GAP, SPECTROGRAM = 0.36, 0.04, 1.5  # inches of height, in each clip's row
LEFT, RIGHT, FOOT = 0.7, 0.2, 0.5  # inches around the rows, for the labels
DPI = 120
PAGE = "<!doctype html><!-- live page of films -->"  # how a live page begins, by which it knows its like
TICKS = {500: "500 Hz", 1000: "1 kHz", 2000: "2 kHz", 4000: "4 kHz"}


@dataclass(frozen=True)
class Clip:
    """What one row of a contact sheet shows."""

    frames: Tensor  # uint8 (T,H,W,3)
    wave: Tensor  # (N,) in [-1, 1]
    fps: float = 10
    sample_rate: int = 16000
    title: str | None = None
    begin: float = 0.0  # s, on the axis

    @property
    def seconds(self) -> float:
        return max(len(self.frames) / self.fps, len(self.wave) / self.sample_rate)

    @property
    def every(self) -> int:
        """Step n between the frames that are shown."""
        return math.ceil(len(self.frames) / THUMBNAILS)


def contact_sheet(
    frames: Tensor, wave: Tensor, fps: float, sample_rate: int, path: Path, title: str | None = None
) -> None:
    """Draw one clip as a PNG: its frames, uint8 (T,H,W,3), above the spectrogram of its wave (N,)."""
    contact_sheets([Clip(frames, wave, fps, sample_rate, title)], path)


def contact_sheets(clips: Sequence[Clip], path: Path) -> None:
    """Draw clips below each other as one PNG, all on the same time scale; the file appears by atomic rename."""
    figure, path = draw(clips), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw(clips: Sequence[Clip]) -> Figure:
    """The figure of a contact sheet: for each clip an axes with its frames and below it one with its spectrogram.

    The x axis of each is time in seconds, from the begin of its clip, for as long as the longest clip lasts. Frame k
    covers exactly k/fps to (k+1)/fps; of a long clip every n-th frame is shown, from its own time until the next one
    shown.

    Raises:
        ValueError: there is no clip, or one has no frames or too little sound for a spectrogram.
    """
    from matplotlib.figure import Figure

    if not clips or not all(len(clip.frames) for clip in clips):
        raise ValueError(
            f"there are {len(clips)} clips, with {[len(clip.frames) for clip in clips]} frames; "
            f"give at least one clip and at least one frame of each"
        )
    seconds = max(clip.seconds for clip in clips)
    width = min(WIDEST, THUMBNAIL * max(seconds * clip.fps / clip.every for clip in clips))
    heights = [inches for clip in clips for inches in (TITLE, strip_height(clip, width / seconds), GAP, SPECTROGRAM)]
    full_width, full_height = LEFT + width + RIGHT, sum(heights) + FOOT
    figure = Figure((full_width, full_height), dpi=DPI)
    grid = figure.add_gridspec(
        len(heights),
        1,
        height_ratios=heights,
        hspace=0,
        top=1,
        bottom=FOOT / full_height,
        left=LEFT / full_width,
        right=1 - RIGHT / full_width,
    )
    last, one_axis = len(clips) - 1, len({clip.begin for clip in clips}) == 1
    for row, clip in enumerate(clips):
        strip, spectrogram = (figure.add_subplot(grid[4 * row + place]) for place in (1, 3))
        draw_frames(strip, clip)
        draw_spectrogram(spectrogram, clip)
        for axes in (strip, spectrogram):
            axes.set_xlim(clip.begin, clip.begin + seconds)
        spectrogram.tick_params(labelbottom=row == last or not one_axis)
    spectrogram.set_xlabel("seconds")
    return figure


def strip_height(clip: Clip, inches_per_second: float) -> float:
    """Height in inches at which the pixels of the frames are square."""
    height, width = clip.frames.shape[1:3]
    return clip.every / clip.fps * inches_per_second * height / width


def draw_frames(axes: Axes, clip: Clip) -> None:
    """Show every n-th frame from its own time until the next one shown; the last is cut where the clip ends."""
    count, columns = len(clip.frames), clip.frames.shape[2]
    for k in range(0, count, clip.every):
        end = min(k + clip.every, count)
        picture = clip.frames[k, :, : math.ceil(columns * (end - k) / clip.every)]
        extent = (clip.begin + k / clip.fps, clip.begin + end / clip.fps, 0, 1)
        axes.imshow(picture.numpy(), extent=extent, aspect="auto")
        axes.axvline(extent[1], color="white", linewidth=1)
    axes.set(ylim=(0, 1), xticks=[], yticks=[])
    axes.set_title(printable(clip.title or ""), loc="left", fontsize=10, parse_math=False)  # names have any letters
    axes.spines[:].set_visible(False)


def draw_spectrogram(axes: Axes, clip: Clip) -> None:
    """Show the log-mel spectrogram, with a faint line where each frame of the picture begins."""
    from vocoder.mel import CEILING, FLOOR, HOP, log_mel, slaney_mel

    mel = log_mel(clip.wave, sample_rate=clip.sample_rate)  # (M,F)
    top = slaney_mel(clip.sample_rate / 2)
    axes.imshow(
        mel.numpy(),
        extent=(clip.begin, clip.begin + mel.shape[1] * HOP / clip.sample_rate, 0, top),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=math.log(FLOOR),
        vmax=math.log(CEILING),
    )
    for k in range(0, len(clip.frames), clip.every):
        axes.axvline(clip.begin + k / clip.fps, color="white", linewidth=0.5, alpha=0.25)
    axes.set_yticks(
        [slaney_mel(hz) for hz in TICKS if hz < clip.sample_rate / 2],
        [name for hz, name in TICKS.items() if hz < clip.sample_rate / 2],
    )
    axes.set_ylim(0, top)
    axes.tick_params(labelsize=8, labelbottom=False)
    axes.spines[:].set_visible(False)


def read_clip(path: Path, fps: float) -> Clip:
    """A media file at `fps` frames a second, its frames thinned out to the size of a thumbnail."""
    import torch

    from data.av import iter_frames, read_audio

    frames = torch.stack([thin_out(frame) for frame in iter_frames(path, fps)])
    return Clip(frames, read_audio(path, 0, round(len(frames) * 16000 / fps)), fps, title=path.name)


def in_terminal(frame: Tensor, wave: Tensor, columns: int = 40) -> str:
    """A frame, uint8 (H,W,3), in half blocks of 24-bit colour, and the loudness of its sound as a bar."""
    step = max(1, frame.shape[1] // columns)
    pixels = frame[::step, ::step].cpu().tolist()
    rows = [
        "".join("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower) for upper, lower in zip(*pair)) + "\x1b[0m"
        for pair in zip(pixels[::2], pixels[1::2])
    ]
    loudness = wave.square().mean().sqrt().item() if len(wave) else 0.0
    return "\n".join([*rows, "♪ " + "█" * round(columns * min(1.0, 2 * loudness))])


class LivePage:
    """A page that shows the last seconds of each film: PATH and a .png beside it.

    It renews itself until its `with` block is left.

    Args:
        path: of the page, as `check_page` wants it. every: seconds between pictures.
    """

    def __init__(self, path: Path, fps: float, sample_rate: int, every: float = 2.0):
        self.path, self.fps, self.sample_rate, self.every = path, fps, sample_rate, every
        self.films: dict[str, LastSeconds] = {}
        self.drawn = -math.inf

    def show(self, name: str, first: int, frames: Tensor, wave: Tensor) -> None:
        """Take in frames of a film, uint8 (t,H,W,3), from index `first` on, and their sound."""
        self.films.setdefault(name, LastSeconds()).take(first, frames, wave)
        if time.monotonic() - self.drawn >= self.every:
            refresh = f'<meta http-equiv="refresh" content="{self.every:g}">'
            self._write(refresh, f"as of {time.strftime('%X')}")
            self.drawn = time.monotonic()

    def __enter__(self) -> LivePage:
        return self

    def __exit__(self, kind, *_) -> None:
        """Show how the films ended, once and for all."""
        with suppress(OSError) if kind else nullcontext():  # what ended them is the error to tell
            if self.films:
                self._write("", f"ended at {time.strftime('%X')}")

    def _write(self, head: str, told: str) -> None:
        picture = self.path.with_suffix(".png")
        contact_sheets([film.clip(name, self.fps, self.sample_rate) for name, film in self.films.items()], picture)
        image = f'<img src="{picture.name}" style="max-width: 100%">'
        cli.write_text(self.path, f'{PAGE}<meta charset="utf-8">{head}<title>live</title><p>{told}</p>{image}\n')


class LastSeconds:
    """The newest frames of a film, as many as a sheet shows."""

    def __init__(self):
        self.frames, self.sounds = deque(maxlen=THUMBNAILS), deque(maxlen=THUMBNAILS)
        self.end = 0  # index of the next frame

    def take(self, first: int, frames: Tensor, wave: Tensor) -> None:
        """Append frames, uint8 (t,H,W,3), from index `first` on, and their sound."""
        self.frames.extend(frames.cpu())
        self.sounds.extend(wave.cpu().unflatten(0, (len(frames), -1)))
        self.end = first + len(frames)

    def clip(self, name: str, fps: float, sample_rate: int) -> Clip:
        """As a row of a contact sheet, on the film's own time."""
        import torch

        frames, wave = torch.stack(list(self.frames)), torch.cat(list(self.sounds))
        return Clip(frames, wave, fps, sample_rate, name, begin=(self.end - len(frames)) / fps)


def check_page(path: Path) -> None:
    """Refuse a path at which a live page would replace anything but an older live page.

    Raises:
        ValueError: it does not end in .html, or it or the picture beside it is another's.
    """
    if path.suffix != ".html":
        raise ValueError(f"--html is {path}, but a page is HTML; give a name that ends in .html")
    ours = path.is_file() and path.read_bytes().startswith(PAGE.encode())
    for file in (path, path.with_suffix(".png")):
        if file.exists() and not ours:
            raise ValueError(f"{file} exists and belongs to no live page; give --html another name")


def thin_out(frame: Tensor) -> Tensor:
    """Every n-th pixel of a frame (H,W,3), as many as a thumbnail can show."""
    step = max(1, round(frame.shape[1] / (THUMBNAIL * DPI)))
    return frame[::step, ::step].clone()


def main(argv: list[str] | None = None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("clips", type=Path, nargs="+", metavar="CLIP.mp4", help="media files with picture and sound")
    p.add_argument("--out", type=Path, default=Path("contact.png"), help="the picture to write, a .png")
    p.add_argument("--fps", type=float, default=10, help="frames a second to read from the clips")
    args = p.parse_args(argv)
    if args.out.suffix != ".png":
        p.error(f"--out is {args.out}, but the sheet is a PNG; give a name that ends in .png")
    if args.fps <= 0:
        p.error(f"--fps is {args.fps:g}; give a positive rate")
    contact_sheets([read_clip(path, args.fps) for path in args.clips], args.out)
    print(f"{args.out}: {len(args.clips)} clips")


if __name__ == "__main__":
    cli.run(main)

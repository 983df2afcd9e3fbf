"""The contact sheet: picture and sound of one instant lie at the same place of one time axis."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import cli
from contact import THUMBNAILS, Clip, LivePage, check_page, contact_sheet, contact_sheets, draw, main

RATE = 16000


def flash_and_click(frames: int, at: int, fps: float = 10, size: int = 32) -> Clip:
    """Black frames and silence, but frame `at` is white and a click sounds in its middle."""
    picture = torch.zeros(frames, size, size, 3, dtype=torch.uint8)
    picture[at] = 255
    wave = torch.zeros(round(frames * RATE / fps))
    wave[round((at + 0.5) * RATE / fps)] = 1.0
    return Clip(picture, wave, fps)


def white_span(axes):
    """(begin, end) on the x axis of the frames that are white."""
    spans = [image.get_extent()[:2] for image in axes.images if np.asarray(image.get_array()).min() == 255]
    return min(span[0] for span in spans), max(span[1] for span in spans)


def loudest(axes):
    """Place on the x axis of the loudest mel frame (the middle of the stretch that is equally loud)."""
    mel, (begin, end, *_) = np.asarray(axes.images[0].get_array()), axes.images[0].get_extent()
    loudness = mel.sum(0)
    return begin + (np.flatnonzero(loudness >= loudness.max() - 1e-3).mean() + 0.5) / len(loudness) * (end - begin)


def x_in_figure(axes, x):
    """Where x lies in the figure, as a fraction of its width."""
    return axes.figure.transFigure.inverted().transform(axes.transData.transform((x, 0)))[0]


@pytest.mark.parametrize("fps", [10, 25])
def test_flash_and_click_of_one_instant_share_their_place(fps):
    strip, spectrogram = draw([flash_and_click(16, at=11, fps=fps)]).axes
    begin, end = white_span(strip)
    assert (begin, end) == (11 / fps, 12 / fps)
    assert loudest(spectrogram) == pytest.approx((begin + end) / 2, abs=0.006)
    assert x_in_figure(strip, begin) == pytest.approx(x_in_figure(spectrogram, begin), abs=1e-9)


def test_all_rows_share_one_time_scale_though_their_clips_differ_in_length():
    figure = draw([flash_and_click(16, at=3), flash_and_click(8, at=3)])
    places = {round(x_in_figure(axes, 0.3), 9) for axes in figure.axes}
    assert len(figure.axes) == 4 and len(places) == 1


def test_long_clip_shows_every_nth_frame_from_its_own_time():
    strip, spectrogram = draw([flash_and_click(70, at=33)]).axes
    assert len(strip.images) == 24  # every third
    assert white_span(strip) == (3.3, pytest.approx(3.6))
    assert strip.images[-1].get_extent()[1] == spectrogram.get_xlim()[1] == 7.0  # the last is cut at the clip's end


@pytest.mark.parametrize("frames, width", [(5, 32), (32, 48), (70, 20)])
def test_pixels_of_frames_are_square(frames, width):
    clip = flash_and_click(frames, at=0)
    clip = Clip(clip.frames[:, :, :1].expand(-1, -1, width, -1), clip.wave)
    strip = draw([clip]).axes[0]
    box, (begin, end, *_) = strip.get_window_extent(), strip.images[0].get_extent()
    shown = box.width * (end - begin) / clip.seconds
    assert shown / box.height == pytest.approx(width / 32, rel=1e-3)


def test_sheet_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    clip = flash_and_click(4, at=1)
    contact_sheet(clip.frames, clip.wave, 10, RATE, tmp_path / "new" / "sheet.png", title="one clip")
    assert imread(tmp_path / "new" / "sheet.png").std() > 0.1
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        contact_sheets([clip], tmp_path / "new" / "bad.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


def half_a_file(figure, path, **_):
    path.write_bytes(b"PNG")
    raise OSError("disk full")


def test_sheet_of_nothing_or_of_too_little_sound_is_refused():
    with pytest.raises(ValueError, match="there are 0 clips"):
        draw([])
    clip = flash_and_click(4, at=1)
    with pytest.raises(ValueError, match="log-mel needs at least"):
        draw([clip, Clip(clip.frames, clip.wave[:100])])


def test_axis_of_a_clip_begins_where_the_clip_does():
    late = flash_and_click(16, at=11)
    strip, spectrogram = draw([Clip(late.frames, late.wave, begin=48.0), flash_and_click(8, at=3)]).axes[:2]
    assert white_span(strip) == pytest.approx((49.1, 49.2)) and strip.get_xlim() == spectrogram.get_xlim() == (48, 49.6)
    assert loudest(spectrogram) == pytest.approx(49.15, abs=0.006)
    assert spectrogram.xaxis.get_tick_params()["labelbottom"]  # the clip below has another axis


def test_page_shows_the_last_seconds_at_the_films_own_time_until_the_film_ends(tmp_path, monkeypatch):
    drawn, clip = [], flash_and_click(40, at=0)
    monkeypatch.setattr("contact.contact_sheets", lambda clips, path: drawn.append(clips))
    with LivePage(tmp_path / "page.html", 10, RATE, every=0) as page:
        for first in range(0, 40, 10):
            page.show("a film", 480 + first, clip.frames[first:][:10], clip.wave[1600 * first :][:16000])
            assert "refresh" in (tmp_path / "page.html").read_text()
    (last,) = drawn[-1]
    assert len(drawn) == 5 and drawn[0][0].begin == 48.0
    assert len(last.frames) == THUMBNAILS and last.begin == pytest.approx((520 - THUMBNAILS) / 10)
    told = (tmp_path / "page.html").read_text()
    assert "ended at" in told and "refresh" not in told
    check_page(tmp_path / "page.html")  # it may be replaced by the next one


def test_command_draws_real_files(tmp_path, capsys):
    from data.av import write_clip

    for name, at in (("a.mp4", 2), ("b.mp4", 5)):
        clip = flash_and_click(8, at)
        write_clip(tmp_path / name, clip.frames, clip.wave)
    main([str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "--out", str(tmp_path / "sheet.png")])
    assert imread(tmp_path / "sheet.png").ndim == 3
    assert capsys.readouterr().out == f"{tmp_path / 'sheet.png'}: 2 clips\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.mp4"], "missing.mp4 does not exist"),
        (["a.mp4", "--out", "sheet.jpg"], "give a name that ends in .png"),
        (["a.mp4", "--fps", "0"], "give a positive rate"),
    ],
)
def test_mistakes_end_in_one_sentence_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: main(arguments))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_help_imports_neither_torch_nor_matplotlib():
    check = "import sys, contact; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_titles_may_have_any_letters(tmp_path):
    """Names of files become titles: no letter is a formula, and bytes that are not UTF-8 are shown as such."""
    figure = draw([replace(flash_and_click(4, 1), title=os.fsdecode(b"caf\xe9 $\\frac$"))])
    title = figure.axes[0].get_title(loc="left")
    figure.savefig(tmp_path / "sheet.png", dpi=20)
    assert title == r"caf\xe9 $\frac$" and (tmp_path / "sheet.png").stat().st_size

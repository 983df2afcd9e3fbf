"""The live page in trouble: what was changed is never lost, what fails harms nothing else, nothing is left behind."""

import asyncio
import json
import random
import time
from argparse import Namespace

import pytest
import torch

import live
from pipeline import StreamState
from pipeline.film import RealClip
from serving.engine import FAILURES
from serving.film import Piece
from serving.given import FADE, Given
from serving.hub import ANSWERS, KINDS, RECENT, UNTOLD, Hub, Item, Viewer
from serving.uploads import Uploads, shown_name
from tests.given import NAMES, WINDOW, write_sound, write_video
from tests.serving.desks import Server, desk, of_type, shown, until
from tests.serving.test_desk import frames_of
from tests.serving.test_server import ask, fragment, order

BLUE = NAMES.index("blue")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def relabelled():
    """A desk on whose film blue was asked for after the last frame that was shown."""
    here = desk()
    shown(here, 6)
    here.tick()
    here.obey({"do": "label", "film": 1, "to": "blue"})
    here.obey({"do": "seed", "film": 1, "to": 77})
    return here


def test_what_was_asked_for_since_the_last_frame_is_in_a_state_a_fork_and_a_model_that_comes_back(tmp_path):
    here = relabelled()
    here.save(1, tmp_path / "state")
    saved = StreamState.load(tmp_path / "state")[0]
    assert saved.window.y.eq(BLUE).all() and int(saved.window.seed) == 77
    fork = here.obey({"do": "fork", "film": 1, "seed": 5})["film"]
    assert here.streams.state(str(fork)).window.y.eq(BLUE).all()
    here.release()
    here.restore()
    assert here.streams.state("1").window.y.eq(BLUE).all() and int(here.streams.state("1").window.seed) == 77
    undisturbed = relabelled()
    for one in (here, undisturbed):
        shown(one, 8)
    assert torch.allclose(frames_of(here.films[1])[1], frames_of(undisturbed.films[1])[1], atol=1e-9)


def test_a_film_that_failed_takes_nothing_from_the_others(tmp_path):
    here, sound = desk(), write_sound(tmp_path / "s.wav", torch.ones(64000) * 0.1, 16000, "pcm_s16le")
    shown(here, 5)
    here.obey({"do": "fork", "film": 1})
    here.obey({"do": "give", "film": 1, "given": Given("sound", sound, here.pipe.codec, WINDOW, name="s.wav")})
    here.recover(close=False)
    assert set(here.films) == {1, 2}
    here.recover(close=True)
    assert set(here.films) == {1} and here.streams.rows["1"].given
    before = here.films[1].next
    shown(here, 6)
    assert here.films[1].given and here.films[1].next == before + 6
    _, wave = frames_of(here.films[1], here.films[1].given.start + 1)
    assert len(wave) >= 1600 and wave.mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_picture_ends_where_it_is_damaged_and_harms_no_film(tmp_path, seed):
    data = bytearray(write_video(tmp_path / "whole.mp4", 60, height=96, width=128).read_bytes())
    draw, here = random.Random(seed), desk()
    begin = data.index(b"mdat") + len(data) // 3
    data[begin : begin + 3000] = bytes(draw.randrange(256) for _ in range(3000))
    (tmp_path / "bad.mp4").write_bytes(data)
    shown(here, 5)
    here.obey({"do": "fork", "film": 1})
    given = Given("picture", tmp_path / "bad.mp4", here.pipe.codec, WINDOW, name="bad.mp4")
    here.obey({"do": "give", "film": 1, "given": given})
    shown(here, 70)
    film = here.films[1]
    assert set(here.films) == {1, 2} and film.given is None and film.next == 75
    assert film.history.now.told in ("the picture of bad.mp4 cannot be read any further", "the picture has ended")


def test_what_is_read_no_further_is_told_and_the_film_goes_on(tmp_path):
    here, path = desk(), write_video(tmp_path / "clip.mp4", 40)
    shown(here, 5)
    given = Given("picture", path, here.pipe.codec, WINDOW, name="clip.mp4")
    read = given._source

    def breaks(number):
        if number >= 10:
            raise OSError("gone")
        return read(number)

    given._source = breaks
    start = here.obey({"do": "give", "film": 1, "given": given})["frame"]
    shown(here, 20)
    turn = here.films[1].history.now
    assert (turn.told, turn.frame) == ("the picture of clip.mp4 cannot be read any further", start + 10)


def test_a_clip_that_is_gone_leaves_its_film_as_the_model_has_it(tmp_path):
    here, path = desk(), write_video(tmp_path / "clip.mp4", 12)
    shown(here, 3)
    real = RealClip.open(path, here.pipe.codec)
    film = here.obey({"do": "extend", "real": real, "name": "clip.mp4"})["film"]
    path.unlink()
    shown(here, 10)
    assert here.films[film].next > 12 and here.films[film].real is None


def test_a_sound_that_is_left_fades_out(tmp_path):
    here, path = desk(), write_sound(tmp_path / "loud.wav", torch.full((64000,), 0.9), 16000, "pcm_s16le")
    shown(here, 5)
    here.obey({"do": "give", "film": 1, "given": Given("sound", path, here.pipe.codec, WINDOW, name="loud.wav")})
    shown(here, 8)
    left = here.films[1].next
    here.obey({"do": "joint", "film": 1})
    shown(here, 3)
    _, wave = frames_of(here.films[1], left - 1)
    made = wave[1600 + 320 :].diff().abs().max()
    assert wave[1599] == pytest.approx(0.9, abs=1e-3) and wave[1600] == pytest.approx(0.9, abs=0.01)
    assert wave[1600 : 1600 + round(FADE * 16000)].diff().abs().max() < made + 2 / (FADE * 16000)


def test_a_sound_fades_in_where_it_begins_and_out_where_it_ends(tmp_path):
    path = write_sound(tmp_path / "loud.wav", torch.full((8 * 1600,), 0.9), 16000, "pcm_s16le")
    given = Given("sound", path, desk().pipe.codec, WINDOW, name="loud.wav")
    given.start = 3
    pictures, silence, fade = torch.zeros(14, 16, 16, 3, dtype=torch.uint8), torch.zeros(14 * 1600), round(FADE * 16000)
    _, wave = given.shown(0, pictures, silence)
    begin, end = 3 * 1600, 11 * 1600
    assert not wave[: begin + 1].any() and not wave[end:].any()
    assert wave[begin + fade : end - fade].sub(0.9).abs().max() < 1e-3
    assert wave.diff().abs().max() < 1.1 / fade
    assert (wave[begin : begin + fade].diff() > 0).all() and (wave[end - fade : end].diff() < 0).all()


def test_a_fork_from_before_the_first_place_begins_at_it():
    here = desk()
    shown(here, 12)
    film = here.obey({"do": "fork", "film": 1, "at": 2})["film"]
    assert here.films[film].first == 5
    shown(here, 2)
    here.obey({"do": "fork", "film": film, "at": 5})  # no place of its own yet: from where it stands


def test_a_state_that_is_opened_and_given_another_seed_is_exported_so(tmp_path):
    here = desk()
    shown(here, 6)
    here.save(1, tmp_path / "state")
    film = here.obey({"do": "open", "path": tmp_path / "state", "name": "mine"})["film"]
    assert "--resume STATE" in here.films[film].history.commands("EXPORT", 20)
    here.obey({"do": "seed", "film": film, "to": 9})
    commands = here.films[film].history.commands("EXPORT", 20)
    assert "--fork STATE --seed 9" in commands and "--resume" not in commands
    fork = here.obey({"do": "fork", "film": film, "seed": 3})["film"]
    assert "--fork STATE --seed 9" in here.films[fork].history.commands("EXPORT", 20) or here.films[fork].first == 6


def test_ctrl_c_saves_without_a_model_over_no_older_state_and_says_the_steps(tmp_path, capsys):
    args = Namespace(results_dir=tmp_path, model_ckpt="EXPORT", negative_prompt=None,
                     **dict.fromkeys(live.AS_GIVEN))  # fmt: skip
    (tmp_path / "live_1.state.safetensors").write_text("of an earlier film")
    here = desk(steps=1)
    shown(here, 4)
    here.obey({"do": "steps", "to": 4})
    here.release()
    here.restore = None  # the model would not load
    live.save(args, here)
    said = capsys.readouterr().out
    assert "--num-timesteps 4 --resume" in said and "live_1_2.state.safetensors" in said
    assert (tmp_path / "live_1.state.safetensors").read_text() == "of an earlier film"
    assert StreamState.load(tmp_path / "live_1_2.state.safetensors")[0].frame == 4


def test_one_who_comes_gets_every_film():
    async def joined():
        hub = Hub(lambda *counts: None)
        hub.open()
        for film in (1, 2, 3):
            hub._openings[film] = [Item("told", "{}"), Item("opening", b"")]
            hub._recent[film] = [Item("fragment", bytes([film])) for _ in range(RECENT)]
        viewer = Viewer(None)
        hub.join(viewer)
        return viewer

    viewer = asyncio.run(joined())
    data = [item.data[0] for item in viewer._waiting if item.kind == "fragment"]
    assert not viewer.dropped and [data.count(film) for film in (1, 2, 3)] == [RECENT] * 3


def test_one_who_watches_three_films_may_leave_three_times_as_many_fragments_untold():
    class Page:
        sent = 0

        async def send_text(self, text):
            pass

        async def send_bytes(self, data):
            self.sent += data[0] == KINDS["fragment"]

    async def watched():
        hub, viewer = Hub(lambda *counts: None), Viewer(Page())
        hub.join(viewer)
        sending = asyncio.create_task(viewer.send())
        for film in (1, 2, 3):
            hub._spread([Piece("opening", film, 0, b"avcC\x01\x64\x00\x0a")])
        for frame in range(UNTOLD + 5):
            hub._spread([Piece("fragment", film, frame, b"") for film in (1, 2, 3)])
            await asyncio.sleep(0)
        sending.cancel()
        return viewer.websocket.sent

    assert asyncio.run(watched()) == 3 * UNTOLD


def test_a_model_that_always_fails_pauses_and_is_told_so_a_few_times(server):
    with server.connect() as websocket:
        until(websocket, lambda e: fragment(e) and e[2] > 4)

        def break_it(desk):
            desk.tick = fails

        def fails():
            raise RuntimeError("the device /dev/x is lost")

        server.engine.ask(break_it).result()
        told = [until(websocket, of_type("failed"))["text"] for _ in range(2)]
        assert told == ["film 1 was closed, for it could not go on (the device is lost)",
                        f"the model is paused, for it failed {FAILURES} times (the device is lost)"]  # fmt: skip
        until(websocket, lambda e: isinstance(e, dict) and e["type"] == "standing" and e["paused"])
        time.sleep(0.5)
        assert server.engine.desk._numbers == 2
        server.engine.ask(lambda desk: delattr(desk, "tick")).result()
        assert order(websocket, do="play")["type"] == "done"
        until(websocket, fragment)


def test_failures_with_frames_between_them_cost_nothing(server):
    def break_once(desk):
        def fails():
            del desk.tick
            raise RuntimeError("once")

        desk.tick = fails

    with server.connect() as websocket:
        for _ in range(FAILURES):
            frame = until(websocket, fragment)[2]
            server.engine.ask(break_once).result()
            until(websocket, lambda e, frame=frame: fragment(e) and e[2] > frame + 2)
        assert not server.engine._paused and server.engine.desk._numbers == 1


def test_what_nobody_foresaw_is_told_without_its_words(server):
    def breaks(**_):
        raise RuntimeError("in /home/someone\nat line 3")

    with server.connect() as websocket:
        until(websocket, fragment)
        server.engine.desk._do_seed = breaks
        assert order(websocket, do="seed", film=1, to=3)["text"] == "it could not be done; try again"
        until(websocket, fragment)


def test_memory_stays_released_for_what_needs_no_model(server, tmp_path):
    with server.connect() as websocket:
        until(websocket, lambda e: fragment(e) and e[2] > 6)
        order(websocket, do="release")
        for path in ("films/1/record?from=0", "films/1/state", "films/1/commands"):
            assert ask(server, path)[0] == 200
        assert ask(server, "upload/clip?film=1&name=x", b"no film")[0] == 400
        assert order(websocket, do="pause")["type"] == "done"
        assert server.engine.desk.pipe is None and server.engine._released
        order(websocket, do="play")
        until(websocket, fragment)


def test_a_file_that_names_files_is_refused(tmp_path):
    uploads = Uploads()
    try:
        one, list_of = uploads.path(), uploads.path()
        one.write_bytes(write_video(tmp_path / "clip.mp4", 12).read_bytes())
        uploads.examine(one, "clip")
        list_of.write_text(f"ffconcat version 1.0\nfile {one.name}\n")
        with pytest.raises(ValueError, match="cannot be read"):
            uploads.examine(list_of, "clip")
    finally:
        uploads.close()


@pytest.mark.parametrize(
    "name, shown",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\mine\\a.mp4", "a.mp4"),
        ("a\0b\n", "ab"),
        ("x" * 99, "x" * 60),
        ("/", "the file"),
    ],
)
def test_of_the_name_of_a_file_only_the_end_is_shown(name, shown):
    assert shown_name(name) == shown


def test_part_of_a_file_is_not_sent_and_nothing_is_left(server):
    with server.connect() as websocket:
        until(websocket, lambda e: fragment(e) and e[2] > 4)
        for part in ("foo", "bytes=999999999-", "bytes=0-10"):
            assert ask(server, "films/1/state", Range=part)[0] == 200
        for _ in range(100):
            if not list(server.uploads.folder.iterdir()):
                break
            time.sleep(0.05)
        assert not list(server.uploads.folder.iterdir())


def test_one_who_asks_and_does_not_read_is_given_up():
    viewer = Viewer(None)
    for _ in range(ANSWERS):
        viewer.push(Item("told", json.dumps({})))
    assert not viewer.lost
    viewer.push(Item("told", "{}"))
    assert viewer.lost

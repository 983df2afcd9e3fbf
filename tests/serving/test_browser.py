"""The live page in a real Chromium: it plays, obeys, forks, keeps, and leaves nothing behind."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.chromium import chromium
from benchmarks.live_page import told, watch
from data.av import probe, probe_audio
from pipeline import AVPipeline, StreamState
from serving.desk import Desk, Settings
from tests.given import tiny
from tests.serving.browser import PATIENCE, needs_chromium, opened, wait
from tests.serving.desks import Server, desk, shown

pytestmark = [pytest.mark.browser, needs_chromium]
ROOT = Path(__file__).parents[2]
MODEL = os.environ.get("LIVE_MODEL", str(ROOT / "runs/demo/export"))  # whose classes have colours
needs_model = pytest.mark.skipif(not Path(MODEL).is_dir(), reason="no model of the demo, and none named by LIVE_MODEL")


@pytest.fixture(scope="module")
def browser():
    with chromium(PATIENCE) as browser:
        yield browser


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def demo():
    """A desk on the model of `make demo`."""
    return desk(load=lambda: AVPipeline.from_pretrained(MODEL, "cpu"))


def film_at(page, film=1):
    """The film's own time in the page, and what it has decoded."""
    facts = """(film) => { const v = live.players.get(film).video;
        return [v.currentTime, v.webkitDecodedFrameCount, v.webkitAudioDecodedByteCount, performance.now()]; }"""
    return page.evaluate(facts, film)


def test_the_page_plays_and_its_controls_answer(browser, server):
    with opened(browser, server.address) as page:
        before = film_at(page)
        wait(page, f"live.players.get(1).video.currentTime > {before[0] + 2}")
        after = film_at(page)
        assert after[1] > before[1] and after[2] > before[2]
        page.get_by_role("button", name="blue").click()
        wait(page, "live.standing.films[0].label === 'blue'")
        page.keyboard.press("m")
        assert page.evaluate("live.players.get(1).video.muted")
        page.fill("#guidance", "3")
        page.keyboard.press("Enter")
        wait(page, "live.standing.guidance === 3")
        page.fill("#steps", "99")
        page.keyboard.press("Tab")
        assert "from 1 to 50" in page.text_content("#notice")
        wait(page, "live.clicks.length > 0")
        page.evaluate("document.activeElement.blur()")  # a field takes its own keys
        page.keyboard.press("e")
        wait(page, "live.command")
        assert page.evaluate("live.command").count("sample_long.py") >= 2


def test_fork_shows_two_films_and_closing_one_leaves_one(browser, server):
    with opened(browser, server.address) as page:
        page.keyboard.press("f")
        wait(page, "live.players.size === 2 && live.players.get(2).video.currentTime > 1")
        two = server.engine.desk.films[2]
        wait(page, f"live.players.get(2).video.currentTime > {two.first / 10 + 2}")
        page.get_by_role("button", name="Film 2").click()
        assert page.evaluate("live.chosen === 2 && !live.players.get(2).video.muted && live.players.get(1).video.muted")
        page.locator(".film").nth(1).get_by_role("button", name="Close").click()
        wait(page, "live.players.size === 1")


def test_snapshot_and_record_are_downloaded_and_files_go_in(browser, server, tmp_path):
    from tests.given import tone, write_sound

    with opened(browser, server.address) as page:
        wait(page, "live.players.get(1).video.currentTime > 2")
        for name, key, kind in (("state", "s", "safetensors"), ("film.mp4", "r", "mp4")):
            with page.expect_download() as download:
                page.keyboard.press(key)
            download.value.save_as(tmp_path / name)
            assert re.fullmatch(rf"live_1_(from|\d{{6}}_to)_\d{{6}}\.(\w+\.)?{kind}", download.value.suggested_filename)
        assert StreamState.load(tmp_path / "state")[0].frame > 20
        film = tmp_path / "film.mp4"
        assert probe(film).frames(10) > 15 and abs(probe(film).seconds - probe_audio(film).seconds) < 0.08
        sound = write_sound(tmp_path / "tone.wav", tone(2.0), 16000, "pcm_s16le")
        page.evaluate("pick('sound', '')")
        page.set_input_files("#file", sound)
        wait(page, "document.querySelector('#given').textContent.includes('tone.wav')")
        page.evaluate("pick('state', '')")
        page.set_input_files("#file", tmp_path / "state")
        wait(page, "live.players.size === 2")


def test_a_recording_ends_where_the_viewer_is(browser, server):
    with opened(browser, server.address) as page:
        wait(page, "live.players.get(1).video.currentTime > 3")
        page.keyboard.press(" ")
        page.evaluate("goBack(chosen().edge - 1.25)")  # frame 12 is on the screen
        with page.expect_download() as download:
            page.keyboard.press("r")
        assert download.value.suggested_filename.endswith("_to_000013.mp4")


ASK_OF_NONE = """(key) => {
  live.chosen = 7;
  $("notice").hidden = true;
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
}"""  # at once: the next news of the films choose one of those that run


def test_what_the_server_refuses_is_told_and_neither_kept_nor_copied(browser, server):
    with opened(browser, server.address) as page:
        kept = []
        page.on("download", lambda download: kept.append(download))
        for key in "esr":
            page.evaluate(ASK_OF_NONE, key)
            wait(page, "!$('notice').hidden && $('notice').textContent === 'Film 7 is not running; choose one of 1.'")
        assert not kept and page.evaluate("live.command === undefined && !document.querySelector('dialog[open]')")


BACK = """([film, clicked]) => {
  const behind = () => [...live.players.values()].map((player) => player.edge - player.video.currentTime);
  goLive();
  choose(film);
  const canvas = live.players.get(clicked).canvas, box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent("click", { clientX: box.right - (2 / VIEW) * box.width }));
  const after = behind();
  step(-0.5);
  return [...after, ...behind(), live.following];
}"""  # s that both films are behind, when one is clicked 2 s before its newest frame, and 0.5 s farther back


def test_films_with_clocks_of_their_own_go_back_together(browser):
    def two():
        before = desk()
        shown(before, 4)
        early = before.films[1].state
        shown(before, 80)
        return Desk(tiny, Settings(2, 2.0), (early, before.films[1].state))

    server = Server(two)
    try:
        with opened(browser, server.address) as page:
            wait(page, "live.players.size === 2")
            wait(page, "[...live.players.values()].every((p) => p.video.currentTime > p.first / 10 + 3)")
            assert page.evaluate("live.players.get(2).edge - live.players.get(1).edge") > 5
            for chosen, clicked in ((1, 1), (1, 2), (2, 1), (2, 2)):
                *behind, following = page.evaluate(BACK, [chosen, clicked])
                assert behind == pytest.approx([2, 2, 2.5, 2.5], abs=0.05) and not following
            page.evaluate("step(2)")
            assert page.evaluate("live.following")
    finally:
        server.close()


@pytest.fixture
def prompted():
    """A page with a box for prompts, started with 1/2 steps a frame and a guidance between two tenths."""
    server = Server(lambda: desk(steps=0.5, guidance=2.25))
    server.room.facts["texts"] = True
    yield server
    server.close()


def test_numbers_that_no_field_would_take_hold_nothing_up(browser, prompted):
    with opened(browser, prompted.address) as page:
        wait(page, "$('steps').value === '0.5' && $('guidance').value === '2.25'")
        page.fill("#prompt", "green")
        page.keyboard.press("Enter")
        wait(page, "live.standing.films[0].label === 'green'")
        page.fill("#prompt", "blue")
        page.get_by_role("button", name="Show", exact=True).click()
        wait(page, "live.standing.films[0].label === 'blue'")
        page.fill("#steps", "0.3")
        page.keyboard.press("Tab")
        assert page.text_content("#notice") == "Steps a frame goes from 1 to 50, whole."
        page.fill("#prompt", "green")  # which Enter in another field is not about
        page.fill("#guidance", "2.15")
        asked = page.evaluate("live.number")
        page.keyboard.press("Enter")
        wait(page, "live.standing.guidance === 2.15")
        assert page.evaluate("live.number") == asked + 1


def test_what_is_typed_stays_until_the_film_has_another_label(browser, prompted):
    def reported():
        page.evaluate("document.activeElement.blur(); live.standing.old = true")
        wait(page, "!live.standing.old")
        return page.input_value("#prompt")

    with opened(browser, prompted.address) as page:
        wait(page, "$('prompt').value === 'red'")
        page.fill("#prompt", "a thought that is not done")
        assert reported() == "a thought that is not done"
        page.get_by_role("button", name="blue").click()
        wait(page, "$('prompt').value === 'blue'")
        page.keyboard.press("f")
        wait(page, "live.players.size === 2 && live.standing.films.length === 2")
        page.fill("#prompt", "another one")
        assert reported() == "another one"
        page.get_by_role("button", name="Film 2").click()
        assert page.input_value("#prompt") == "blue"


def test_dialogs_keep_the_keys_and_give_the_focus_back(browser, server):
    with opened(browser, server.address) as page:
        page.focus("#export")
        page.evaluate("dropped(new File(['x'], 'clip.mp4', { type: 'video/mp4' }))")
        for key in ("Tab",) * 9 + ("m", "ArrowLeft", "f"):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.matches('body, dialog *')")
        assert page.evaluate("!live.muted && live.following && !live.number")
        page.keyboard.press("Escape")
        assert page.evaluate("!$('choose').open && document.activeElement.id === 'export'")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as on plain http
        page.focus("#seed-copy")
        page.keyboard.press("Enter")
        assert page.evaluate("$('copy').open && getSelection().toString()") == "0"
        page.get_by_role("button", name="Close").last.click()
        assert page.evaluate("!$('copy').open && document.activeElement.id === 'seed-copy'")
        page.keyboard.press("m")
        assert page.evaluate("live.muted")


def test_columns_that_come_together_go_on_at_the_left_where_the_axis_ends(browser, server):
    heard = """() => {
      const { bins, columns } = live.model, player = new Player({ film: 9, first: 0, codecs: "" }), wide = 3 * columns;
      player.hear(KEPT * live.model.fps, new Uint8Array(wide * (bins + 1)).fill(255));
      return [0, columns - 1, columns, -2 * columns - 1, -2 * columns, -1]
        .map((x) => player.brush.getImageData((x + player.columns) % player.columns, 0, 1, 1).data[3]);
    }"""
    with opened(browser, server.address) as page:
        assert page.evaluate(heard) == [255, 255, 0, 0, 255, 255]


def test_a_page_with_an_old_token_says_so_and_tries_no_more(browser):
    server = Server(token="secret")
    try:
        with opened(browser, f"{server.address}?token=secret") as page:
            server.room.app.token = "another"
            page.evaluate("reconnect()")
            wait(page, "$('status-text').textContent === 'not let in: open the address that was printed'")
            page.evaluate("live.socket.last = true")
            page.wait_for_timeout(1000)
            assert page.evaluate("live.socket.last")
    finally:
        server.close()


def test_who_joins_a_film_that_is_paused_knows_its_newest_frame(browser, server):
    with opened(browser, server.address) as page:
        wait(page, "live.players.get(1).video.currentTime > 2")
        page.keyboard.press(" ")
        wait(page, "live.standing.resting")
        page.evaluate("Player.prototype.hear = () => {}; reconnect()")
        wait(page, "live.players.size === 0")
        wait(page, "live.players.size && live.players.get(1).begun && live.standing")
        assert page.evaluate("live.players.get(1).edge") == pytest.approx(server.engine.desk.films[1].next / 10)


def test_a_lost_connection_joins_the_running_film(browser, server):
    with opened(browser, server.address) as page:
        page.evaluate("reconnect()")
        wait(page, "live.players.size === 0")
        wait(page, "live.players.size && live.players.get(1).begun")
        assert server.engine.desk.films[1].next > 3


def things() -> tuple[int, int]:
    """Threads and open files of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_fifty_reloads_leave_no_thread_socket_or_file_behind(browser, server):
    with opened(browser, server.address) as page:
        page.reload()
        time.sleep(2)
        before = things()
        for _ in range(50):
            page.reload()
            wait(page, "live.players.size && live.players.get(1).begun")
        time.sleep(2)
        after = things()
        assert len(server.hub.viewers) == 1 and after[0] <= before[0] and after[1] <= before[1] + 2
    assert not list(server.uploads.folder.iterdir())


@pytest.mark.slow
def test_the_film_plays_in_real_time(browser, server):
    with opened(browser, server.address) as page:
        wait(page, "live.players.get(1).video.currentTime > 3")
        before = film_at(page)
        time.sleep(20)
        after = film_at(page)
        speed = (after[0] - before[0]) / ((after[3] - before[3]) / 1000)
        print(
            f"{speed:.3f} of real time, offset {page.evaluate('live.offset')} ms, stalls {page.evaluate('live.stalls')}"
        )
        assert 0.9 < speed < 1.1 and after[1] > before[1] + 150 and after[2] > before[2]


@pytest.mark.slow
@needs_model
def test_a_class_changes_the_colour_and_it_is_told_how_soon(browser):
    server = Server(demo)
    try:
        with opened(browser, server.address) as page:
            found = watch(page, os.getpid(), 30, 4)
            print(told(found))
            assert found["clicks"]["count"] == found["colours"]["count"] == 6
            assert found["clicks"]["p50"] <= 1.2 and found["colours"]["p50"] <= 1.5
    finally:
        server.close()


@pytest.mark.slow
@needs_model
def test_pictures_of_the_page(browser):
    """docs/live.png, and the others for whoever looks: wide and narrow, light and dark."""
    out = Path(os.environ.get("LIVE_PICTURES", "/tmp/live_pictures"))
    out.mkdir(exist_ok=True)
    server = Server(demo)
    try:
        for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")):
            with opened(browser, server.address, width, 860, color_scheme=scheme) as page:
                page.wait_for_timeout(6000)
                page.screenshot(path=out / f"live_{width}_{scheme}.png", full_page=width < 1000)
                if scheme == "dark":
                    page.keyboard.press("f")
                    page.wait_for_timeout(4000)
                    page.screenshot(path=out / f"live_{width}_{scheme}_fork.png", full_page=width < 1000)
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        server.close()


@pytest.mark.slow
def test_ctrl_c_saves_the_states_and_says_how_to_go_on(tmp_path):
    from tests.given import tiny

    tiny().save(tmp_path / "export")
    command = [sys.executable, str(ROOT / "live.py"), "--model-ckpt", str(tmp_path / "export"), "--device", "cpu",
               "--port", "0", "--results-dir", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = line.split()[2]
        from websockets.sync.client import connect

        with connect(address.replace("http", "ws") + "watch", origin=address.rstrip("/")) as websocket:
            while True:
                data = websocket.recv(timeout=120)
                if isinstance(data, bytes) and data[0] == 1 and int.from_bytes(data[4:8], "big") > 8:
                    break
            process.send_signal(2)
            out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in err, err
    assert "--resume" in out and StreamState.load(tmp_path / "live_1.state.safetensors")[0].frame > 8

"""The server of a live page: viewers come, go and lag; strangers are kept out; nothing wrong stops the film."""

import json
import random
import time
import urllib.error
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from serving.engine import Pace
from serving.guard import needs_token
from serving.hub import BACKLOG, RECENT, Item, Viewer
from tests.given import tone, write_sound, write_video
from tests.serving.desks import Server, of_type, until
from tests.serving.test_desk import wrong_messages


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def ask(server, path, data=None, **headers):
    """Status and body of an answer."""
    own = {"Origin": server.address.rstrip("/")} if data is not None else {}
    request = urllib.request.Request(server.address + path, data, {**own, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def order(websocket, **message):
    """What a message comes to."""
    websocket.send(json.dumps({**message, "id": 5}))
    return until(websocket, lambda e: isinstance(e, dict) and e["type"] in ("done", "refused") and e["id"] == 5)


def fragment(event):
    return isinstance(event, tuple) and event[0] == 1


def test_one_who_comes_gets_the_opening_and_the_newest_fragments_at_once(server):
    with server.connect() as first:
        until(first, lambda e: fragment(e) and e[2] > 14)
        with server.connect() as websocket:
            until(websocket, of_type("model"))
            assert until(websocket, of_type("film"))["codecs"].startswith('video/mp4; codecs="avc1.')
            opening = until(websocket, lambda e: isinstance(e, tuple))
            assert opening[0] == 0 and opening[3][4:8] == b"ftyp"
            at_once = [until(websocket, lambda e: isinstance(e, tuple)) for _ in range(2 * RECENT)]
            assert {kind for kind, *_ in at_once} == {1, 2} and all(frame > 3 for _, _, frame, _ in at_once)


def test_two_viewers_see_the_same_film(server):
    with server.connect() as one, server.connect() as two:
        frame = until(one, fragment)[2] + 5
        same = [until(viewer, lambda e: fragment(e) and e[2] >= frame) for viewer in (one, two)]
        assert same[0] == same[1]


def test_commands_are_answered_and_wrong_ones_refused_while_the_film_goes_on(server):
    with server.connect() as websocket:
        assert order(websocket, do="label", film=1, to="blue")["frame"] >= 0
        for text in wrong_messages(200):
            websocket.send(text.encode("utf-8", "replace").decode())
            said = until(websocket, lambda e: isinstance(e, dict) and e["type"] in ("refused", "done"))
            assert said["type"] == "refused" and said["text"] and "\n" not in said["text"], (text, said)
        websocket.send(b"\x00\x01")
        assert until(websocket, of_type("refused"))
        assert "film 77 is not running" in order(websocket, do="close", film=77)["text"]
        frame = until(websocket, fragment)[2]
        assert until(websocket, fragment)[2] >= frame


def test_wrong_uploads_are_refused_in_one_sentence_and_removed(server, tmp_path):
    draw = random.Random(1)
    clip = write_video(tmp_path / "clip.mp4", 12).read_bytes()
    long = write_sound(tmp_path / "long.wav", tone(31), 16000, "pcm_s16le").read_bytes()
    wide = write_video(tmp_path / "wide.mp4", 2, height=600, width=640).read_bytes()
    with server.connect() as websocket:
        until(websocket, fragment)
        for i in range(40):
            kind = draw.choice(["sound", "picture", "clip", "state", "nothing"])
            noise, cut = bytes(draw.randrange(256) for _ in range(500)), clip[: draw.randrange(len(clip) // 2)]
            kinds = [b"", noise, cut, b"x" * (2**20 + 1), long if kind == "sound" else b"RIFF", b"ID3"]
            data = wide if i % 12 == 11 and kind in ("picture", "clip") else kinds[i % 6]
            name = draw.choice(["../../etc/passwd", "a%00b", "x" * 300, "clip.mp4"])
            code, body = ask(server, f"upload/{kind}?film=1&name={name}", data)
            said = json.loads(body)["text"]
            assert code == 400 and said and "\n" not in said and str(server.uploads.folder) not in said, said
        assert not list(server.uploads.folder.iterdir())
        code, body = ask(server, "upload/sound?film=1&name=s.wav", long[: 44 + 32000 * 3])
        until(websocket, fragment)
    assert [film.number for film in server.engine.desk.films.values()] == [1]


def test_a_sound_is_given_a_clip_extended_and_a_state_opened_from_files(server, tmp_path):
    sound = write_sound(tmp_path / "s.wav", tone(1.0), 16000, "pcm_s16le").read_bytes()
    clip = write_video(tmp_path / "clip.mp4", 12).read_bytes()
    with server.connect() as websocket:
        until(websocket, fragment)
        code, body = ask(server, "upload/sound?film=1&name=s.wav", sound)
        assert code == 200 and json.loads(body)["film"] == 1, body
        code, body = ask(server, "upload/clip?film=1&name=clip.mp4", clip)
        new = json.loads(body)["film"]
        until(websocket, lambda e: fragment(e) and e[1] == new)
        code, state = ask(server, f"films/{new}/state")
        assert code == 200
        code, body = ask(server, "upload/state?film=1&name=x.state.safetensors", state)
        opened = json.loads(body)["film"]
        until(websocket, lambda e: fragment(e) and e[1] == opened)
        code, film = ask(server, "films/1/record?from=0")
        assert code == 200 and film[4:8] == b"ftyp"
        assert b"sample_long.py" in ask(server, f"films/{new}/commands")[1]
        for number in (new, opened):
            order(websocket, do="close", film=number)
        end = server.engine.desk.films[1].next + 15  # by then the sound has ended
        until(websocket, lambda e: fragment(e) and e[1] == 1 and e[2] > end)
    assert not list(server.uploads.folder.iterdir())


@pytest.mark.parametrize(
    "path", ["films/9/state", "films/1/record?from=x", "films/1/record?from=99999", "upload/x?film=-1"]
)
def test_addresses_that_lead_nowhere_are_answered_in_one_sentence(server, path):
    code, body = ask(server, path, b"x" if path.startswith("upload") else None)
    assert code == 400 and json.loads(body)["text"]


def test_strangers_are_kept_out(server):
    assert ask(server, "")[0] == 200
    assert ask(server, "", Host="evil.example")[0] == 403
    assert ask(server, "", Host="localhost:9000")[0] == 200  # through a tunnel
    assert ask(server, "upload/state?film=1", b"x", Origin="http://evil.example")[0] == 403
    assert ask(server, "upload/state?film=1", b"x", Origin="null")[0] == 403
    assert ask(server, "films/1/record", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ask(server, "../live.py")[0] in (403, 404) and ask(server, "page/%2e%2e/app.py")[0] == 404
    for origin in ("http://evil.example", None):
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{server.port}/watch", origin=origin)


def test_with_another_host_the_token_is_demanded():
    assert needs_token("0.0.0.0") and needs_token("192.168.0.2") and not needs_token("127.0.0.1")
    server = Server(token="secret", host="0.0.0.0")
    try:
        with server.connect() as old, pytest.raises(ConnectionClosed, match="open the address"):
            old.recv(timeout=60)
        for query in ("", "?token=", "?token=wrong", "?token=secret2"):
            assert ask(server, query)[0] == 403
        with urllib.request.urlopen(f"{server.address}?token=secret", timeout=60) as answer:
            assert answer.headers["Set-Cookie"] == (
                f"live_token_{server.port}=secret; HttpOnly; SameSite=Strict; Path=/"
            )
        cookie = f'theme={{"a": 1}}; live_token_{server.port}=secret; other'
        assert ask(server, "page.js", Cookie=cookie)[0] == 200 and ask(server, "page.js")[0] == 403
        assert ask(server, "page.js", Cookie=f"live_token_{server.port + 1}=secret")[0] == 403
        with server.connect(additional_headers={"Cookie": cookie}) as known:
            until(known, of_type("model"))
    finally:
        server.close()


def test_a_ninth_viewer_is_told_that_there_are_eight(server):
    some = [server.connect() for _ in range(8)]
    try:
        for websocket in some:
            until(websocket, of_type("model"))
        with server.connect() as ninth:
            assert "8 viewers" in until(ninth, of_type("full"))["text"]
            with pytest.raises(ConnectionClosed):
                while True:
                    ninth.recv(timeout=10)
    finally:
        for websocket in some:
            websocket.close()


def test_one_who_reads_slowly_skips_to_the_newest_fragment():
    viewer = Viewer(None)
    for i in range(BACKLOG + 5):
        viewer.push(Item("standing", str(i)))
        viewer.push(Item("sound", bytes([i])))
        viewer.push(Item("fragment", bytes([i])))
    kinds = [item.kind for item in viewer._waiting]
    assert kinds.count("fragment") <= BACKLOG and kinds.count("standing") == 1 and len(kinds) <= 2 * BACKLOG + 1
    assert viewer.dropped and viewer._waiting[-1].data == bytes([BACKLOG + 4])


def test_the_model_pauses_without_viewers_and_its_memory_is_released_on_request():
    server = Server(idle=0.2)
    try:
        with server.connect() as websocket:
            until(websocket, fragment)
            assert order(websocket, do="release")["type"] == "done" and server.engine.desk.pipe is None
            assert order(websocket, do="play")["type"] == "done"
            until(websocket, fragment)
            order(websocket, do="playing", on=False)
            time.sleep(0.3)
            made = server.engine.pace.sent
            time.sleep(0.5)
            assert server.engine.pace.sent - made <= 1
            order(websocket, do="playing", on=True)
        time.sleep(1.0)
        made = server.engine.pace.sent
        time.sleep(0.5)
        assert server.engine.pace.sent == made
        with server.connect() as websocket:
            frame = until(websocket, fragment)[2]
            until(websocket, lambda e: fragment(e) and e[2] > frame + 8)
    finally:
        server.close()


def test_pace_sends_what_is_wanted_ahead_at_once_then_in_real_time():
    pace, now, sent = Pace(10, 0.5), 100.0, []
    while now < 103:
        if now >= pace.due:
            pace.send(now)
            sent.append(now)
        now += 0.01
    assert sum(t < 100.001 + 0.06 for t in sent) == 6 and len(sent) in (35, 36)
    assert pace.seen(103.0) == pytest.approx(30, abs=0.2)


def test_pace_of_frames_that_are_made_together_is_real_time():
    pace, now, sent = Pace(10, 0.5), 100.0, 0
    while now < 103:
        if now >= pace.due:
            pace.send(now, 4)
            sent += 4
        now += 0.01
    assert 35 <= sent <= 39 and pace.seen(103.0) == pytest.approx(30, abs=0.2)


def test_pace_waits_for_a_slow_model_and_stands_still_on_hold():
    pace = Pace(10, 0.5)
    for second in range(10):  # a frame a second
        pace.send(100.0 + second)
    assert pace.seen(109.0) == pytest.approx(10)
    pace.hold(109.0)
    assert pace.seen(150.0) == pace.seen(109.0)
    pace.go(150.0)
    assert pace.due == pytest.approx(149.5, abs=0.11)


def test_a_film_that_fails_is_closed_and_the_others_go_on():
    server = Server()
    try:
        with server.connect() as websocket:
            until(websocket, lambda e: fragment(e) and e[2] > 4)
            new = order(websocket, do="fork", film=1)["film"]

            def break_it(desk):
                desk.films[new].show = None

            server.engine.ask(break_it).result()
            assert f"film {new} was closed" in until(websocket, of_type("failed"))["text"]
            frame = until(websocket, fragment)[2]
            until(websocket, lambda e: fragment(e) and e[2] > frame + 3)
        assert list(server.engine.desk.films) == [1]
    finally:
        server.close()

"""The desk of a live page: films steered, forked, given something, and made again by sample_long.py."""

import json
import random
import re
import shlex
from io import BytesIO
from itertools import pairwise

import av
import pytest
import torch
from safetensors.torch import load, load_file, save

import sample_long
from data.av import iter_frames, probe, read_audio, samples_before
from pipeline import StreamState
from serving.desk import Desk
from serving.fragments import Fragments
from serving.given import Given
from serving.messages import ASKED, checked
from tests.given import WINDOW, samples_of, tiny, write_sound, write_video
from tests.serving.desks import desk, film_of, shown


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "export"
    tiny().save(folder)
    return folder


def frames_of(film, first=0, stop=None):
    some = [frame for frame in film.shown if first <= frame.index < (stop or film.next)]
    return torch.stack([frame.pixels for frame in some]), torch.cat([frame.wave for frame in some])


def test_what_is_sent_is_the_film_that_was_made_with_picture_and_sound_in_step(tmp_path):
    here = desk()
    path = film_of(shown(here, 30), 1, tmp_path / "sent.mp4")
    film = here.films[1]
    count = probe(path).frames(10)
    assert 27 <= count <= 30  # the writer holds back what is not whole
    pixels, wave = frames_of(film)
    got = torch.stack(list(iter_frames(path, 10)))[:count].float().mean(-1).flatten(1)
    apart = torch.cdist(got, pixels[:count].float().mean(-1).flatten(1))
    assert torch.equal(apart.argmin(1), torch.arange(count))  # each looks like itself, not like a neighbour
    heard = read_audio(path, 0, 25 * 1600, 16000)
    lags = [float((heard[100 + lag : 30000 + lag] * wave[100:30000]).sum()) for lag in range(-50, 51)]
    assert abs(max(range(101), key=lags.__getitem__) - 50) <= 16  # samples: 1 ms


def test_every_fragment_has_a_base_that_browsers_take():
    pieces = [p for p in shown(desk(), 12) if p.kind == "fragment"]
    assert len(pieces) >= 9
    for piece in pieces:
        assert piece.data[4:8] == b"moof" and b"mdat" in piece.data
        for found in re.finditer(rb"tfhd\x00(...)", piece.data, re.S):
            flags = int.from_bytes(found[1], "big")
            assert flags & 0x020000 and not flags & 0x1  # default-base-is-moof, no base-data-offset


@pytest.mark.parametrize("fps, often", [(10, 6), (16, 4), (25, 3), (30, 2), (60, 1)])
def test_pictures_are_60_a_second_and_uneven_and_a_viewer_joins_within_a_tenth_of_a_second(fps, often):
    frames = torch.arange(32, dtype=torch.uint8).mul(8)[:, None, None, None].expand(-1, 64, 64, 3)
    film = Fragments(64, fps, 16000)
    sent = film.add(frames, torch.zeros(samples_before(32, fps, 16000))) + film.close()
    with av.open(BytesIO(film.opening + b"".join(sent))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        shown = [frame for packet in packets for frame in packet.decode()]
    times = [float(packet.pts * packet.time_base) for packet in packets]
    begins, lasts = torch.tensor(times, dtype=torch.float64).view(32, often), torch.tensor(times).diff()
    assert (begins[:, 0] - torch.arange(32) / fps).abs().max() < 1e-4
    assert often == 1 or lasts.std() > 0.55 / 60  # from which on Chromium takes them for uneven
    assert often == 1 or lasts.min() > 1e-3  # nearer ones Chromium drops
    assert (begins[:, 1:] - torch.arange(32)[:, None] / fps > 0.87 / fps).all()
    keys = [time for time, packet in zip(times, packets, strict=True) if packet.is_keyframe]
    assert max(b - a for a, b in pairwise(keys)) <= 0.1 + 1e-3
    grey = torch.tensor([frame.to_ndarray(format="rgb24").mean() for frame in shown])
    assert (grey - frames[:, 0, 0, 0].repeat_interleave(often)).abs().max() <= 2


@pytest.mark.parametrize("steps, window, at_once", [(0.5, 4, 2), (0.25, 4, 4), (1 / 3, 6, 3), (0.2, 5, 5)])
def test_frames_that_leave_together_are_shown_together_and_a_state_of_theirs_opens(tmp_path, steps, window, at_once):
    here = desk(steps=steps, load=lambda: tiny(predict_frames=window))
    shown(here, 3)
    film = here.films[1]
    before = film.next
    shown(here, 1)
    assert film.next - before == here.at_once == at_once
    while not here.tick():
        pass
    assert here.waiting == at_once
    here.save(1, tmp_path / "state.safetensors")
    opened = here.obey({"do": "open", "path": tmp_path / "state.safetensors", "name": "state"})["film"]
    shown(here, 2)
    assert here.films[opened].next == film.next


def test_a_command_takes_back_what_nobody_saw():
    here = desk()
    shown(here, 6)
    while not here.waiting:
        here.tick()
    before = here.films[1].next
    here.obey({"do": "label", "film": 1, "to": "blue"})
    assert here.waiting == 0 and int(here.streams.window.first[0]) - here.streams.run_on == before


def test_fork_is_the_same_before_it_and_another_film_after_it():
    here = desk()
    shown(here, 8)
    answer = here.obey({"do": "fork", "film": 1})
    assert answer["film"] == 2 and here.films[2].history.now.seed == 1
    assert torch.equal(here.films[2].state.window.v, here.films[1].state.window.v)
    shown(here, 12)
    one, two = (frames_of(here.films[n], 8)[0].float() for n in (1, 2))
    assert here.films[2].first == 8 and len(one) == len(two) == 12
    assert (one[:3] - two[:3]).abs().mean() < 1 and (one[-4:] - two[-4:]).abs().mean() > 3


def test_fork_from_the_past_begins_at_the_nearest_half_second_before():
    here = desk()
    shown(here, 17)
    here.obey({"do": "fork", "film": 1, "at": 13, "seed": 0})
    shown(here, 5)
    assert here.films[2].first == 10
    same = [frames_of(here.films[n], 10, 15)[0].float() for n in (1, 2)]
    assert (same[0] - same[1]).abs().max() <= 1  # the same seed: the same film, up to rounding of a batch


def test_four_films_at_most_and_the_last_one_stays():
    here = desk()
    shown(here, 4)
    for _ in range(3):
        here.obey({"do": "fork", "film": 1})
    with pytest.raises(ValueError, match="4 films are running"):
        here.obey({"do": "fork", "film": 1})
    for number in (1, 2, 3):
        here.obey({"do": "close", "film": number})
    with pytest.raises(ValueError, match="the last one"):
        here.obey({"do": "close", "film": 4})
    shown(here, 3)
    assert list(here.films) == [4]


def test_snapshot_goes_on_in_sample_long_bit_for_bit(checkpoint, tmp_path):
    from pipeline import AVPipeline

    here = desk(load=lambda: AVPipeline.from_pretrained(checkpoint, "cpu"))
    shown(here, 7)
    here.obey({"do": "label", "film": 1, "to": "blue"})
    shown(here, 4)
    here.save(1, tmp_path / "live.state.safetensors")
    sample_long.main(["--model-ckpt", str(checkpoint), "--device", "cpu", "--resume",
                      str(tmp_path / "live.state.safetensors"), "--frames", "19", "--save-latents",
                      "--results-dir", str(tmp_path)])  # fmt: skip
    chunks = []
    while len(chunks) < 8:
        here.tick()
        chunks += [chunk for _, chunks_of in here._made for _, chunk in chunks_of]
        here._made.clear()
    got = load_file(tmp_path / "live_1_from_000011.latents.safetensors")
    assert torch.equal(got["v"], torch.cat([c.v for c in chunks])) and torch.equal(
        got["a"], torch.cat([c.a for c in chunks])
    )


@pytest.mark.parametrize("solver, steps", [("euler", 2), ("ab2", 2), ("euler", 0.5)])
def test_history_is_the_commands_that_make_the_same_film(checkpoint, tmp_path, solver, steps):
    from pipeline import AVPipeline

    here = desk(load=lambda: AVPipeline.from_pretrained(checkpoint, "cpu"), solver=solver, steps=steps)
    here.obey({"do": "seed", "film": 1, "to": 5})  # before its first frame
    for ticks, message in (
        (5, {"do": "label", "film": 1, "to": "blue"}),
        (4, {"do": "steps", "to": 3}),
        (3, {"do": "guidance", "to": 1.5}),
        (3, {"do": "seed", "film": 1, "to": 9}),
        (6, None),
    ):
        shown(here, ticks)
        if message:
            here.obey(message)
    film = here.films[1]
    commands = film.history.commands(f"{checkpoint} --solver {solver}", film.next, str(tmp_path / "again"))
    for line in commands.splitlines():
        python, script, *arguments = shlex.split(line)
        assert (python, script) == ("python", "sample_long.py")
        sample_long.main([*arguments, "--device", "cpu", "--save-latents"])
    parts = sorted(
        (tmp_path / "again").glob("*.wav"), key=lambda p: int((re.findall(r"from_(\d+)", p.name) or [0])[-1])
    )
    assert len(parts) == 5
    again = torch.cat([samples_of(part) for part in parts])
    _, wave = frames_of(film)
    assert torch.equal(again, (wave * 32768).clamp(-32768, 32767).to(torch.int16))


def test_a_sine_that_is_given_comes_out_without_gap_or_click(tmp_path):
    sine = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(48000) / 16000)
    here, path = desk(), write_sound(tmp_path / "sine.wav", sine, 16000, "pcm_s16le")
    pieces = shown(here, 6)
    given = Given("sound", path, here.pipe.codec, WINDOW, name="sine.wav")
    start = here.obey({"do": "give", "film": 1, "given": given})["frame"]
    pieces += shown(here, 40)
    film = here.films[1]
    assert film.given is None and film.history.now.told == "the sound has ended"
    _, wave = frames_of(film, start, start + 30)
    faded = 320
    assert (wave[faded:-faded] - sine[faded:-faded]).abs().max() < 1e-3
    heard = read_audio(film_of(pieces, 1, tmp_path / "film.mp4"), start * 1600 + 1600, 28 * 1600, 16000)
    source = sine[1600 : 29 * 1600]
    assert heard.diff().abs().max() < 1.1 * source.diff().abs().max()  # no click
    assert heard.view(-1, 400).abs().amax(1).min() > 0.4  # no gap


def test_a_given_picture_is_shown_and_the_clip_that_is_extended_begins(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 12)
    here = desk()
    shown(here, 5)
    given = Given("picture", path, here.pipe.codec, WINDOW, name="clip.mp4")
    start = here.obey({"do": "give", "film": 1, "given": given})["frame"]
    shown(here, 10)
    from pipeline.film import RealClip

    real = RealClip.open(path, here.pipe.codec)
    expected = real.film(0, 5)[0]
    assert torch.equal(frames_of(here.films[1], start, start + 5)[0], expected)
    answer = here.obey({"do": "extend", "real": real, "name": "clip.mp4"})
    shown(here, 12)
    film = here.films[answer["film"]]
    assert film.first == 12 - WINDOW and torch.equal(
        frames_of(film, film.first, 12)[0], real.film(film.first, WINDOW)[0]
    )
    assert film.real is None and film.next > 12


def test_what_was_seen_is_recorded_from_a_moment_on(tmp_path):
    from serving.film import record

    here = desk()
    shown(here, 30)
    film = here.films[1]
    for first, end, count in ((12, 999, 18), (12, 20, 8)):
        record(film.between(first, end), tmp_path / "seen.mp4", film.spec)
        assert probe(tmp_path / "seen.mp4").frames(10) == count
    with pytest.raises(ValueError, match="nothing of film 1 is kept of frames 30 to 999"):
        film.between(30, 999)


def test_memory_that_was_released_costs_the_film_nothing():
    here, there = desk(), desk()
    for one in (here, there):
        shown(one, 6)
    here.tick()
    here.release()
    assert here.pipe is None and here.streams is None
    here.restore()
    shown(here, 6)
    shown(there, 6)
    assert torch.equal(frames_of(here.films[1])[1], frames_of(there.films[1])[1])


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A state file with something wrong in it that a stranger may send."""
    tensors = load(data)
    facts = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["facts"])
    kind, name = draw.randrange(6), draw.choice(sorted(tensors))
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        at = draw.randrange(200)
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :] if at > 7 else bytes(draw.randrange(4000))
    if kind == 2:
        tensors[name] = torch.full_like(tensors[name], draw.choice([-1, 2**31, 2**62, 7]))
        tensors["window.v"] = torch.full_like(tensors["window.v"], draw.choice([float("nan"), float("inf"), 1e30]))
    elif kind == 3:
        tensors[name] = torch.zeros(draw.randrange(1, 5), draw.randrange(1, 5))
    elif kind == 4:
        facts[draw.choice(["checksum", "num_timesteps", "base", "cfg_scale"])] = draw.choice([None, -3, "../x", [1]])
    else:
        del tensors[name]
    return save(tensors, {"facts": json.dumps(facts)})


def test_a_wrong_state_is_refused_in_one_sentence_and_the_film_goes_on(tmp_path):
    here = desk()
    shown(here, 6)
    here.save(1, tmp_path / "state")
    data, draw, opened = (tmp_path / "state").read_bytes(), random.Random(0), 0
    for _ in range(60):
        (tmp_path / "wrong").write_bytes(damaged(data, draw))
        try:
            number = here.obey({"do": "open", "path": tmp_path / "wrong", "name": "wrong"})["film"]
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and str(tmp_path) not in str(error)
        else:  # what is wrong with it does not matter
            shown(here, 3)
            here.obey({"do": "close", "film": number})
            opened += 1
    assert opened < 20 and len(here.films) == 1
    before = here.films[1].next
    shown(here, 3)
    assert here.films[1].next == before + 3
    assert here.obey({"do": "open", "path": tmp_path / "state", "name": "right"})["film"] in here.films


def wrong_messages(count: int, seed: int = 0) -> list[str]:
    """Messages with something wrong in each."""
    draw = random.Random(seed)
    right = {"label": {"film": 1, "to": "red"}, "seed": {"film": 1, "to": 3}, "steps": {"to": 2}, "guidance": {"to": 2},
             "fork": {"film": 1}, "close": {"film": 1}, "joint": {"film": 1}, "playing": {"on": True}}  # fmt: skip
    values = [None, -1, 2**40, 1.5, "", "x" * 400, [], {}, "../../etc/passwd", "a,3:b", float("1e99"), "\x00"]
    messages = []
    while len(messages) < count:
        do = draw.choice(sorted(right))
        message = {"do": do, **right[do]}
        way = draw.randrange(5)
        if way == 0:
            message[draw.choice(sorted(right[do]))] = draw.choice([None, -1, "", [], {}, "\x00", "a,3:b"])
        elif way == 1:
            message["do"] = draw.choice(["open", "give", "extend", "__init__", "obey", "", None, 3, "film"])
        elif way == 2:
            message[draw.choice(["path", "given", "name", "self"])] = draw.choice(values)
        elif way == 3:
            message["id"] = draw.choice([-1, "x", None, 1.5, 2**40])
        text = json.dumps(message)
        if way == 4:
            text = draw.choice(
                [text[:-1], f"[{text}]", "", "null", "9" * 5000, "[" * 3000, "NaN", '{"do": NaN}', "\ud800"]
            )
        messages.append(text)
    return messages


def test_wrong_messages_are_refused_before_anything_is_done():
    for text in wrong_messages(200):
        with pytest.raises(ValueError) as refused:
            checked(text)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 200, text
    known = {name.removeprefix("_do_") for name in dir(Desk) if name.startswith("_do_")}
    assert set(ASKED) - {"playing", "pause", "play", "release"} == known - {
        "open",
        "give",
        "extend",
    }  # those take files
    assert checked('{"do": "fork", "film": 1, "id": 7}') == ({"do": "fork", "film": 1}, 7)


def test_a_state_says_where_it_is(tmp_path):
    here = desk()
    shown(here, 5)
    here.save(1, tmp_path / "one")
    state, facts = StreamState.load(tmp_path / "one")
    assert state.frame == 5 and facts["base"] == "live_1" and facts["cfg_scale"] == 2.0

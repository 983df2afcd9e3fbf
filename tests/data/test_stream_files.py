"""Films that grow until they are killed, pipes, full disks, tracks copied from file to file, and sound of any length.

Run as a program, this file is the process that gets killed: it writes a film of numbered frames (see `film`).
"""

import errno
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import wave as wavefile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from data.av import (
    MediaError,
    Writer,
    iter_audio,
    iter_frames,
    mux,
    probe,
    probe_audio,
    read_audio,
    read_frames,
    samples_before,
    to_int16,
)
from tests.closeness import assert_close_by_size
from tests.kills import kill_when
from tests.processes import ROOT, Script

LAG = 3  # frames by which sound is handed over after its picture, as the vocoder does
NOTHING = torch.zeros(0, 64, 64, 3, dtype=torch.uint8), torch.zeros(0)


def numbered(k):
    """A grey frame, uint8 (1,64,64,3), with k in binary as sixteen black or white bars below."""
    frame = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    bars = 255 * (torch.tensor(k) >> torch.arange(16) & 1)
    frame[:, 48:] = bars.repeat_interleave(4)[:, None].to(torch.uint8)
    return frame


def numbers(frames):
    return ((frames[:, 56, 2::4, 0] > 128) * 2 ** torch.arange(16)).sum(1).tolist()


def tone(start, stop):
    """Samples [start, stop) at 16 kHz of a tone whose loudness swells, so that no stretch equals another."""
    t = torch.arange(start, stop) / 16000
    return 0.5 * torch.sin(2 * torch.pi * 440 * t) * torch.sin(0.3 * t + 0.5) ** 2


def film(path, preset, container, count, pause, most_bytes, wav):
    """Write `count` frames and say after each how many there are; sound comes `LAG` frames after its picture."""
    if int(most_bytes):  # a full disk, as far as the process can tell
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), resource.RLIM_INFINITY))
    try:
        with Writer(path, 64, 64, wav=bool(int(wav)), preset=preset, container=container) as writer:
            for k in range(int(count)):
                writer.write(numbered(k), tone(max(k - LAG, 0) * 1600, max(k - LAG + 1, 0) * 1600))
                print(k + 1, file=sys.stderr, flush=True)
                time.sleep(float(pause))
            writer.write(NOTHING[0], tone(writer.samples, int(count) * 1600))
    except BrokenPipeError:
        print("the reader has left", file=sys.stderr)
    except OSError as error:
        print(error, file=sys.stderr)


def start(path, preset="endless", container="mp4", count=10**6, pause=0.002, most_bytes=0, wav=1):
    """A process that runs `film`; its film can be piped."""
    return Script(__file__, path, preset, container, count, pause, most_bytes, wav, piped=path == "-")


def check(path, handed, lost=10):
    """A film of which `handed` frames were handed over is whole up to `lost` frames before; returns what is lost."""
    read, sound = torch.stack(list(iter_frames(path))), read_audio(path)
    assert numbers(read) == list(range(len(read)))
    missing = [handed - len(read), (handed - LAG) - len(sound) / 1600]
    assert max(missing) <= lost, missing
    end = min(len(sound), handed * 1600) - 2048  # the decoder has half of the last packet only
    torch.testing.assert_close(sound[:end], tone(0, end), rtol=0, atol=0.05)
    if path.with_suffix(".wav").exists():
        stored = wav_of(path.with_suffix(".wav"))
        assert len(stored) >= (handed - LAG - 1) * 1600 and torch.equal(stored, to_int16(tone(0, len(stored))))
    if shutil.which("ffprobe"):
        done = subprocess.run(["ffprobe", "-v", "error", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    return missing


def wav_of(path):
    with wavefile.open(str(path)) as file:
        return torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)


# ---------------------------------------------------------------------------------------------------------- endless


def killed(path, after):
    """Kill a process that writes a film once it has handed over `after` frames; returns how many it did in the end."""
    process = start(path)
    assert kill_when(process, lambda: process.said.count("\n") >= after), process.said
    return process.said.count("\n")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_killed_film_plays_up_to_a_second_before_the_kill(tmp_path, suffix, kills):
    paths = [tmp_path / f"{i}{suffix}" for i in range(kills)]
    after = [random.Random(i).randint(15, 120 if kills > 2 else 40) for i in range(kills)]
    with ThreadPoolExecutor(2) as pool:
        handed = list(pool.map(killed, paths, after))
    print(sorted(check(path, n) for path, n in zip(paths, handed)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("fps", [3, 10, Fraction(30000, 1001), 60])
def test_keyframes_lie_at_most_half_a_second_apart(tmp_path, fps, suffix):
    path = tmp_path / f"a{suffix}"
    with Writer(path, 64, 64, fps, preset="endless") as writer:
        writer.write(numbered(0).repeat(round(4 * fps), 1, 1, 1), tone(0, 64000))
    with av.open(str(path)) as container:
        times = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.size and p.is_keyframe]
    assert len(times) >= 8 and np.diff([*times, 4]).max() <= 0.5 + 0.002


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_interrupted_endless_film_is_whole(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(KeyboardInterrupt), Writer(path, 64, 64, preset="endless") as writer:
        for k in range(23):
            writer.write(numbered(k), tone(k * 1600, (k + 1) * 1600))
        raise KeyboardInterrupt
    assert check(path, 23, lost=0)[0] == 0 and probe(path).seconds == pytest.approx(2.3, abs=0.002)
    assert len(wav_of(tmp_path / "a.wav")) == 23 * 1600


def test_an_endless_film_replaces_no_file_and_leaves_none_without_content(tmp_path):
    for name in ("a.mp4", "a.wav"):
        (tmp_path / name).write_text("old")
        with pytest.raises(MediaError, match=rf"{name} exists and an endless film replaces no file"):
            Writer(tmp_path / "a.mp4", 64, 64, preset="endless")
        assert (tmp_path / name).read_text() == "old"
        (tmp_path / name).unlink()
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "a.mp4", 64, 64, preset="endless") as writer:
        writer.write(numbered(0), NOTHING[1])
        raise KeyboardInterrupt
    with pytest.raises(MediaError, match=r"should end in \.mp4 or \.mkv"):
        Writer(tmp_path / "a.avi", 64, 64, preset="endless")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["finished", "endless"])
def test_a_full_wav_goes_on_in_the_next(tmp_path, monkeypatch, preset):
    monkeypatch.setattr("data.av.write.WAV_BYTES", 10000)
    with Writer(tmp_path / "a.mp4", 64, 64, preset=preset) as writer:
        for k in range(8):
            writer.write(numbered(k), tone(k * 1600, (k + 1) * 1600))
    parts = [wav_of(tmp_path / name) for name in ("a.wav", "a_2.wav", "a_3.wav")]
    assert [len(part) for part in parts] == [4800, 4800, 3200] and len(list(tmp_path.iterdir())) == 4
    assert torch.equal(torch.cat(parts), to_int16(tone(0, 12800)))


@pytest.mark.parametrize(
    "preset, suffix, fps, sample_rate, seconds",
    [
        ("finished", ".mp4", Fraction(30000, 1001), 16000, 20),
        ("endless", ".mp4", 30000 / 1001, 44100, 20),
        ("endless", ".mkv", 7, 11025, 60),
        ("endless", ".mp4", 3, 16000, 60),
    ],
)
def test_no_rates_drift_apart(tmp_path, preset, suffix, fps, sample_rate, seconds):
    """Sound comes three frames late and in pieces of 977 samples; flash and click every 2 s."""
    path, frames = tmp_path / f"a{suffix}", int(seconds * fps)
    sound = torch.zeros(samples_before(frames, fps, sample_rate))
    flash = [round(second * fps) for second in range(2, seconds - 1, 2)]
    for k in flash:
        at = samples_before(k, fps, sample_rate)
        sound[at : at + sample_rate // 100] = 0.8
    with Writer(path, 32, 32, fps, sample_rate, wav=False, preset=preset) as writer:
        for k in range(frames + LAG):
            picture = torch.full((int(k < frames), 32, 32, 3), 255 * (k in flash), dtype=torch.uint8)
            ready = min(max(samples_before(k - LAG, fps, sample_rate), 0) // 977 * 977, len(sound))
            writer.write(picture, sound[writer.samples : ready])
        writer.write(NOTHING[0][:, :32, :32], sound[writer.samples :])
    late = offsets(path, fps)
    assert (writer.frames, writer.samples, len(late)) == (frames, len(sound), len(flash))
    assert late.abs().max() < 0.005 and (late[-1] - late[0]).abs() < 0.002 * seconds / 60


def offsets(path, fps):
    """Seconds by which each click comes after the time of its flash, by the file's own time stamps."""
    with av.open(str(path)) as container:
        zero = container.streams.video[0].start_time * container.streams.video[0].time_base
        frames = container.decode(video=0)
        times = [frame.time - float(zero) for frame in frames if frame.to_ndarray()[: frame.height].mean() > 128]  # Y
    sound = read_audio(path).abs()
    starts = [round((when - 0.3) * 16000) for when in times]
    clicks = [(sound[max(at, 0) : at + 9600] > 0.25).nonzero().flatten()[:1] + max(at, 0) for at in starts]
    return torch.tensor([click.item() / 16000 - when for click, when in zip(clicks, times) if len(click)])


def test_samples_before_is_the_nearest_whole_sample_for_ever():
    for fps, rate in [(Fraction(30000, 1001), 16000), (30000 / 1001, 44100), (7, 11025), (23.976, 8000)]:
        exact = Fraction(fps).limit_denominator(10000)
        for k in (0, 1, 2, 999, 10**6 + 1, 10**9 + 7):
            assert abs(samples_before(k, fps, rate) - k * rate / exact) <= Fraction(1, 2)
    assert samples_before(3, 10, 16000) == 4800


# ------------------------------------------------------------------------------------------------ pipes, full disks


def test_a_film_goes_to_stdout_and_to_a_file_object():
    processes = {container: start("-", container=container, count=30, pause=0) for container in ("mp4", "matroska")}
    for container, process in processes.items():
        kept = io.BytesIO()
        with Writer(kept, 64, 64, container=container) as writer:
            for k in range(30):
                writer.write(numbered(k), tone(k * 1600, (k + 1) * 1600))
        for data in (process.stdout.read(), kept.getvalue()):
            with av.open(io.BytesIO(data)) as file:
                frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
            with av.open(io.BytesIO(data)) as file:
                samples = sum(frame.samples for frame in file.decode(audio=0))
            assert numbers(torch.stack(frames)) == list(range(30)) and samples >= 48000


def test_a_reader_sees_a_piped_film_while_it_is_written_and_may_leave():
    process = start("-")
    try:
        with av.open(process.stdout) as file:
            shown = [next(file.decode(video=0)) for _ in range(20)]
        process.stdout.close()
        assert process.wait() == 0
    finally:
        process.kill()
    told = process.said.split("\n")
    assert len(shown) == 20 and told[-2:] == ["the reader has left", ""] and told[-3].isdigit()


def test_a_full_pipe_is_one_error(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="/dev/full") as caught:  # noqa: SIM117
        with Writer(full, 64, 64) as writer:
            for k in range(30):
                writer.write(numbered(k), tone(0, 1600))
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_ends_an_endless_film_in_one_sentence_and_it_plays(tmp_path):
    wavs = {"a.mp4": 0, "b.mkv": 0, "c.mp4": 1}  # a wav grows faster, and is full first
    started = {
        tmp_path / name: start(tmp_path / name, count=300, pause=0, most_bytes=30_000, wav=wav)
        for name, wav in wavs.items()
    }
    for path, process in started.items():
        process.wait()
        *_, handed, message = process.said.splitlines()
        assert message == f"[Errno {errno.EFBIG}] File too large: '{path}'"
        check(path, int(handed) + 1)


def test_a_full_disk_leaves_nothing_of_a_finished_film_and_the_old_one_as_it_was(tmp_path):
    (tmp_path / "a.mp4").write_text("old")
    process = start(tmp_path / "a.mp4", "finished", count=100, pause=0, most_bytes=50_000)
    process.wait()
    assert process.said.endswith(f"File too large: '{tmp_path / 'a.mp4'}'\n")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.mp4", "old")]


# ------------------------------------------------------------------------------------------------------------- copies


def record(path, streams, seconds=3, codec="aac", rate=48000, late=0.0, rotation=0, bars=False):
    """A foreign file: B-frames at 25 fps that flash every second (or are numbered), and clicks with the flashes.

    The sound is that of the film from `late` seconds on (from before its start when negative).
    """
    with av.open(str(path), "w") as container:
        if "video" in streams:
            video = container.add_stream("libx264", rate=25, options={"bf": "3", "b_strategy": "0", "g": "50"})
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            video.codec_context.time_base = Fraction(1, 25)
            if rotation:
                video.set_display_rotation(rotation)
        if "audio" in streams:
            options = {"strict": "experimental"} if codec == "vorbis" else {}
            audio = container.add_stream(codec, rate=rate, layout="stereo", options=options)
        shift = 1 if "video" in streams else 0  # s; leaves room for early sound
        for k in range(seconds * 25 if "video" in streams else 0):
            picture = numbered(k)[0] if bars else torch.full((64, 64, 3), 255 * (k % 25 == 12), dtype=torch.uint8)
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            frame.pts, frame.time_base = k + 25 * shift, Fraction(1, 25)
            container.mux(video.encode(frame))
        for at in range(round(late * rate), seconds * rate if "audio" in streams else 0, 960):
            t = np.arange(at, at + 960) / rate
            click = (t % 1 >= 0.48) & (t % 1 < 0.49) & (t > 0)
            sound = (0.8 * click + 0.001 * np.sin(2000 * t)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([sound, sound]), "fltp", "stereo")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), at + rate * shift
            container.mux(audio.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


def packets(path, kind):
    """(bytes, start, end) of each packet of a stream in seconds, in decoding order."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        found = [packet for packet in container.demux(stream) if packet.size]
        ticks = [(bytes(packet), packet.pts, packet.pts + (packet.duration or 0)) for packet in found]
        return [(data, start * stream.time_base, end * stream.time_base) for data, start, end in ticks]


@pytest.mark.parametrize(
    "codec, source, suffix",
    [
        ("aac", ".m4a", ".mp4"),
        ("libmp3lame", ".mp3", ".mp4"),
        ("libopus", ".ogg", ".mp4"),
        ("alac", ".m4a", ".mp4"),
        ("aac", ".mkv", ".mp4"),
        ("pcm_s16le", ".wav", ".mkv"),
        ("flac", ".flac", ".mkv"),
        ("vorbis", ".ogg", ".mkv"),
    ],
)
def test_tracks_are_copied_packet_for_packet_and_stay_in_sync(tmp_path, codec, source, suffix):
    film = record(tmp_path / "film.mp4", "video", rotation=90)
    song = record(tmp_path / f"song{source}", "audio", codec=codec)
    out = mux(film, song, tmp_path / "out.mp4")
    assert out == tmp_path / f"out{suffix}"
    assert {path.name for path in tmp_path.iterdir()} == {film.name, song.name, out.name}
    for kind, path in [("video", film), ("audio", song)]:
        assert [p[0] for p in packets(out, kind)] == [p[0] for p in packets(path, kind)]
    assert torch.equal(read_frames(out, 0, 75, 25), read_frames(film, 0, 75, 25))
    late = offsets(out, 25)
    assert len(late) == 3 and late.abs().max() < 0.005
    starts = [start for _, start, _ in packets(out, "audio")]
    assert source != ".mkv" or set(np.diff(starts)) == {Fraction(1024, 48000)}  # milliseconds make no holes
    if source != ".mkv":
        torch.testing.assert_close(read_audio(out, 0, 44000), read_audio(song, 0, 44000), rtol=0, atol=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("late", [-0.7, 0.0, 0.6])
def test_sound_that_starts_off_the_picture_is_kept_in_sync(tmp_path, late, suffix):
    both = record(tmp_path / f"both{suffix}", "video audio", late=late)
    plain = record(tmp_path / "film.mkv", "video")
    copy = mux(plain, both, tmp_path / f"out{suffix}")
    again = mux(both, copy, tmp_path / f"again{suffix}", seconds=2)
    for path, seconds in [(both, 3), (copy, 3), (again, 2)]:
        found = offsets(path, 25)
        assert len(found) == seconds - int(late > 0.5) and found.abs().max() < 0.005, path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("seconds", [1.0, 1.24, 2.111])
def test_a_shorter_copy_ends_within_one_packet_and_loses_no_frame_before(tmp_path, suffix, seconds):
    film = record(tmp_path / "film.mp4", "video", bars=True)
    song = record(tmp_path / "song.mp3", "audio", codec="libmp3lame")
    out = mux(film, song, tmp_path / f"out{suffix}", seconds)
    zero = packets(out, "video")[0][1]
    for kind, longest in [("video", 0.04), ("audio", 1152 / 48000)]:
        assert -longest <= max(end for _, _, end in packets(out, kind)) - zero - seconds <= longest + 0.002
    shown = [frame for frame in iter_frames(out, 25)]
    assert numbers(torch.stack(shown))[: int(seconds * 25)] == list(range(int(seconds * 25)))
    assert probe(out).seconds == pytest.approx(seconds, abs=0.042)


def test_a_failed_copy_leaves_the_old_file(tmp_path):
    film, song = record(tmp_path / "film.mp4", "video"), record(tmp_path / "song.m4a", "audio")
    (tmp_path / "out.mp4").write_text("old")
    for arguments, message in [
        ((film, film, "out.mp4"), r"film\.mp4 has no audio stream"),
        ((song, song, "out.mp4"), r"song\.m4a has no video stream"),
        ((film, tmp_path / "no.wav", "out.mp4"), r"no\.wav does not exist"),
        ((film, song, "out.avi"), r"out\.avi should end in \.mp4 or \.mkv"),
        ((film, song, "no/out.mp4"), "folder does not exist"),
    ]:
        with pytest.raises(MediaError, match=message):
            mux(*arguments[:2], tmp_path / arguments[2])
    assert (tmp_path / "out.mp4").read_text() == "old" and len(list(tmp_path.iterdir())) == 3


# ------------------------------------------------------------------------------------------------------ sound files


def tune(path, rate, channels=1, seconds=1):
    """A wav of noise."""
    noise = np.random.default_rng(0).standard_normal((seconds * rate, channels))
    with wavefile.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes((noise * 4000).astype("<i2").tobytes())
    return path, torch.from_numpy((noise * 4000).astype("<i2") / np.float32(32768))


@pytest.mark.parametrize(
    "codec, suffix, rate",
    [
        ("pcm_s16le", ".wav", 44100),
        ("libmp3lame", ".mp3", 44100),
        ("flac", ".flac", 48000),
        ("aac", ".m4a", 48000),
        ("aac", ".m4a", 44100),
        ("vorbis", ".ogg", 44100),
    ],
)
def test_blocks_of_a_sound_file_are_the_whole_track(tmp_path, codec, suffix, rate):
    path = record(tmp_path / f"a{suffix}", "audio", codec=codec, rate=rate)
    whole, info = read_audio(path), probe_audio(path)
    assert (info.sample_rate, info.channels) == (rate, 2)
    assert info.seconds == pytest.approx(len(whole) / 16000, abs=2048 / rate) and 3 <= info.seconds < 3.1
    clicks = (whole.abs() > 0.25).nonzero().flatten() / 16000 % 1
    assert 0.478 < clicks.min() and clicks.max() < 0.492
    for size in (1601, 16000, 10**6):
        blocks = list(iter_audio(path, size))
        assert all(len(block) == size for block in blocks[:-1]) and 0 < len(blocks[-1]) <= size
        assert_close_by_size(torch.cat(blocks), whole)
    torch.testing.assert_close(read_audio(path, 20001, 4000), whole[20001:24001], rtol=0, atol=2e-3)


@pytest.mark.parametrize("rate, channels", [(1000, 1), (48000, 8), (16000, 12)])
def test_strange_rates_and_many_channels_are_read(tmp_path, rate, channels):
    path, sound = tune(tmp_path / "a.wav", rate, channels)
    assert_close_by_size(read_audio(path, sample_rate=rate), sound.mean(1))
    assert_close_by_size(read_audio(path, sample_rate=rate, channels="first"), sound[:, 0])
    assert len(read_audio(path)) == 16000 and probe_audio(path).channels == channels
    assert_close_by_size(torch.cat(list(iter_audio(path, 5000))), read_audio(path))


def test_a_rate_without_a_usable_ratio_is_refused(tmp_path):
    path, _ = tune(tmp_path / "a.wav", 44101)
    for read in (read_audio, lambda path: list(iter_audio(path, 1600))):
        with pytest.raises(MediaError, match=r"a\.wav has sound at 44101 Hz, .* convert it to 48000 Hz"):
            read(path)
    with pytest.raises(ValueError, match="samples is 0"):
        list(iter_audio(path, 0))


@pytest.mark.parametrize("hole, hours", [(50, 0), (7200, 2.0)])
def test_a_hole_in_the_sound_is_silence_and_a_damaged_clock_is_refused(tmp_path, hole, hours):
    with av.open(str(tmp_path / "a.mka"), "w") as container:
        audio = container.add_stream("flac", rate=16000, layout="mono")
        for at in range(0, 32000, 1600):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 9999, dtype=np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, at + (hole * 16000 if at >= 16000 else 0)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    if hours:
        with pytest.raises(MediaError, match=rf"no sound for {hours} hours from 1\.\d s on"):
            read_audio(tmp_path / "a.mka")
        return
    loud = read_audio(tmp_path / "a.mka") > 0.1
    assert loud[:15000].all() and not loud[20000 : hole * 16000 - 20000].any() and loud[-10000:].all()
    torch.testing.assert_close(torch.cat(list(iter_audio(tmp_path / "a.mka", 9999))), read_audio(tmp_path / "a.mka"))


def test_what_is_no_usable_sound_is_said(tmp_path):
    record(tmp_path / "mute.mp4", "video")
    whole = record(tmp_path / "a.flac", "audio", codec="flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    whole = record(tmp_path / "a.mka", "audio", codec="flac").read_bytes()
    (tmp_path / "strange.mka").write_bytes(whole.replace(b"A_FLAC", b"A_XYZW"))
    for name, message in [
        ("mute.mp4", "has no audio stream"),
        ("cut.flac", "is cut or damaged"),
        ("strange.mka", "has audio in an unknown codec"),
    ]:
        with pytest.raises(MediaError, match=rf"{name} {message}"):
            probe_audio(tmp_path / name)
    assert probe_audio(tmp_path / "a.mka").channels == 2


def test_the_cover_picture_of_a_song_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp3"), "w") as container:
        audio = container.add_stream("libmp3lame", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(0)[0].numpy(), format="rgb24")))
        for at in range(0, 44100, 882):
            frame = av.AudioFrame.from_ndarray(np.full((1, 882), 0.1, dtype=np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, at
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    assert probe_audio(tmp_path / "a.mp3").seconds == pytest.approx(1, abs=0.1)
    with pytest.raises(MediaError, match="has no video stream"):
        probe(tmp_path / "a.mp3")


MEMORY = """
import resource, sys, wave
import torch
from data.av import Writer, iter_audio, iter_frames

def film(path, frames):
    with Writer(path, 64, 64, preset="endless", wav=False) as writer:
        for k in range(frames):
            writer.write(torch.full((1, 64, 64, 3), k % 256, dtype=torch.uint8), torch.zeros(1600))
    assert sum(1 for _ in iter_frames(path)) == frames

def song(path, seconds):
    with wave.open(path, "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", "not compressed"))
        for _ in range(seconds):
            file.writeframes(bytes(4 * 44100))
    assert sum(map(len, iter_audio(path, 16000))) == seconds * 16000

for frames, seconds in [(100, 20), (1000, 300)]:
    for suffix in ("mp4", "mkv"):
        film(f"{sys.argv[1]}/{frames}_{suffix}.{suffix}", frames)  # a film of the same name is not replaced
    song(f"{sys.argv[1]}/{seconds}.wav", seconds)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    short, long = map(float, done.stdout.split())
    assert long - short < 6  # MiB; 1000 frames are 12 MiB, 300 s of sound 18 MiB


if __name__ == "__main__":
    film(*sys.argv[1:])

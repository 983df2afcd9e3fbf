"""A tiny checkpoint, inputs and films for the tests of sample_a2v.py and sample_v2a.py."""

import json
import wave
from pathlib import Path

import av
import torch

import sample_a2v
import sample_v2a
from data.av import write_clip
from models import FLAV
from models.codec import Pixels
from pipeline import AVCodec, AVPipeline, AVSpec
from tests.randomised import randomised
from vocoder import GriffinLim

NAMES = ("blue", "green", "red")
WINDOW = 4
CONFIG = dict(latent_size=16, patch_size=8, in_channels=3, n_mels=20, num_classes=3, hidden_size=32, depth=1,
              num_heads=2, predict_frames=WINDOW)  # fmt: skip
SCRIPTS = {"a2v": sample_a2v, "v2a": sample_v2a}


def tiny(**config) -> AVPipeline:
    """16 px pictures, 20 mel bins, three classes, random weights."""
    spec = AVSpec(n_mels=20, audio_scale=2.0, image_size=16, codec="pixels", class_names=NAMES)
    model = randomised(FLAV(**CONFIG | config), 0.2)
    return AVPipeline(model, AVCodec(spec, Pixels(), GriffinLim(20, iterations=2)), dtype=torch.float64)


def tone(seconds: float, rate: int = 16000, pitch: float = 300.0):
    """A tone that swells, float32 (N,)."""
    time = torch.arange(round(seconds * rate)) / rate
    return (0.4 * torch.sin(6.283 * pitch * time) * torch.sin(2 * time) ** 2).float()


def pictures(frames: int, height: int = 24, width: int = 32, seed: int = 0):
    """Blocks of colour that change from frame to frame, uint8 (T,H,W,3)."""
    coarse = torch.randint(0, 255, (frames, 3, 2, 2), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(coarse, (height, width)).movedim(1, -1).to(torch.uint8)


def write_sound(path: Path, samples, rate: int, codec: str, channels: int = 1) -> Path:
    """A file with sound alone: float samples (N,), the same in each channel, or (channels,N)."""
    with av.open(str(path), "w") as container:
        layout = "mono" if channels == 1 else "stereo"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        data = samples.expand(channels, -1).T.reshape(1, -1).contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(data, format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.format, layout, rate, stream.frame_size or None)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def write_video(path: Path, frames: int, fps: float = 10, sound: bool = True, **how) -> Path:
    """A video, its sound a tone, or none."""
    shown = pictures(frames, **how)
    if sound:
        write_clip(path, shown, tone(frames / fps), fps)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = shown.shape[2], shown.shape[1], "yuv420p"
        for picture in shown.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def run(script: str, checkpoint, folder, *more):
    command = [f"--model-ckpt={checkpoint}", f"--results-dir={folder}", "--device=cpu", *map(str, more)]
    SCRIPTS[script].main(command)
    return folder


def samples_of(path):
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)


def packets(path, kind):
    """Bytes and seconds of every packet of a track."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(stream) if p.size]


def records(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]

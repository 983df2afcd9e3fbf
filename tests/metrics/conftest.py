"""Reference numbers of the feature networks, and the clips they were computed from: whole-number rules, no files."""

import hashlib
import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

PARITY = Path(__file__).parents[1] / "fixtures" / "parity" / "metrics"


@pytest.fixture(scope="session")
def metrics_manifest() -> dict:
    return json.loads((PARITY / "manifest.json").read_text())


@pytest.fixture(scope="session")
def metrics_tensors():
    """`metrics_tensors("i3d")` -> the tensors of that file by name."""
    return lambda name: load_file(PARITY / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_video(metrics_manifest):
    """`golden_video("wide")` -> uint8 (B, T, H, W, 3): the source of that preprocessing case; "" the clips of I3D."""
    inputs, cases, salt = (metrics_manifest[key] for key in ("inputs", "preprocess", "salt"))

    def make(name: str = "") -> torch.Tensor:
        B, T, H, W = (1, 2, *cases["cases"][name]["src_hw"]) if name else (4, 16, 64, 64)
        video = np.stack([_video(f"{salt}{name}video{b}", T, H, W) for b in range(B)])
        _compare(video, cases["cases"][name]["src_sha256_u8"] if name else inputs["video"]["sha256_u8"])
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(video, 2, -1)))

    return make


@pytest.fixture(scope="session")
def golden_wave(metrics_manifest) -> np.ndarray:
    """int16 (8, 1, 70560): eight mono clips of 1.6 s at 44100 Hz."""
    wave = np.stack([_wave(f"{metrics_manifest['salt']}wave{i}", n=70560) for i in range(8)])[:, None]
    _compare(wave, metrics_manifest["inputs"]["wave"]["sha256_i16"])
    return wave


def _compare(x: np.ndarray, sha256: str) -> None:
    assert hashlib.sha256(x.tobytes()).hexdigest() == sha256, "the generator is not the one of the reference numbers"


def _video(seed: str, T: int, H: int, W: int) -> np.ndarray:
    """(T, 3, H, W) uint8: moving ramps that fold at their ends, with noise."""
    rng = np.random.RandomState(crc32(seed.encode()))
    p = rng.randint(1, 16, (3, 5), dtype=np.int64)
    amount = rng.randint(8, 96, dtype=np.int64)
    noise = rng.randint(0, 256, (T, 3, H, W), dtype=np.int64)
    a, b, d, e, f = p.T[:, :, None, None]  # (3, 1, 1) each
    t, y, x = np.arange(T)[:, None, None, None], np.arange(H)[:, None], np.arange(W)
    phase = (a * x + b * y + 4 * d * t + ((x * y * e) >> 5) + 16 * f) % 512  # (T, 3, H, W)
    base = np.minimum(abs(phase - 256), 255)
    return ((base * (256 - amount) + noise * amount) >> 8).astype(np.uint8)


def _wave(seed: str, n: int) -> np.ndarray:
    """(n,) int16: three triangle chirps, gated, with noise."""
    rng, i = np.random.RandomState(crc32(seed.encode())), np.arange(n)
    ranges = ((60, 9000, 3), (0, 65536, 3), (1500, 9000, 3), (0, 4, 3))
    inc, off, amp, chirp = (rng.randint(*range_, dtype=np.int64)[:, None] for range_ in ranges)  # (3, 1) each
    amount, seg, duty = (rng.randint(*range_, dtype=np.int64) for range_ in ((300, 4000), (2000, 9000), (2, 5)))
    noise = rng.randint(-32768, 32768, n, dtype=np.int64)
    phase = (i * inc + ((i * i * chirp) >> 6) + off) % 65536  # (3, n)
    s = ((amp * (2 * abs(phase - 32768) - 32768)) >> 15).sum(0)
    s = (s * np.where((i // seg) % duty == 0, 256, 64)) >> 8
    return np.clip(s + ((amount * noise) >> 15), -32768, 32767).astype(np.int16)

"""Weights of the feature networks: a published file, checked strictly, or a stated rule that stands in for it."""

import math
import pickle
import struct
from pathlib import Path
from zipfile import BadZipFile
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

SHOWN = 3  # names in an error
# What torch.load raises on files cut short or changed. Its own texts are left out: they recommend unsafe loading.
DAMAGED = (pickle.UnpicklingError, struct.error, BadZipFile, EOFError, RuntimeError, LookupError, ValueError, TypeError,
           AttributeError, AssertionError)  # fmt: skip


def load(module: nn.Module, path: Path, source: str, prefix: str = "") -> None:
    """Load a published weight file by its own key names; counters of batch norms may be absent (old files).

    Args:
        source: where to get the file, for the error when it is missing.
        prefix: of this network's keys in a file that holds more.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no weight file, a key is missing or unknown, or a shape differs.
    """
    state = _read(path, source, prefix)
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in expected]
    shapes = [f"{key} {tuple(state[key].shape)}, not {tuple(x.shape)}"
              for key, x in expected.items() if key in state and state[key].shape != x.shape]  # fmt: skip
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has", shapes)):
        if names:
            raise ValueError(f"{path} {problem} {_listed(names)}; get it from {source}")
    module.load_state_dict(state, strict=False)


def _read(path: Path, source: str, prefix: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; get it from {source}")
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no file of weights; get it from {source}") from error
    keys = [key for key in table if isinstance(key, str) and key.startswith(prefix)] if isinstance(table, dict) else []
    if not keys or not all(isinstance(table[key], Tensor) for key in keys):
        wanted = f"tensors named {prefix}*" if prefix else "table of tensors by name"
        raise ValueError(f"{path} holds no {wanted}; get it from {source}")
    return {key.removeprefix(prefix): table[key] for key in keys}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@torch.no_grad()
def fill(module: nn.Module, salt: str = "rflav:") -> None:
    """Fill a network with numbers that depend on nothing but the names of its keys.

    Convolutions and linears are uniform with the variance of He's rule, norms and biases stay near their usual start.
    A rule needs no download and gives everyone the same features; they say nothing about how a sample looks or sounds.
    """
    for key, x in module.state_dict().items():
        if x.is_floating_point() and x.numel() and key != "window":
            x.copy_(torch.from_numpy(_filled(key, tuple(x.shape), salt)))


def _filled(key: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The rule, in float64: u is uniform in [-1, 1), seeded by the key."""
    rng = np.random.RandomState(crc32((salt + key).encode()))
    u = 2 * rng.random_sample(math.prod(shape)).reshape(shape) - 1
    kind = key.rpartition(".")[2]
    if key.startswith("fbsp."):
        return {"m": 1 + 0.3 * u, "fb": 1 + 0.2 * u, "fc": np.arange(len(u)) + 0.25 * u}[kind]
    if kind == "running_mean" or kind == "bias":
        return 0.1 * u
    if kind == "running_var":
        return 1 + 0.5 * u
    if len(shape) == 1:  # weight of a batch norm; a residual branch begins small
        return (1 + 0.25 * u) * (0.25 if key.endswith("bn3.weight") and key.startswith("layer") else 1)
    gain = {"conv1.weight": 2 / 1024, "fc.weight": 1.0}.get(key, 0.5 if key.startswith("att") else 2.0)
    return np.sqrt(3 * gain / math.prod(shape[1:])) * u

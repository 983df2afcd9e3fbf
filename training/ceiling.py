"""What a device can do at most, beside which the speed of a run means something."""

import time
from collections.abc import Callable

import torch

from models.system_costs import H100_BF16

SIZE = {"cpu": 1024, "cuda": 8192}  # side of the square matrices whose product is the ceiling


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of a large matrix product: the best of those that fit in some seconds, of 3 at least."""
    N = SIZE.get(device.type, SIZE["cpu"])
    x, y = (torch.randn(N, N, device=device, dtype=dtype) for _ in range(2))
    best, tries, began = float("inf"), 0, time.perf_counter()
    while tries < 3 or time.perf_counter() - began < seconds:
        best, tries = min(best, seconds_of(lambda: x @ y, device)), tries + 1
    return 2 * N**3 / best


def seconds_of(run: Callable, device: torch.device) -> float:
    """Seconds of one call; a GPU is waited for before and after."""
    _synchronise(device)
    began = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def data_sheet_flops(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s that the maker states, dense, of the GPUs whose figure models/system_costs.py has."""
    return H100_BF16 if dtype == torch.bfloat16 and ("H100" in name or "H200" in name) else None


def device_name(device: torch.device) -> str:
    """The GPU's own name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

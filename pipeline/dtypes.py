"""The type of numbers that a model computes with where nobody says."""

import torch
from torch import nn

LARGE = 10_000_000  # parameters from which on products, not operations, take the time


def is_large(model: nn.Module) -> bool:
    """Whether products take the time of its calls."""
    return sum(p.numel() for p in model.parameters()) >= LARGE


def natural_dtype(model: nn.Module, device: torch.device | str) -> torch.dtype:
    """bfloat16 for a large model where the device computes it natively, else float32."""
    return torch.bfloat16 if is_large(model) and native_bfloat16(torch.device(device)) else torch.float32


def native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 itself: a GPU from Ampere on, a CPU with avx512_bf16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def name_of(dtype: torch.dtype) -> str:
    """As scripts and files say it, such as float32."""
    return str(dtype).removeprefix("torch.")


def is_dtype(name: object) -> bool:
    """Whether it names a type that a model can compute with."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point

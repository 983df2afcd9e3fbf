"""A LoRA adapter beside the weights of its base (Hu et al., 2021, arXiv 2106.09685): W + alpha/r B A.

load_adapter(load_model(base), folder)  # what training/lora.py saved
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.checkpoint import Pretrained, fingerprint

TARGETS = (
    "fc1",
    "fc2",
    "proj",
    "qkv",
    "query",
    "key_value",
)  # last names of the linears of attention and feed-forward, which LoRA adapts
PREFIX = "base_model.model."  # of every name in an adapter file of peft
FILES = ("adapter_model.safetensors", "adapter_config.json", "base.json")
NO_MATTER = ("grad_ckpt", "class_dropout_prob")  # of the architecture: the same weights mean the same without them


def load_adapter(model: Pretrained, folder: Path) -> dict:
    """Add an adapter of `training.lora.save_adapter` to the weights of its base, which stays plain.

    Args:
        model: the base in float32 or float64, as `load_model` gives it.
    Returns:
        The facts that were stored with the adapter.
    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the adapter belongs to another base; the model
            is as it was.
    """
    check_plain(model)
    config, base, tensors = _read_adapter(Path(folder))
    if differs := differences(base["config"], model._hub_mixin_config):
        raise ValueError(f"{folder} belongs to another model ({'; '.join(differs)}); load it into its own base")
    _check_adapter(model, tensors, config, folder)
    if base["sha256"] != fingerprint(model):
        raise ValueError(
            f"{folder} was trained on other weights (facts {base['facts']}) than this model has; load it into its own "
            "base, in float32"
        )
    merge(model, tensors, config["lora_alpha"] / config["r"])
    return base["facts"]


def _read_adapter(folder: Path) -> tuple[dict, dict, dict[str, Tensor]]:
    """peft's config, what the adapter belongs to, and its tensors; from JSON and safetensors only."""
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a folder that save_adapter wrote")
    weights, config, base = (folder / name for name in FILES)
    try:
        return json.loads(config.read_text()), json.loads(base.read_text()), load_file(weights)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} has a damaged file ({error}); fetch or save the adapter again") from None


def _check_adapter(model: Pretrained, tensors: dict[str, Tensor], config: dict, folder: Path) -> None:
    """Raise a ValueError unless the adapter is plain LoRA with exactly the tensors that this model's linears need."""
    if odd := [name for name in ("use_rslora", "alpha_pattern", "fan_in_fan_out") if config.get(name)]:
        raise ValueError(f"{folder} is a LoRA with {', '.join(odd)}, which is not merged here; merge it with peft")
    wanted, found = _adapter_shapes(model, config["r"]), {name: tuple(x.shape) for name, x in tensors.items()}
    if wanted != found:
        differs = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        raise ValueError(
            f"{folder} does not fit the linears of this model at rank {config['r']}: {few(differs)} differ; load it "
            "into its own base"
        )


def _adapter_shapes(model: Pretrained, rank: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of the tensors A (rank, in) and B (out, rank) of every adapted linear."""
    shapes = {}
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and name.rpartition(".")[2] in TARGETS:
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, linear.in_features)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (linear.out_features, rank)
    return shapes


@torch.no_grad()
def merge(model: Pretrained, tensors: dict[str, Tensor], scale: float) -> None:
    """W + scale * B A in every adapted linear of a plain model."""
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            weight = model.get_submodule(name.removeprefix(PREFIX).removesuffix(".lora_A.weight")).weight
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            weight += scale * (b.to(weight) @ a.to(weight))


def differences(there: dict, here: dict) -> list[str]:
    """Facts of two architectures that differ and matter; None counts as 0."""
    names = [name for name in here if name not in NO_MATTER and (there.get(name) or 0) != (here[name] or 0)]
    return [f"{name} {there.get(name)} there, {here[name]} here" for name in names]


def check_plain(model: Pretrained) -> None:
    """Raise a ValueError if a model has LoRA layers, which `training.lora.add_lora` puts in."""
    if hasattr(model, "peft_config"):
        raise ValueError("this model has a LoRA adapter already; take merged(model), or the model before add_lora")


def few(names: Iterable[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""Fine-tuning: start from weights that fit only in part, train some of them, or train a LoRA adapter beside them.

initialise(model, "MaverickAlex/R-FLAV-B-1-AIST")  # what fits is copied, and the report says what did not
add_lora(model, rank=8)                            # LoRA (Hu et al., 2021, arXiv 2106.09685): W + alpha/r B A, W frozen
save_adapter(model, folder, {"step": 1000})        # ... and later load_adapter(FLAV.from_pretrained(base), folder)
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import FLAV
from pipeline.spec import AVSpec, fetch_checkpoint
from pipeline.storage import replaced_folder

TARGETS = ("fc1", "fc2", "proj", "qkv")  # last names of the linears of attention and feed-forward, which LoRA adapts
PREFIX = "base_model.model."  # of every name in an adapter file of peft
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "base.json")
CLASS_TABLES = ("video_class.weight", "audio_class.weight")
FRAME_TABLES = ("video_frame_pos", "audio_frame_pos")
NO_MATTER = ("grad_ckpt", "class_dropout_prob")  # of the architecture: the same weights mean the same without them


@dataclass
class Report:
    """What `initialise` did with each tensor of the model and of the source; `str` makes a few lines for a log."""

    source: str
    differs: list[str]  # facts of the architecture, as "num_classes 3 there, 5 here"
    copied: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)  # name -> how
    left: dict[str, str] = field(default_factory=dict)  # name -> why it is as initialised
    unused: list[str] = field(default_factory=list)  # names of the source

    def __str__(self) -> str:
        counts = f"{len(self.copied)} tensors copied, {len(self.resized)} resized, {len(self.left)} left as initialised"
        lines = [f"{self.source}: {counts}, {len(self.unused)} of the source unused"]
        lines += ["differs: " + "; ".join(self.differs)] if self.differs else []
        lines += _by_reason("resized", self.resized) + _by_reason("left", self.left)
        return "\n".join(lines + _by_reason("unused", dict.fromkeys(self.unused, "no such tensor here")))


def initialise(model: FLAV, source: str | Path, class_names: Sequence[str] = ()) -> Report:
    """Copy the weights of a checkpoint into a model whose classes, window or sizes may be others.

    A tensor of the same name and shape is copied. Rows of the class tables go by class name where both sides know
    names, else by number; the null label's row stays the null label's, and classes that the source does not have stay
    as drawn. Frame positions are copied as far as both windows reach and are as initialised, zero, beyond: repeating
    the last one instead gave a demo model no lower loss. All else stays as initialised.

    Args:
        source: a checkpoint folder, a released one, or a hub id; read by `FLAV.from_pretrained`.
        class_names: of this model's classes, where known; the source's are in its pipeline.json.
    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, it is damaged, or no tensor of it could be taken.
    """
    _check_plain(model)
    if len(class_names) not in (0, model.num_classes):
        raise ValueError(f"{len(class_names)} class names do not fit {model.num_classes} classes; give one for each")
    folder = fetch_checkpoint(str(source))
    other = FLAV.from_pretrained(folder)
    rows, how = _class_rows(model, other, class_names, _class_names(folder))
    report = Report(str(source), _differences(other._hub_mixin_config, model._hub_mixin_config))
    own, given = model.state_dict(), other.state_dict()
    report.unused = [name for name in given if name not in own]
    for name, here in own.items():
        _take(report, name, here, given.get(name), rows, how)
    if not report.copied and not report.resized:
        raise ValueError(f"{source} has no tensor that fits this model ({'; '.join(report.differs)}); choose its sizes")
    return report


def _class_names(folder: Path) -> tuple[str, ...]:
    """Class names that a checkpoint folder knows; none of a released one."""
    return AVSpec.load(folder).class_names if (folder / "pipeline.json").is_file() else ()


def _class_rows(
    model: FLAV, other: FLAV, names: Sequence[str], other_names: Sequence[str]
) -> tuple[list[tuple[int, int]], str]:
    """Rows (here, there) of the class tables that mean the same, and by what they were found."""
    by_name = bool(names) and bool(other_names)
    if by_name:
        there = {name: i for i, name in enumerate(other_names)}
        rows = [(i, there[name]) for i, name in enumerate(names) if name in there]
    else:
        rows = [(i, i) for i in range(min(model.num_classes, other.num_classes))]
    how = f"{len(rows)} of {model.num_classes} classes by {'name' if by_name else 'number'}"
    if model.has_null_label and other.has_null_label:
        return [*rows, (model.num_classes, other.num_classes)], f"{how} and the null label copied, the others fresh"
    return rows, f"{how} copied, the others fresh, no null label on both sides"


def _take(report: Report, name: str, here: Tensor, there: Tensor | None, rows: list[tuple[int, int]], how: str) -> None:
    """Copy what fits of one tensor, and say so; rows, how: of the class tables."""
    if there is None:
        report.left[name] = "the source has none"
    elif name in CLASS_TABLES and there.shape[1:] == here.shape[1:]:
        _copy_rows(report, name, here, there, rows, how)
    elif there.shape == here.shape:
        here.copy_(there)
        report.copied.append(name)
    elif name in FRAME_TABLES and there.shape[1:] == here.shape[1:]:
        frames = min(len(there), len(here))
        here[:frames].copy_(there[:frames])
        report.resized[name] = f"the first {frames} of {len(there)} frames fill {frames} of {len(here)}"
    else:
        report.left[name] = f"{tuple(there.shape)} there, {tuple(here.shape)} here"


def _copy_rows(report: Report, name: str, here: Tensor, there: Tensor, rows: list[tuple[int, int]], how: str) -> None:
    if not rows:
        report.left[name] = "no class in common"
        return
    to, source = (list(side) for side in zip(*rows))
    here[to] = there[source].to(here)
    if to == source == list(range(len(here))) and len(here) == len(there):
        report.copied.append(name)
    else:
        report.resized[name] = how


def _differences(there: dict, here: dict) -> list[str]:
    """Facts of two architectures that differ and matter; None counts as 0."""
    names = [name for name in here if name not in NO_MATTER and (there.get(name) or 0) != (here[name] or 0)]
    return [f"{name} {there.get(name)} there, {here[name]} here" for name in names]


def _by_reason(title: str, reasons: dict[str, str]) -> list[str]:
    """One line for each reason, with the first few names that share it."""
    groups = {reason: [name for name, why in reasons.items() if why == reason] for reason in reasons.values()}
    return [f"{title} ({reason}): {_few(names)}" for reason, names in groups.items()]


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ------------------------------------------------------------------------------------------------------ what is trained


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, in a fixed order: for the optimiser, the EMA and the gradient norm."""
    return [p for p in model.parameters() if p.requires_grad]


def freeze(model: nn.Module, patterns: list[str]) -> int:
    """Exclude parameters from training by name, as "blocks.0.*" or "video_*"; * matches dots too.

    Returns:
        How many numbers remain to be trained.
    Raises:
        ValueError: a pattern matches no parameter, or nothing remains.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{pattern!r} matches no parameter; there are {_few(names[:: max(1, len(names) // 6)], 8)}"
            )
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    return _trainable_size(model, f"freezing {', '.join(patterns)}")


def _trainable_size(model: nn.Module, after: str) -> int:
    size = sum(p.numel() for p in trainable(model))
    if not size:
        raise ValueError(f"nothing is left to train after {after}; freeze less")
    return size


# ----------------------------------------------------------------------------------------------------------------- LoRA


def add_lora(model: FLAV, rank: int, alpha: float | None = None) -> int:
    """Put an adapter W + alpha / rank * B A on the linears of attention and feed-forward; all else is frozen.

    B starts at zero, so the output stays as it is, bit for bit; A is drawn from torch's global generator.

    Args:
        rank: r, rows of A. alpha: None for `rank`, a scale of 1.
    Returns:
        How many numbers are trained.
    Raises:
        ValueError: the rank is below 1, or the model has an adapter already.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds, which sampling does not need

    _check_plain(model)
    if rank < 1:
        raise ValueError(f"LoRA rank {rank} is below 1; choose 4 to 64")
    alpha = rank if alpha is None else alpha
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)), model)
    return _trainable_size(model, "adding LoRA")


def merged(model: FLAV) -> FLAV:
    """A plain copy of a model with LoRA, its adapter added to its weights: what is exported and sampled from."""
    config = _lora_config(model)
    plain = _without_lora(model)
    _merge(plain, _adapter(model), config.lora_alpha / config.r)
    return plain


def save_adapter(model: FLAV, folder: Path, facts: dict) -> None:
    """Write the adapter in peft's format, and base.json: facts, architecture and checksum of what it belongs to.

    The checksum is a SHA-256 over names, shapes and float32 values of all weights of the frozen model, so it tells
    another training of the same architecture apart. The folder is complete or as it was before.

    Args:
        facts: plain numbers and strings to keep with the adapter, such as {"step": 1000, "base": "runs/a/export"}.
    Raises:
        ValueError: the model has no adapter.
    """
    config, plain = _lora_config(model), _without_lora(model)
    base = {"config": plain._hub_mixin_config, "sha256": _fingerprint(plain), "facts": facts}
    peft_facts = {**config.to_dict(), "target_modules": list(TARGETS), "inference_mode": True}
    with replaced_folder(folder) as part:
        tensors = {name: x.detach().cpu().contiguous() for name, x in _adapter(model).items()}
        weights, config_file, base_file = (part / name for name in ADAPTER_FILES)
        save_file(tensors, weights, metadata={"format": "pt"})
        config_file.write_text(json.dumps(peft_facts, indent=2, sort_keys=True))
        base_file.write_text(json.dumps(base, indent=2))


def load_adapter(model: FLAV, folder: Path) -> dict:
    """Add an adapter that `save_adapter` wrote to the weights of its base, which stays a plain FLAV.

    Args:
        model: the base in float32 or float64, as FLAV.from_pretrained gives it.
    Returns:
        The facts that were stored with the adapter.
    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the adapter belongs to another base; the model
            is as it was.
    """
    _check_plain(model)
    config, base, tensors = _read_adapter(Path(folder))
    if differs := _differences(base["config"], model._hub_mixin_config):
        raise ValueError(f"{folder} belongs to another model ({'; '.join(differs)}); load it into its own base")
    _check_adapter(model, tensors, config, folder)
    if base["sha256"] != _fingerprint(model):
        raise ValueError(
            f"{folder} was trained on other weights (facts {base['facts']}) than this model has; load it into its own "
            "base, in float32"
        )
    _merge(model, tensors, config["lora_alpha"] / config["r"])
    return base["facts"]


def _read_adapter(folder: Path) -> tuple[dict, dict, dict[str, Tensor]]:
    """peft's config, what the adapter belongs to, and its tensors; from JSON and safetensors only."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a folder that save_adapter wrote")
    weights, config, base = (folder / name for name in ADAPTER_FILES)
    try:
        return json.loads(config.read_text()), json.loads(base.read_text()), load_file(weights)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} has a damaged file ({error}); fetch or save the adapter again") from None


def _check_adapter(model: FLAV, tensors: dict[str, Tensor], config: dict, folder: Path) -> None:
    """Raise a ValueError unless the adapter is plain LoRA with exactly the tensors that this model's linears need."""
    if odd := [name for name in ("use_rslora", "alpha_pattern", "fan_in_fan_out") if config.get(name)]:
        raise ValueError(f"{folder} is a LoRA with {', '.join(odd)}, which is not merged here; merge it with peft")
    wanted, found = _adapter_shapes(model, config["r"]), {name: tuple(x.shape) for name, x in tensors.items()}
    if wanted != found:
        differs = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        raise ValueError(
            f"{folder} does not fit the linears of this model at rank {config['r']}: {_few(differs)} differ; load it "
            "into its own base"
        )


def _adapter_shapes(model: FLAV, rank: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of the tensors A (rank, in) and B (out, rank) of every adapted linear."""
    shapes = {}
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and name.rpartition(".")[2] in TARGETS:
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, linear.in_features)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (linear.out_features, rank)
    return shapes


def _adapter(model: FLAV) -> dict[str, Tensor]:
    """The adapter's tensors under the names of its file."""
    from peft import get_peft_model_state_dict

    return {PREFIX + name: x for name, x in get_peft_model_state_dict(model).items()}


@torch.no_grad()
def _merge(model: FLAV, tensors: dict[str, Tensor], scale: float) -> None:
    """W + scale * B A in every adapted linear of a plain model."""
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            weight = model.get_submodule(name.removeprefix(PREFIX).removesuffix(".lora_A.weight")).weight
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            weight += scale * (b.to(weight) @ a.to(weight))


def _without_lora(model: FLAV) -> FLAV:
    """A copy of a model with LoRA as it was before."""
    plain = copy.deepcopy(model)
    for name, layer in [*plain.named_modules()]:
        if hasattr(layer, "base_layer"):
            plain.set_submodule(name, layer.base_layer)
    del plain.peft_config
    return plain


def _fingerprint(model: FLAV) -> str:
    """SHA-256 of a plain model's weights, in float32: training in float64 from a float32 base keeps it."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode() + weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _lora_config(model: FLAV):
    if not hasattr(model, "peft_config"):
        raise ValueError("this model has no adapter; call add_lora first")
    return model.peft_config["default"]


def _check_plain(model: FLAV) -> None:
    if hasattr(model, "peft_config"):
        raise ValueError("this model has a LoRA adapter already; take merged(model), or the model before add_lora")

"""Fine-tuning: start from weights that fit only in part, and train some of them.

initialise(model, "MaverickAlex/R-FLAV-B-1-AIST")  # what fits is copied, and the report says what did not
freeze(model, ["blocks.0.*"])
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from models import load_model
from models.checkpoint import Pretrained
from pipeline.adapter import check_plain, differences, few
from pipeline.spec import AVSpec, fetch_checkpoint

CLASS_TABLES = ("video_class.weight", "audio_class.weight")
FRAME_TABLES = ("video_frame_pos", "audio_frame_pos")


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


def initialise(model: Pretrained, source: str | Path, class_names: Sequence[str] = (), part: str = "") -> Report:
    """Copy the weights of a checkpoint into a model whose classes, window or sizes may be others.

    A tensor of the same name and shape is copied. Rows of the class tables go by class name where both sides know
    names, else by number; the null label's row stays the null label's, and classes that the source does not have stay
    as drawn. Frame positions are copied as far as both windows reach and are as initialised, zero, beyond: repeating
    the last one instead gave a demo model no lower loss. All else stays as initialised.

    Args:
        source: a checkpoint folder, a released one, or a hub id; read by `models.load_model`.
        class_names: of this model's classes, where known; the source's are in its pipeline.json.
        part: what the names of the tensors that are looked at begin with, as "picture."; all if empty.
    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, it is damaged, or no tensor of it could be taken.
    """
    check_plain(model)
    if len(class_names) not in (0, model.num_classes):
        raise ValueError(f"{len(class_names)} class names do not fit {model.num_classes} classes; give one for each")
    folder = fetch_checkpoint(str(source))
    other = load_model(folder)
    if type(other) is not type(model):
        raise ValueError(f"{source} is a model of {other.system}, not of {model.system}; begin with one of the same")
    rows, how = _class_rows(model, other, class_names, _class_names(folder))
    report = Report(str(source), differences(other._hub_mixin_config, model._hub_mixin_config))
    own, given = ({name: x for name, x in of.state_dict().items() if name.startswith(part)} for of in (model, other))
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
    model: Pretrained, other: Pretrained, names: Sequence[str], other_names: Sequence[str]
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


def _by_reason(title: str, reasons: dict[str, str]) -> list[str]:
    """One line for each reason, with the first few names that share it."""
    groups = {reason: [name for name, why in reasons.items() if why == reason] for reason in reasons.values()}
    return [f"{title} ({reason}): {few(names)}" for reason, names in groups.items()]


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
            raise ValueError(f"{pattern!r} matches no parameter; there are {few(names[:: max(1, len(names) // 6)], 8)}")
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    return trainable_size(model, f"freezing {', '.join(patterns)}")


def check_frozen(model: nn.Module, report: Report | None, stage: str) -> None:
    """Raise a ValueError if a stage freezes weights that the source, if there is one, did not have in full."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    strange = [name for name in (report.left | report.resized if report else {}) if name in frozen]
    if strange:
        raise ValueError(f"{report.source} lacks {few(strange)}, which stage {stage} freezes "
                         f"({'; '.join(report.differs) or 'nothing else differs'}); give weights of this very "
                         "shape, window and classes")  # fmt: skip


def trainable_size(model: nn.Module, after: str) -> int:
    """How many numbers training changes; a ValueError if there are none `after` something was done."""
    size = sum(p.numel() for p in trainable(model))
    if not size:
        raise ValueError(f"nothing is left to train after {after}; freeze less")
    return size

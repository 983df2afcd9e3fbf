"""The checkpoints that a run goes on from: whether they fit its model, its stage, its data and each other."""

import inspect
import json
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.index import is_prepared
from models import model_class
from models.checkpoint import Pretrained
from models.codec import load_codec
from pipeline.spec import AVSpec, fetch_checkpoint


def sources_of(args: Namespace) -> list[str]:
    """The checkpoints of --init-from."""
    return [source for source in (args.init_from, *args.init_more) if source]


def check_sources(args: Namespace, kind: type[Pretrained]) -> None:
    """Raise a ValueError if checkpoints of --init-from are of another system, differ, or cannot begin the stage."""
    if len(args.init_more) > 1 or (args.init_more and args.stage not in kind.links):
        raise ValueError(f"--init-from has {1 + len(args.init_more)} checkpoints, and {args.model} in stage "
                         f"{args.stage} begins with one; two are for {', '.join(kind.links) or 'AV-Link'}")  # fmt: skip
    for source in sources_of(args):
        if (other := model_class(fetch_checkpoint(source))) is not kind:
            raise ValueError(f"{source} is a model of {other.system}, not of {kind.system}, as {args.model} is; begin "
                             "with one of the same")  # fmt: skip
        check_towers(args, kind, source)
    if args.init_more:
        check_alike(args.init_from, args.init_more[0])
    if args.stage in kind.links:
        check_trained(args, kind)
    check_codecs(args)


def check_towers(args: Namespace, kind: type[Pretrained], source: str) -> None:
    """Raise a ValueError if the towers of a checkpoint are not those of --model, which a stage is to link, or linked.

    A link serves the very towers that it was trained between, so a stage that changes one takes none along.
    """
    config = json.loads((fetch_checkpoint(source) / "config.json").read_text())
    if args.stage in kind.towers and (linked := [name for name in kind.of_linked if name in config]):
        raise ValueError(f"{source} has a link that was trained between its towers ({linked[0]} "
                         f"{config[linked[0]]!s:.12}), and stage {args.stage} would change one; begin with the "
                         "tower's own checkpoint")  # fmt: skip
    wanted = {**kind.presets[args.model], **kind.variants.get(args.variant, {})}
    differs = unlike_towers(kind, config, wanted, kind.of_towers) if args.stage in kind.links else []
    if differs:
        raise ValueError(f"{source} has towers of other sizes ({'; '.join(differs)}); link towers of --model's sizes")


def check_trained(args: Namespace, kind: type[Pretrained]) -> None:
    """Raise a ValueError if a tower that is to be linked has learnt nothing in the checkpoint it comes from."""
    sources = sources_of(args)
    trained = [kind.trained_in(fetch_checkpoint(source)) for source in sources]
    if missing := [side for side, there in zip(kind.towers.values(), trained * 2) if side not in there]:
        raise ValueError(f"{' and '.join(sources)} have no trained tower of {' and '.join(missing)}, and stage "
                         f"{args.stage} links trained ones; give two, --init-from PICTURE SOUND")  # fmt: skip


def unlike_towers(kind: type[Pretrained], there: Mapping, here: Mapping, names: Iterable[str]) -> list[str]:
    """Arguments of towers in which two architectures differ, as "hidden_size 32 there, 48 here"; None counts as 0."""
    default = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    pairs = [(name, there.get(name, default[name]), here.get(name, default[name])) for name in names]
    return [f"{name} {one} there, {two} here" for name, one, two in pairs if (one or 0) != (two or 0)]


def check_alike(one: str, two: str) -> None:
    """Raise a ValueError if two checkpoints, whose towers are to be linked, are of clips of different kinds."""
    specs = [AVSpec.load(fetch_checkpoint(source)) for source in (one, two)]
    stored = fitted(fetch_checkpoint(one)) is not None  # beside the weights, wherever it once came from
    for name in (field.name for field in fields(AVSpec)):
        here, there = (getattr(spec, name) for spec in specs)
        if here != there and name not in ("step", "class_names", *["codec_source"] * stored):
            raise ValueError(f"{one} has {name} {here!r}, {two} {there!r}; link towers that were trained on clips of "
                             "the same kind")  # fmt: skip


def check_codecs(args: Namespace) -> None:
    """Raise a ValueError if latents, of the data or of another tower, are of another fitted codec than --init-from's.

    Their facts may be the same: components that were fitted to other pictures mean something else.
    """
    if not args.init_from:
        return
    own = fitted(begun := fetch_checkpoint(args.init_from))
    prepared = [(args.data_path, args.data_path / "pipeline")] if is_prepared(args.data_path) else []
    for name, folder in [*prepared, *((source, fetch_checkpoint(source)) for source in args.init_more)]:
        other = fitted(folder)
        if own and other and own != other:
            raise ValueError(f"{name} has latents of a codec that was fitted to other pictures than the one of "
                             f"{args.init_from}; prepare the data with --codec-source {begun / 'codec'}")  # fmt: skip


def fitted(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and weights of the codec that a folder of a checkpoint, or of latents, holds; None where there is none."""
    if not (folder / "codec").is_dir():
        return None
    name = AVSpec.load(folder).codec
    return name, {key: x.tolist() for key, x in load_codec(name, None, folder / "codec").state_dict().items()}

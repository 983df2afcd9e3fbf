"""What a run of train.py begins with: its data, codecs, texts and model, or why it cannot."""

import inspect
import json
import logging
import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from data.captions import Captions
from data.clips import ClipDataset
from data.index import is_prepared
from data.prepared import PreparedDataset
from models import model_of_preset
from models.checkpoint import Pretrained
from models.codec import CODECS, VIDEO_CODECS
from models.costs import COSTS
from models.fusion import CONDITIONING_TIMES, FUSIONS, check_conditioning_times, placed
from models.system_costs import Costs
from models.text import TEXT_ENCODERS, load_text_encoder
from pipeline.avcodec import AVCodec
from pipeline.avpipeline import AVPipeline
from pipeline.clips import clip_shapes
from pipeline.dtypes import natural_dtype
from pipeline.spec import AVSpec, fetch_checkpoint
from pipeline.whole import replaced_folder
from training.draws import ClipDraws, Draws, HeldDraws
from training.encode import make_codec
from training.finetune import check_frozen, freeze, initialise
from training.link_draws import LinkDraws
from training.lora import add_lora
from training.origin import check_sources, sources_of, unlike_towers
from training.texts import Texts, encoded_texts, prepared_texts
from vocoder.autoencoder import SOUND_CODECS

TEXT = ("text_encoder", "text_source")
FACTS = (  # of the encoding
    "fps", "sample_rate", "image_size", "resize", "normalise", "channels", "n_mels", "codec", "codec_source", "sound",
    "sound_source",
)  # fmt: skip
log = logging.getLogger(__name__)


def check_names(args: Namespace) -> type[Pretrained]:
    """The class of --model, before any video is read; what it needs and takes is settled in `args`.

    Raises:
        ValueError: a model, fusion or codec does not exist, or the model has no such stage, or needs other arguments.
    """
    codecs = CODECS | VIDEO_CODECS
    registries = {"fusion": FUSIONS, "codec": codecs, "sound": SOUND_CODECS, "text_encoder": TEXT_ENCODERS}
    for name, registry in registries.items():
        if (value := getattr(args, name)) is not None and value not in registry:
            raise ValueError(f"--{name.replace('_', '-')} {value} is unknown; choose one of {', '.join(registry)}")
    kind = model_of_preset(args.model)
    for name, known, none in (
        ("variant", kind.variants, "it has none"),
        ("stage", kind.stages, "it is trained in one"),
    ):
        if (value := getattr(args, name)) is not None and value not in known:
            told = f"choose one of {', '.join(known)}" if known else f"{none}; leave it out"
            raise ValueError(f"--{name} {value} is none of {args.model}; {told}")
    if args.stage:
        kind.check_stage(args.stage, **{**kind.presets[args.model], **kind.variants.get(args.variant, {})})
    if args.stage in kind.stages_from_weights and not args.init_from:
        raise ValueError(f"--stage {args.stage} goes on from trained weights; give them with --init-from")
    settle_link(args, kind)
    if kind.links and not args.stage:
        raise ValueError(f"{args.model} is trained in stages; give --stage, one of {', '.join(kind.stages)}")
    if not kind.rolls and kind.needs_text and not args.text_encoder:
        raise ValueError(f"{args.model} follows texts; give --text-encoder words, which needs no weights, or t5")
    if args.memory and not kind.rolls:
        raise ValueError(
            f"--memory {args.memory} is of models that roll, and {args.model} makes whole clips; leave it out"
        )
    if args.lora_rank and kind.links:
        raise ValueError(f"--lora-rank {args.lora_rank} adapts all of a model, and {args.model} is trained in parts; "
                         "leave it out")  # fmt: skip
    check_sources(args, kind)
    for name, value in kind.training.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.sampling = args.sampling or kind.sampling
    args.spread = {name: value for name, value in (("mean", args.logit_mean), ("std", args.logit_std))
                   if value is not None}  # fmt: skip
    if args.spread and (kind.rolls or args.sampling != "logit"):
        raise ValueError(f"--logit-{min(args.spread)} is of times of whole clips under --sampling logit, not of "
                         f"{args.model} under {args.sampling}; leave it out")  # fmt: skip
    if args.cuts and not kind.rolls:
        raise ValueError(f"--cuts is of frames that have texts of their own, and {args.model} has one for a clip; "
                         "leave it out")  # fmt: skip
    return kind


def settle_precision(args: Namespace, kind: type[Pretrained]) -> None:
    """Put in `args` what --mixed-precision auto comes to: for a run that goes on, what it began with."""
    if args.mixed_precision != "auto":
        return
    if (before := args.experiment_dir / "run.json").is_file():
        args.mixed_precision = json.loads(before.read_text())["arguments"]["mixed_precision"]
        return
    with torch.device("meta"):
        model = kind(**kind.presets[args.model])
    fast = args.dtype == "float32" and natural_dtype(model, PartialState().device) == torch.bfloat16
    args.mixed_precision = "bf16" if fast else "no"


def settle_link(args: Namespace, kind: type[Pretrained]) -> None:
    """Where the fusion is, and the conditioning times of a stage that holds a side, are settled in `args`.

    Raises:
        ValueError: they cannot be, or nothing passes between the sides, or the stage holds none.
    """
    if args.fusion_blocks is not None:
        if "fusion_blocks" not in inspect.signature(kind).parameters:
            raise ValueError(f"--fusion-blocks {args.fusion_blocks} are of FLAV's blocks, not of {args.model}; leave "
                             "them out")  # fmt: skip
        placed(args.fusion_blocks, kind.presets[args.model]["depth"])
    if args.stage not in kind.stages_holding:
        if args.conditioning_times is not None:
            raise ValueError(f"--conditioning-times {args.conditioning_times} are of a stage that holds one side, such "
                             f"as --stage link, not of {args.model} in stage {args.stage}; leave them out")  # fmt: skip
        return
    args.conditioning_times = args.conditioning_times or list(CONDITIONING_TIMES)
    if kind.rolls or args.conditioning_times != ["uniform"]:
        check_conditioning_times(args.conditioning_times)
    if kind.rolls and not FUSIONS[args.fusion].carries:
        raise ValueError(f"--stage {args.stage} trains what passes between the sides, and with --fusion {args.fusion} "
                         "nothing does; take link or adaptor")  # fmt: skip
    if args.independent_times:
        raise ValueError(f"--independent-times {args.independent_times} draws times that --stage {args.stage} holds; "
                         "leave it out")  # fmt: skip


def open_run(args: Namespace, kind: type[Pretrained], progress: Callable) -> tuple[ClipDataset, AVCodec]:
    """The data set and the codecs of a run: made by the first process of the first run, read by all others.

    Args:
        progress: of what waits, by what it does: progress("indexing") wraps it as tqdm does.
    Raises:
        ValueError: the arguments contradict the data or the experiment's earlier runs.
    """
    dataset = open_data(args, kind, progress("indexing"))
    facts = {name: getattr(args, name) for name in (*FACTS, *TEXT)}
    facts["clip_frames"] = 0 if kind.rolls else args.predict_frames
    facts["vocoder"] = "griffin-lim" if args.vocoder == "griffin-lim" else "hifigan"
    told_classes = "num_classes" in inspect.signature(kind).parameters and not args.text_encoder
    facts["class_names"] = dataset.chosen_classes(args.num_classes) if told_classes else ()
    if args.audio_scale is not None:
        facts["audio_scale"] = args.audio_scale
    folder, wanted = args.experiment_dir / "pipeline", AVSpec(**facts)
    if not folder.is_dir():
        with replaced_folder(folder) as part:
            codec = first_codec(args, dataset, wanted, progress("reading"))
            for name, stored, value in other_facts(codec.spec, wanted, facts):
                raise ValueError(f"{args.init_from or args.data_path} has {name} {stored!r}, and the run asks for "
                                 f"{value!r}; begin with a checkpoint of such data")  # fmt: skip
            codec.save(part)
    codec = AVCodec.load(folder)
    args.audio_scale = codec.spec.audio_scale  # of what the run began with, whatever that of these latents is
    if isinstance(dataset, PreparedDataset):
        dataset.audio_scale = args.audio_scale
    for name, stored, value in other_facts(codec.spec, wanted, facts):
        raise ValueError(
            f"{folder} was made with {name} {stored!r}, not {value!r}; repeat the run's own arguments or choose "
            "another --experiment-dir"
        )
    return dataset, codec


def other_facts(spec: AVSpec, wanted: AVSpec, names: Iterable[str]) -> Iterator[tuple[str, Any, Any]]:
    """(name, what it is, what it should be) of these facts that differ."""
    pairs = ((name, getattr(spec, name), getattr(wanted, name)) for name in names)
    return (pair for pair in pairs if pair[1] != pair[2])


def open_data(args: Namespace, kind: type[Pretrained], progress: Callable, split: str = "train") -> ClipDataset:
    """The clips of a split, of videos or of prepared latents; then what decided the encoding goes into `args`.

    Raises:
        ValueError: an argument contradicts the latents.
    """
    if not is_prepared(args.data_path):
        args.predict_frames = args.predict_frames or kind.frames
        if args.cache_latents and not kind.rolls:
            raise ValueError(f"--cache-latents keeps frames, and {args.model} takes whole clips; encode them once with "
                             f"prepare.py --clip-frames {args.predict_frames}")  # fmt: skip
        how = {name: getattr(args, name) for name in
               ("image_size", "normalise", "channels", "resize", "fps", "sample_rate")}  # fmt: skip
        how |= {"context": SOUND_CODECS[args.sound].context, "progress": progress, "ages": args.memory}
        return ClipDataset(args.data_path, split, args.predict_frames, **how)
    stored = AVSpec.load(args.data_path / "pipeline")
    if bool(stored.clip_frames) == kind.rolls:
        told = "leave --clip-frames out" if kind.rolls else f"give --clip-frames, the paper's are {kind.frames}"
        is_for = f"whole clips of {stored.clip_frames} frames" if stored.clip_frames else "streams"
        raise ValueError(f"{args.data_path} was prepared for {is_for}, which {args.model} does not take; prepare "
                         f"another folder: {told}")  # fmt: skip
    args.predict_frames = args.predict_frames or stored.clip_frames or kind.frames
    dataset = PreparedDataset(args.data_path, split, args.predict_frames, args.audio_scale, args.memory)
    for name in FACTS:
        given, value = getattr(args, name), getattr(stored, name)
        if given not in (value, getattr(AVSpec(), name)):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {given} contradicts {args.data_path}, prepared with {value}; leave it out")
        setattr(args, name, value)
    return dataset


def open_texts(args: Namespace, dataset: ClipDataset, progress: Callable) -> tuple[Captions | None, Texts | None]:
    """Captions of these clips and their tokens, whose width goes into `args`; None, None without text.

    Raises:
        ValueError, FileNotFoundError: there are no captions, they were prepared otherwise, the encoder is missing, or
            the checkpoint that the run begins with reads those of another width.
    """
    if not args.text_encoder:
        return None, None
    encoder = args.text_encoder, args.text_source
    texts = prepared_texts(dataset, *encoder) if isinstance(dataset, PreparedDataset) else None
    captions = dataset.captions()
    log.info("%s: %s", dataset.split, captions.summary())
    reader = load_text_encoder(*encoder) if texts is None else texts
    check_text_width(args, reader.width)
    if texts is None:
        texts, cut = encoded_texts(captions.texts, reader, progress("reading", "batch"))
        log.info("%s", cut) if cut else None
    args.text_width = texts.width
    return captions, texts


def check_text_width(args: Namespace, width: int) -> None:
    """Raise a ValueError if the checkpoint that the run begins with reads tokens of another width than these."""
    config = fetch_checkpoint(args.init_from) / "config.json" if args.init_from else None
    theirs = json.loads(config.read_text()).get("text_width", 0) if config else 0
    if theirs not in (0, width):
        raise ValueError(f"{args.init_from} reads texts of width {theirs}, text encoder {args.text_encoder} gives "
                         f"{width}; give --text-encoder and --text-source that it was trained with")  # fmt: skip


def first_codec(args: Namespace, dataset: ClipDataset, wanted: AVSpec, progress: Callable) -> AVCodec:
    """The codecs of a new run: of the checkpoint it begins with, of its prepared latents, or made for its videos."""
    if args.init_from:  # whose weights mean nothing with others
        codec = AVPipeline.from_pretrained(args.init_from, audio_scale=args.audio_scale).codec
        stored = ("codec_source",) if codec.frames.fitted else ()  # codec/ of the checkpoint counts
        same = {name: getattr(wanted, name) for name in ("class_names", "clip_frames", *TEXT, *stored)}
        return codec.copied(replace(codec.spec, step=0, **same))
    if isinstance(dataset, PreparedDataset):
        codec = AVCodec.load(args.data_path / "pipeline")
        spec = replace(wanted, audio_scale=dataset.audio_scale)
        return AVCodec.make(spec, codec.frames, Path(args.vocoder))
    measure = args.audio_scale is None
    return make_codec(dataset, wanted, Path(args.vocoder), measure, progress=progress)


def model_config(args: Namespace, codec: AVCodec) -> dict:
    """Arguments of the model of --model for these codecs: of all that is known, what its class takes."""
    kind, own = model_of_preset(args.model), ("class_dropout_prob", "text_width", "predict_frames", "grad_ckpt",
                                              "causal_attn", "fusion", "fusion_blocks")  # fmt: skip
    known = {**{name: getattr(args, name) for name in own}, "num_classes": len(codec.spec.class_names), **codec.facts}
    known |= {"conditioning_times": held_at(args), "memory_ages": list(args.memory) or None}
    taken = inspect.signature(kind).parameters
    variant = kind.variants.get(args.variant, {})
    return {**kind.presets[args.model], **variant, **{name: value for name, value in known.items() if name in taken}}


def held_at(args: Namespace) -> list[float] | None:
    """Times at which a given picture and a given sound are held in training; None where they are drawn or none is."""
    return None if args.conditioning_times == ["uniform"] else args.conditioning_times


def make_draws(args: Namespace, codec: AVCodec, model: Pretrained, rows: range, texts: Texts | None) -> Draws:
    """What is drawn for these places of the global batch.

    Raises:
        ValueError: clips are to be cut into each other, and the model has nothing that tells them apart.
    """
    null = model.null_label if model.conditional else None
    if args.cuts and null is None:
        raise ValueError("--cuts joins clips of different classes or texts, and this model has none; leave it out")
    if args.stage in model.links:
        how = (model.links[args.stage], held_at(args), model.reinject, args.spread)
        return LinkDraws(args.seed, rows, codec.unit_shapes, null, texts, *how)
    if not model.rolls:
        pairing = math.gcd(args.batch_size, 8) if args.pairing is None else args.pairing
        how = (args.class_dropout_prob, args.sampling, args.spread, pairing, model.towers.get(args.stage))
        return ClipDraws(args.seed, rows, codec.unit_shapes, null, texts, *how)
    shapes = tuple((len(args.memory) + args.predict_frames, *shape) for shape in codec.unit_shapes)
    chances = (args.theta, args.class_dropout_prob, null, args.independent_times)
    how = (args.seed, rows, shapes, *chances, texts, args.cuts, args.memory, args.memory_noise)
    if args.stage in model.stages_holding:
        return HeldDraws(*how, conditioning_times=model.conditioning_times, carries=model.carries)
    return Draws(*how)


def run_costs(args: Namespace, codec: AVCodec, texts: Texts | None) -> Costs:
    """What a step of --model costs, by the formulas of its system, as if each caption were as long as the longest."""
    longest = texts.longest if texts else 0
    costs = COSTS[model_of_preset(args.model).system]
    return costs.of_training(model_config(args, codec), codec.unit_shapes, longest, args.stage)


def check_clips(model: Pretrained, codec: AVCodec) -> None:
    """Raise a ValueError if the clips of a run are not what its model takes: its patches do not divide them."""
    if not model.rolls:
        clip_shapes(model, codec, codec.spec.clip_frames, codec.spec.image_size, codec.spec.image_size)


def begin(args: Namespace, model: nn.Module, class_names: tuple[str, ...]) -> dict[str, str]:
    """Begin with the weights of --init-from, and choose what is trained.

    Raises:
        ValueError, FileNotFoundError: the checkpoint or a pattern does not fit.
    Returns:
        What must be as it is when the run goes on: SHA-256 of the towers, in stages of a link between them.
    """
    report = None
    sources = sources_of(args)
    for source, part in zip(sources, ("picture.", "sound.") if args.init_more else ("",)):
        report = initialise(model, source, class_names, part)
        log.info("%s", report)
        theirs = json.loads((fetch_checkpoint(source) / "config.json").read_text())
        differs = unlike_towers(type(model), theirs, model._hub_mixin_config, model.of_data)
        if args.stage in model.links and differs:
            raise ValueError(f"{source} has towers for other clips or texts ({'; '.join(differs)}); give the data and "
                             "text encoder they were trained with")  # fmt: skip
        if args.lora_rank and report.differs:
            log.warning("the adapter will fit no base, since this model is another (%s); export/ has all of it",
                        "; ".join(report.differs))  # fmt: skip
    if args.stage:
        log.info("stage %s: %s numbers are trained", args.stage, model.set_stage(args.stage))
        if not model.links:  # which freeze what does not run, too
            check_frozen(model, report, args.stage)
    if args.freeze:
        log.info("%s numbers are trained", freeze(model, args.freeze))
    if args.lora_rank:
        log.info("%s numbers are trained, of rank %s", add_lora(model, args.lora_rank), args.lora_rank)
    return model.tower_hashes() if args.stage in model.links else {}

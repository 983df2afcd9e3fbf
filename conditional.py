"""What sample_a2v.py and sample_v2a.py share: their arguments, and a film for each input."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cli

SHEET_CLIPS = 8  # clips on the contact sheet


def parse(doc: str, given: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of a script.

    Args:
        doc: of the script. given: "sound" or "picture".
    """
    parser = cli.Parser(doc.splitlines()[0])
    cli.add_checkpoint_arguments(parser)
    cli.add_sampling_arguments(parser)
    add_arguments(parser, given)
    return parser.parse_args(argv)


def add_arguments(parser: argparse.ArgumentParser, given: str) -> None:
    """What is given, how, and where the films go.

    Args:
        given: "sound" or "picture".
    """
    group = parser.add_argument_group("input and output")
    path = group.add_mutually_exclusive_group(required=True)
    path.add_argument("--input", type=Path, help=f"file with {given}, or folder with [class/]file; the folder of a "
                      "file is its class unless --classes are given, a file in none has none")  # fmt: skip
    path.add_argument("--data-path", type=Path, help="data set with SPLIT/[class/]file, instead of --input")
    group.add_argument("--split", default="test", help="which part of --data-path")
    group.add_argument("--results-dir", type=Path, default=Path("results"), help="where the films go")
    group.add_argument(
        "--video-length",
        type=cli.whole,
        default=0,
        help="frames at most per input; 0 for the whole input, which a "
        "model of whole clips makes in clips that overlap",
    )
    group.add_argument("--num-videos", type=cli.positive, help="inputs at most, of each class its share; all if "
                       "not given")  # fmt: skip
    group.add_argument("--batch-size", type=cli.positive, default=8, help="inputs sampled side by side")
    group.add_argument("--method", choices=["guide", "replace", "clean", "held", "line"],
                       help=f"guide: by the gradient of the error in the {given}; replace: without it, in half the "
                       f"time; clean: shows the model the {given} without noise, for which it must have been trained "
                       f"with --independent-times; held: the {given} nearly without noise, for a model trained with "
                       f"--stage link; line: of whole clips, the {given} on its way from noise to itself; the model's "
                       "own if not given: held or line where it can, else guide")  # fmt: skip
    if given == "sound":
        group.add_argument("--channels", choices=["mean", "first"], help="how the sound becomes mono for the model; as "
                           "in its training if not given")  # fmt: skip
    group.add_argument("--guidance-scale", type=float, default=25.0, help="of --method guide, per sample; the released "
                       "100 is divided by its batch of 4")  # fmt: skip


def sample(args: argparse.Namespace, given: str) -> None:
    """Make a film for each input that `add_arguments` describes, and put all on record.

    Raises:
        ValueError, OSError: an argument cannot be, or none of the inputs can be used.
    """
    folder = cli.output_folder(args.results_dir)
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from data.folders import by_reason
    from pipeline.conditional import (
        choose_inputs,
        conditioned_clips,
        conditioned_streams,
        examine,
        find_inputs,
        folder_labels,
        generate,
    )

    path = args.input or args.data_path / args.split
    files, unread = find_inputs(path, given)
    pipe = cli.load_pipeline(args, channels=args.channels if given == "sound" else None)
    clip = settle(args, pipe, given)
    names = pipe.spec.class_names
    chosen = args.classes or args.prompt is not None
    y = [None] * len(files) if chosen else folder_labels(files, path, names)
    files, y = choose_inputs(files, y, path, args.num_videos or len(files), args.seed)
    y = cli.conditions(args, pipe, len(files)) if chosen else y
    sys.stderr.write(cli.told_of_type(args) + cli.settle_guidance(args, pipe))
    with logging_redirect_tqdm():
        examining = partial(tqdm, unit="file", desc="examining")
        jobs, problems = examine(pipe, files, y, given, args.video_length, examining, least=clip)
    problems += unread
    how = (args.num_timesteps, args.cfg_scale, args.negative_prompt or "")
    if clip:
        make = partial(conditioned_clips, pipe, given=given, frames=clip, how=how)
    else:
        make = partial(generate, conditioned_streams(pipe, given, args.method, args.guidance_scale, *how, args.solver))
    made, began = {}, time.perf_counter()
    total = sum(job.source.frames for job in jobs)
    with tqdm(total=total, unit="frame") as bar, logging_redirect_tqdm():
        for job, frames, film in make(jobs, args.seed, args.batch_size, folder):
            bar.update(frames)
            if film:
                made[job.sample] = film.name
    seconds = time.perf_counter() - began
    records = [_record(job, made[job.sample], pipe.spec, args) for job in jobs]
    cli.write_text(folder / "samples.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    cli.write_run(folder, args, spec=asdict(pipe.spec), seconds=seconds, skipped=problems)
    _sheet(folder, records[:SHEET_CLIPS], pipe.spec)
    length = total / pipe.spec.fps
    print(f"{folder}: {len(jobs)} films, {length:.1f} s in {seconds:.1f} s, {length / seconds:.2f} x real time"
          + (f"; skipped {len(problems)} inputs: {by_reason(problems)}" if problems else ""))  # fmt: skip


def settle(args: argparse.Namespace, pipe, given: str) -> int:
    """The method that the model takes goes into `args`; frames of a clip, which an input must have, or 0 of a stream.

    Raises:
        ValueError: the model cannot do what is asked.
    """
    model = pipe.model
    if given not in model.takes:
        raise ValueError(f"{args.model_ckpt} is a model of {model.system}, which takes no {given}, only a "
                         f"{model.takes[0]}; use sample_v2a.py, or another model of r-flav")  # fmt: skip
    methods = model.methods_for(given)
    args.method = args.method or methods[0]
    if args.method not in methods:
        why = {"held": "; held is of models trained with --stage link",
               "guide": "; guide needs a model whose given side hears the made one"}.get(args.method, "")  # fmt: skip
        raise ValueError(f"--method {args.method} does not fit a model of {model.system}; take "
                         f"{' or '.join(methods)}{why}")  # fmt: skip
    if model.rolls:
        return 0
    clip = min(args.video_length or pipe.spec.clip_frames, pipe.spec.clip_frames)
    pipe.codec.frames.latent_frames(clip)
    return clip


def _record(job, file: str, spec, args: argparse.Namespace) -> dict:
    """What samples.jsonl says of a film."""
    label = {"y": job.y, "class": spec.class_names[job.y]} if job.y is not None and spec.class_names else {}
    if args.prompt is not None:
        label = {"prompt": args.prompt, "seed": args.seed, "negative": args.negative_prompt or ""}
    notes = {"notes": job.source.notes} if job.source.notes else {}
    return {"file": file, "sample": job.sample, "input": str(job.source.path), "frames": job.source.frames,
            **label, **notes}  # fmt: skip


def _sheet(folder: Path, records: list[dict], spec) -> None:
    """contact_sheet.png of the beginnings of these films, as they were written."""
    import torch

    from contact import THUMBNAILS, Clip, contact_sheets, thin_out
    from data.av import iter_frames, read_audio

    clips = []
    for record in records:
        path, count = folder / record["file"], min(record["frames"], THUMBNAILS)
        pictures = torch.stack([thin_out(frame) for frame in iter_frames(path, spec.fps, count=count)])
        wave = read_audio(path, 0, count * spec.samples_per_frame, spec.sample_rate)
        title = " ".join(filter(None, (record["file"], record.get("class"))))
        clips.append(Clip(pictures, wave, spec.fps, spec.sample_rate, title))
    contact_sheets(clips, folder / "contact_sheet.png")

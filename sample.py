"""Sample short clips of picture and sound from a checkpoint: sample_00000.mp4 and .wav, and a contact sheet.

`accelerate launch sample.py` divides the batches among processes and makes the same clips as one process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from data.prompts import Prompt, read_prompts

if TYPE_CHECKING:  # torch loads after the arguments are known to be good
    from pipeline import AVPipeline, AVSpec, Clips

SHEET_CLIPS = 8  # clips on the contact sheet


def parse(argv=None):
    p = cli.Parser(__doc__)
    cli.add_checkpoint_arguments(p)
    cli.add_sampling_arguments(p)
    p.add_argument("--results-dir", type=Path, default=Path("results"), help="where the clips go")
    p.add_argument("--video-length", type=cli.positive, help="frames per clip, 10 a second; 16 if not given, of a "
                   "model of whole clips as many as in training")  # fmt: skip
    p.add_argument("--image-size", type=picture_size, metavar="PX", help="of whole clips: 128, or 48x96 (height x "
                   "width), if not as in training")  # fmt: skip
    p.add_argument("--num-videos", type=cli.positive, help="number of clips; 8, or one a prompt, if not given")
    p.add_argument("--prompts", type=Path, help="file with a prompt a line, or .jsonl with prompt, seed, negative, "
                   "instead of --prompt; in turn")  # fmt: skip
    p.add_argument("--batch-size", type=cli.positive, default=8, help="clips sampled together")
    p.add_argument("--save-latents", action="store_true", help="write sample_00000.latents.safetensors too")
    p.add_argument("--skip-existing", action="store_true", help="go on with an interrupted run of the same arguments: "
                   "batches whose files are all there are not made again")  # fmt: skip
    args = p.parse_args(argv)
    if args.prompts and (args.prompt is not None or args.classes):
        p.error("--prompts says what every clip shows; leave --prompt and --classes out")
    return args


def picture_size(text: str) -> tuple[int, int]:
    """Type of an argument that gives a picture's side, or height x width, in pixels."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text} is no size in pixels; give 128, or 48x96 for height x width")
    return int(sides[0]), int(sides[-1])


def main(argv=None):
    args = parse(argv)
    lines = read_prompts(args.prompts) if args.prompts else []
    args.num_videos = args.num_videos or len(lines) or 8
    folder = cli.output_folder(args.results_dir)
    from tqdm import tqdm

    processes = cli.join_processes(args)
    pipe = cli.load_pipeline(args)
    args.video_length = args.video_length or pipe.spec.clip_frames or 16
    if args.image_size and pipe.model.rolls:
        raise ValueError(f"--image-size is for models of whole clips, and {args.model_ckpt} makes pictures of "
                         f"{pipe.spec.image_size} px only; leave it out")  # fmt: skip
    wishes = wished(args, pipe, lines)
    told = cli.told_of_type(args) + cli.settle_guidance(args, pipe) + cli.told_of_both(pipe)
    sys.stderr.write(told if processes.is_main_process else "")
    todo = missing_batches(args)
    processes.wait_for_everyone()  # so that all see the same folder before the first file is written
    mine, began = todo[processes.process_index :: processes.num_processes], time.perf_counter()
    with tqdm(total=sum(map(len, mine)), unit="clip", disable=not processes.is_main_process) as bar:
        for batch in mine:
            write(folder, pipe.spec, batch, generate(pipe, batch, wishes, args), args.save_latents)
            bar.update(len(batch))
    processes.wait_for_everyone()
    if processes.is_main_process:
        seconds = time.perf_counter() - began
        report(folder, args, pipe.spec, wishes, sum(map(len, todo)), seconds, processes.num_processes)
    processes.destroy_process_group()


def missing_batches(args) -> list[range]:
    """The batches of sample numbers to be made: with --skip-existing those of which any file is missing.

    A batch is made whole, since the rounding of a clip depends on the size of its batch. Files appear complete.
    """
    count, size = args.num_videos, args.batch_size
    batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
    suffixes = [".mp4", ".wav", *[".latents.safetensors"] * args.save_latents]

    def there(sample: int) -> bool:
        return all(clip_path(args.results_dir, sample).with_suffix(suffix).exists() for suffix in suffixes)

    return [batch for batch in batches if not (args.skip_existing and all(map(there, batch)))]


def clip_path(folder: Path, sample: int) -> Path:
    """The mp4 of a clip; what belongs to it has the same name."""
    return folder / f"sample_{sample:05d}.mp4"


@dataclass(frozen=True)
class Wish:
    """What a clip is to show: the label of its class or text, the seed of its noise, and what to lead away from."""

    y: int | None
    seed: int
    text: str = ""
    negative: str = ""


def wished(args, pipe: AVPipeline, lines: list[Prompt]) -> list[Wish]:
    """What each clip is to show; `lines` in turn, where there are some.

    Raises:
        ValueError: the model has no such class, or no text.
    """
    negative, count = args.negative_prompt or "", args.num_videos
    if not lines:
        y = cli.conditions(args, pipe, count) or [None] * count
        return [Wish(label, args.seed, args.prompt or "", negative) for label in y]
    lines = [lines[i % len(lines)] for i in range(count)]
    labels = pipe.label([line.text for line in lines]).tolist()
    return [Wish(y, args.seed if line.seed is None else line.seed, line.text,
                 negative if line.negative is None else line.negative) for y, line in zip(labels, lines)]  # fmt: skip


def generate(pipe: AVPipeline, batch: range, wishes: list[Wish], args) -> Clips:
    """The clips of a batch."""
    import torch

    wishes = [wishes[i] for i in batch]
    y = None if wishes[0].y is None else torch.tensor([wish.y for wish in wishes])
    seed, negative = torch.tensor([wish.seed for wish in wishes]), [wish.negative for wish in wishes]
    how = dict(seed=seed, num_timesteps=args.num_timesteps, cfg_scale=args.cfg_scale, negative=negative)
    if args.image_size:
        how["size"] = args.image_size
    if pipe.model.rolls:
        how["solver"] = args.solver
    return pipe.sample(list(batch), args.video_length, y, **how)


def write(folder: Path, spec: AVSpec, batch: range, clips: Clips, latents: bool) -> None:
    """Write the clips of a batch, each file complete or not at all."""
    from safetensors.torch import save

    from data.av import replace_older, write_clip

    for row, number in enumerate(batch):
        path = clip_path(folder, number)
        if latents:
            part = path.with_name(f".{path.stem}.latents.{os.getpid()}.part")
            part.write_bytes(save({"v": clips.v[row].cpu().contiguous(), "a": clips.a[row].cpu().contiguous()}))
            part.replace(path.with_suffix(".latents.safetensors"))
        write_clip(path, clips.frames[row], clips.wave[row], spec.fps, spec.sample_rate)
        replace_older(path, path.stem)


def report(folder: Path, args, spec: AVSpec, wishes: list[Wish], made: int, seconds: float, processes: int) -> None:
    """samples.jsonl, contact_sheet.png and run.json of all clips in the folder, and a line on the `made` new ones."""
    from contact import contact_sheets, read_clip

    records = [record(i, args.video_length, spec, wishes[i]) for i in range(args.num_videos)]
    cli.write_text(folder / "samples.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    titles = [" ".join(filter(None, (r["file"], r.get("class"), r.get("prompt")))) for r in records[:SHEET_CLIPS]]
    clips = [read_clip(folder / r["file"], spec.fps) for r in records[:SHEET_CLIPS]]
    contact_sheets([replace(clip, title=title) for clip, title in zip(clips, titles)], folder / "contact_sheet.png")
    cli.write_run(folder, args, spec=asdict(spec), seconds=seconds, made=made, processes=processes)
    film = made * args.video_length / spec.fps
    print(f"{folder}: {made} clips, {film:.1f} s of film in {seconds:.1f} s, {film / seconds:.2f} x real time")


def record(sample: int, frames: int, spec: AVSpec, wish: Wish) -> dict:
    """What samples.jsonl says of a clip."""
    said = {"prompt": wish.text, "seed": wish.seed, "negative": wish.negative}
    label = {} if wish.y is None else {"y": wish.y, "class": spec.class_names[wish.y]} if spec.class_names else said
    return {"file": clip_path(Path(), sample).name, "sample": sample, "frames": frames, **label}


if __name__ == "__main__":
    cli.run(main)

"""Sample short clips of picture and sound from a checkpoint: sample_00000.mp4 and .wav, and a contact sheet."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import cli

SHEET_CLIPS = 8  # clips on the contact sheet


def parse(argv=None):
    p = cli.Parser(__doc__)
    cli.add_checkpoint_arguments(p)
    cli.add_sampling_arguments(p)
    p.add_argument("--results-dir", type=Path, default=Path("results"), help="where the clips go")
    p.add_argument("--video-length", type=cli.positive, default=16, help="frames per clip, 10 a second")
    p.add_argument("--num-videos", type=cli.positive, default=8, help="number of clips")
    p.add_argument("--batch-size", type=cli.positive, default=8, help="clips sampled together")
    p.add_argument("--save-latents", action="store_true", help="write sample_00000.latents.safetensors too")
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    folder = cli.output_folder(args.results_dir)
    import torch  # after the arguments are known to be good, like all that takes seconds
    from tqdm import tqdm

    from contact import Clip, contact_sheets

    pipe = cli.load_pipeline(args)
    y = cli.labels(args.classes, pipe.spec.class_names, args.num_videos)
    records, sheet, began = [], [], time.perf_counter()
    with tqdm(total=args.num_videos, unit="clip") as bar:
        for first in range(0, args.num_videos, args.batch_size):
            samples = list(range(first, min(first + args.batch_size, args.num_videos)))
            batch_y = None if y is None else torch.tensor([y[i] for i in samples])
            how = dict(seed=args.seed, num_timesteps=args.num_timesteps, cfg_scale=args.cfg_scale)
            clips = pipe.sample(samples, args.video_length, batch_y, **how)
            for row, sample in enumerate(samples):
                records.append(write(folder, pipe.spec, clips, row, sample, y, args.save_latents))
                if sample < SHEET_CLIPS:
                    title = records[-1]["file"] + (f"  {records[-1]['class']}" if y else "")
                    sheet.append(Clip(clips.frames[row].cpu(), clips.wave[row].cpu(), pipe.spec.fps,
                                      pipe.spec.sample_rate, title))  # fmt: skip
                bar.update()
    seconds = time.perf_counter() - began
    cli.write_text(folder / "samples.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    contact_sheets(sheet, folder / "contact_sheet.png")
    cli.write_run(folder, args, spec=asdict(pipe.spec), seconds=seconds)
    film = args.num_videos * args.video_length / pipe.spec.fps
    print(
        f"{folder}: {args.num_videos} clips, {film:.1f} s of film in {seconds:.1f} s, {film / seconds:.2f} x real time"
    )


def write(folder: Path, spec, clips, row: int, sample: int, y: list[int] | None, latents: bool) -> dict:
    """Write one clip of a batch and return what samples.jsonl says of it."""
    from safetensors.torch import save_file

    from data.av import write_clip

    path = folder / f"sample_{sample:05d}.mp4"
    write_clip(path, clips.frames[row], clips.wave[row], spec.fps, spec.sample_rate)
    if latents:
        pair = {"v": clips.v[row].cpu().contiguous(), "a": clips.a[row].cpu().contiguous()}
        save_file(pair, path.with_suffix(".latents.safetensors"))
    label = {} if y is None else {"y": y[sample], "class": spec.class_names[y[sample]]}
    return {"file": path.name, "sample": sample, "frames": len(clips.frames[row]), **label}


if __name__ == "__main__":
    cli.run(main)

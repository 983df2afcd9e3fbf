"""Encode a folder of videos once: latents and mel in float16, which train.py reads instead of videos.

`accelerate launch prepare.py` divides the files among processes. The same command goes on where it was interrupted,
encodes what is new, changed or damaged, and writes nothing if there is no such file.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from data.folders import by_reason, printable

if TYPE_CHECKING:  # torch loads after the arguments are known to be good
    from data.captions import Captions
    from data.clips import ClipDataset
    from pipeline import AVCodec
    from training.prepare import Comparison, Prepared

SHOWN = 4  # training files on the contact sheet


def parse(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--data-path", type=Path, required=True, help="folder with train/[class/]file.mp4, and test/ if any")
    p.add_argument("--out", type=Path, required=True, help="folder that gets the latents, pipeline/ and prepared.json")
    p.add_argument("--clip-frames", type=cli.whole, default=0, help="encode whole clips of so many frames, which "
                   "overlap by half, for a model of clips; 0 for streams, frame by frame")  # fmt: skip
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best there is if not given")
    p.add_argument("--seed", type=cli.whole, default=0, help="of the choice of files on the contact sheet")
    cli.add_encoding_arguments(p)
    args = p.parse_args(argv)
    if args.normalise == "clip":
        p.error("--normalise clip scales each clip by its own peak, but files are encoded before clips are cut; "
                "leave it out, or train on the videos themselves")  # fmt: skip
    if args.out.resolve() == args.data_path.resolve():
        p.error(f"--out {args.out} is the folder of the videos; choose another for the latents")
    if (out := printable(str(args.out))) != str(args.out):
        p.error(f"--out {out} is not UTF-8, which safetensors asks of paths; choose another folder")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    cli.output_folder(args.out)
    from accelerate.utils import gather_object
    from tqdm import tqdm

    from training.prepare import facts_of, known_problems, prepare_file, remove_parts

    began, cpu = time.perf_counter(), time.process_time()
    processes = cli.join_processes(args)
    if processes.is_main_process:
        remove_parts(args.out)
    check_text(args, before := earlier(args.out))
    with processes.main_process_first():
        splits, codec, names, captions = find(args)
    share_cores(codec.to(device(args, processes)))
    facts = facts_of(codec)
    check_weights(args.out, facts, before)
    text = read_texts(args, captions) if processes.is_main_process else None
    known = known_problems(before)
    jobs = [(dataset, entry) for dataset in splits.values() for entry in dataset.entries]
    mine = range(processes.process_index, len(jobs), processes.num_processes)
    processes.wait_for_everyone()  # so that all have read the index before it is written
    results = [(i, prepare_file(*jobs[i], codec, args.out, facts, known))
               for i in tqdm(mine, unit="file", disable=not processes.is_main_process)]  # fmt: skip
    results = [result for _, result in sorted(gather_object(results), key=lambda pair: pair[0])]
    spent = sum(gather_object([time.process_time() - cpu]))
    if processes.is_main_process:
        codec.spec = replace(codec.spec, class_names=names)
        cost = {"seconds": time.perf_counter() - began, "cpu_seconds": spent, "processes": processes.num_processes}
        print(finish(args, splits, results, codec, facts, before, cost, captions, text))
    processes.wait_for_everyone()
    processes.destroy_process_group()


def find(args) -> tuple[dict[str, ClipDataset], AVCodec, tuple[str, ...], dict[str, Captions]]:
    """The videos of each split, the codecs with audio scale 1, the class names, and with text each split's captions.

    Raises:
        ValueError: the arguments contradict the data, each other or the folder's earlier runs.
    """
    from pipeline import AVSpec
    from training.prepare import SAME, find_splits, open_codec

    wanted = AVSpec(normalise=args.normalise, **{name: getattr(args, name) for name in SAME})
    splits = find_splits(args.data_path, wanted, cli.bar("indexing"))
    train = splits["train"]
    names = train.chosen_classes(args.num_classes)
    captions = {split: dataset.captions() for split, dataset in splits.items()} if args.text_encoder else {}
    codec = open_codec(args.out / "pipeline", wanted, train, cli.bar("reading"))
    codec.spec = replace(codec.spec, audio_scale=1.0)
    return splits, codec, names, captions


def device(args, processes):
    """The device asked for, or that of this process.

    Raises:
        ValueError: it cannot be used.
    """
    import torch

    asked = args.device or processes.device
    cli.check_device(asked)
    return torch.device(asked)


def share_cores(codec: AVCodec) -> None:
    """One thread where no network runs: its kernels are too short to be worth waiting for another.

    OMP_NUM_THREADS overrules it.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and not any(True for part in codec.networks for _ in part.parameters()):
        torch.set_num_threads(1)


def earlier(out: Path) -> dict | None:
    """The index that an earlier run finished with."""
    from data.index import is_prepared, load_prepared

    return load_prepared(out) if is_prepared(out) else None


def check_weights(out: Path, facts: dict, before: dict | None) -> None:
    """Raise a ValueError if an earlier run encoded with other weights."""
    if before and before["facts"] != facts:
        names = [name for name, value in facts.items() if before["facts"].get(name) != value]
        raise ValueError(
            f"{out} was prepared with another {names[0]}; repeat its own arguments or choose another --out"
        )


def check_text(args, before: dict | None) -> None:
    """Raise a ValueError if the encoder does not exist, or an earlier run read captions with another."""
    from models.text import TEXT_ENCODERS

    if args.text_encoder and args.text_encoder not in TEXT_ENCODERS:
        raise ValueError(f"--text-encoder {args.text_encoder} is unknown; choose one of {', '.join(TEXT_ENCODERS)}")
    said = (before or {}).get("text")
    if said and (said["encoder"], said["source"]) != (args.text_encoder, args.text_source):
        raise ValueError(f"{args.out} was prepared with text encoder {said['encoder']}; repeat its own arguments or "
                         "choose another --out")  # fmt: skip


def finish(
    args,
    splits: dict[str, ClipDataset],
    results: list[Prepared],
    codec: AVCodec,
    facts: dict,
    before: dict | None,
    cost: dict,
    captions: dict[str, Captions],
    text: tuple[dict, str] | None,
) -> str:
    """Write what belongs to all files, the index last; returns the line for the terminal."""
    from data.index import INDEX
    from training.prepare import make_index, remove_strays, update_spec

    index = make_index(splits, results, codec, facts)
    if text:
        add_texts(index, captions, text[0])
    encoded = sum(result.encoded for result in results)
    files, size = (sum(total[key] for total in index["totals"].values()) for key in ("files", "bytes"))
    skipped = [(e["path"], e["reason"]) for split in index["splits"].values() for e in split["skipped"]]
    found = f"{args.out}: {files} files, {size / 1e6:.1f} MB, skipped {by_reason(skipped)}{text[1] if text else ''}"
    update_spec(args.out / "pipeline", replace(codec.spec, audio_scale=index["audio_scale"]))
    if index == before and not encoded:
        return f"{found}; all were prepared before, so nothing is written"
    cost |= {"files": files, "encoded": encoded, "skipped": len(skipped), "bytes": size}
    quality = report(args, splits, results, index, cost)
    show(args, splits["train"], index, codec)
    remove_strays(args.out, index)
    cli.write_json(args.out / INDEX, index)
    share = cost["cpu_seconds"] / cost["seconds"]
    return f"{found}; encoded {encoded} in {cost['seconds']:.1f} s, CPU {share:.0%}, PSNR {quality:.1f} dB"


def read_texts(args, captions: dict[str, Captions]) -> tuple[dict, str] | None:
    """Encode the captions of all splits, once each: what the index says of them, and what the last line does.

    Raises:
        FileNotFoundError: the encoder's weights cannot be had.
    """
    from training.texts import prepare_texts

    if not captions:
        return None
    texts = sorted({text for found in captions.values() for text in found.texts})
    how = (args.text_encoder, args.text_source, cli.bar("reading", "batch"))
    said, cut = prepare_texts(args.out, texts, *how)
    told = ", ".join(f"{split} {found.summary()}" for split, found in captions.items())
    return said, f"; {told}" + f"; {cut}" * bool(cut)


def add_texts(index: dict, captions: dict[str, Captions], said: dict) -> None:
    """Put captions into an index, by their place among all."""
    index["text"], place = said, {text: i for i, text in enumerate(said["captions"])}
    for split, found in captions.items():
        for entry in index["splits"][split]["files"]:
            file = printable(entry["path"])
            entry["captions"] = [place[found.texts[i]] for i in found.of_file[file]]
            if file in found.spans:
                entry["spans"] = [span and list(span) for span in found.spans[file]]


def report(args, splits: dict[str, ClipDataset], results: list[Prepared], index: dict, cost: dict) -> float:
    """report.json: cost, how well the latents give each data set back, what was skipped; returns its PSNR (dB)."""
    from training.prepare import summary

    usable = {split: [r for r in results if r.split == split and not r.problem] for split in splits}
    quality = {split: summary(files, index["facts"].get("clip_frames", 0)) for split, files in usable.items() if files}
    skipped = [{"split": split, "path": e["path"], "reason": e["reason"]}
               for split, found in index["splits"].items() for e in found["skipped"]]  # fmt: skip
    record = {"arguments": vars(args), "machine": cli.machine(), **cost,
              "cpu_share": cost["cpu_seconds"] / cost["seconds"], "psnr_db": quality["train"]["psnr_db"],
              "mel_max_db": quality["train"]["mel_max_db"], "quality": quality, "skipped_files": skipped}  # fmt: skip
    cli.write_json(args.out / "report.json", record)
    return record["psnr_db"]


def show(args, train: ClipDataset, index: dict, codec: AVCodec) -> None:
    """contact_sheet.png of some training files."""
    from training.prepare import compare

    usable = {e["path"] for e in index["splits"]["train"]["files"]}
    entries = [entry for entry in train.entries if entry.path in usable]
    chosen = sorted(random.Random(args.seed).sample(range(len(entries)), min(SHOWN, len(entries))))
    sheet([compare(train, entries[i], codec, args.out) for i in chosen], codec, args.out / "contact_sheet.png")


def sheet(compared: list[Comparison], codec: AVCodec, path: Path) -> None:
    """Videos, and below each what its latents and its sound's give back."""
    from contact import Clip, contact_sheets

    rates, clips = (codec.spec.fps, codec.spec.sample_rate), []
    for c in compared:
        sound = codec.decode_sound(c.a[None].to(codec.device))[0].cpu()
        clips += [Clip(c.frames, c.wave, *rates, c.path),
                  Clip(c.decoded, sound, *rates, f"{c.path}, from its latents: {c.psnr:.1f} dB")]  # fmt: skip
    contact_sheets(clips, path)


if __name__ == "__main__":
    cli.run(main)

"""What prepare.py brings: seconds per item with and without it, and whether a training step ever waits for data.

    python benchmarks/loader.py --out benchmarks/results/loader_demo.json

On synthetic balls (64 px, patch-pca, 64 mel bins, as the demo's). Items of the videos (decoding only: the codec still
has to encode them) and of the latents are read in turn, at the same random places, with warm caches and one thread.
Then a training step of --step-ms, which only waits as for a GPU, takes batches from a DataLoader: of latents; of
latents, through a thread that is a batch ahead, as that of pin_memory is where there is a GPU; and the same of items
that are in memory, whose waits are of torch and of other work on this machine. In turn, medians of 5.
"""

from __future__ import annotations

import json
import os
import queue
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli

SIZE, MELS = 64, 64
ROUNDS = 5  # of training steps


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--files", type=cli.positive, default=300, help="training videos")
    p.add_argument("--frames", type=cli.positive, default=32, help="of each video")
    p.add_argument("--clip-frames", type=cli.positive, default=10, help="of an item")
    p.add_argument("--items", type=cli.positive, default=20, help="read of each kind in a round")
    p.add_argument("--rounds", type=cli.positive, default=15, help="of videos and latents in turn")
    p.add_argument("--batch-size", type=cli.positive, default=16, help="clips of a training step")
    p.add_argument("--steps", type=cli.positive, default=200, help="training steps")
    p.add_argument("--step-ms", type=cli.positive, default=20, help="length of a training step")
    p.add_argument("--workers", type=cli.whole, default=2, help="of the DataLoader")
    p.add_argument("--seed", type=cli.whole, default=0, help="of the videos and of the places")
    p.add_argument("--out", type=Path, default=cli.ROOT / "benchmarks/results/loader_demo.json", help="JSON file")
    args = p.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with TemporaryDirectory() as work:
        result = measure(args, Path(work))
    method = " ".join(__doc__.split("\n\n")[2].split())
    record = {"method": method, "machine": cli.machine(), "load_average": load, "arguments": vars(args)}
    cli.write_json(args.out, {**record, **result})


def measure(args, work: Path) -> dict:
    """All figures."""
    from data.clips import ClipDataset
    from data.prepared import PreparedDataset
    from data.synthetic import write_dataset
    from pipeline import AVCodec

    write_dataset(work / "videos", args.files, 0, args.frames, args.seed)
    ClipDataset(work / "videos")  # makes the index, which is needed with and without latents
    preparing = prepare(work / "videos", work / "latents")
    print(preparing, flush=True)
    videos = ClipDataset(work / "videos", "train", args.clip_frames, SIZE, context=AVCodec.context)
    latents = PreparedDataset(work / "latents", "train", args.clip_frames)
    items = compare(videos, latents, args)
    print(items, flush=True)
    memory = [latents[0]] * len(latents)
    kinds = {"latents": (latents, False), "latents_ahead": (latents, True), "memory_ahead": (memory, True)}
    runs = [[train(*kind, args) for kind in kinds.values()] for _ in range(ROUNDS)]
    loading = {kind: median(of) for kind, of in zip(kinds, zip(*runs))}
    print(loading, flush=True)
    return {"prepare": preparing, "items": items, "loader": loading}


def median(runs: list[dict]) -> dict:
    """The figures of several runs."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def prepare(videos: Path, latents: Path) -> dict:
    """Run prepare.py: seconds, CPU share and bytes by its own report."""
    cli.call("prepare.py", "--data-path", videos, "--out", latents, "--codec", "patch-pca", "--image-size", SIZE,
             "--n-mels", MELS, "--device", "cpu")  # fmt: skip
    report = json.loads((latents / "report.json").read_text())
    source = sum(path.stat().st_size for path in videos.rglob("*.mp4"))
    keys = ("files", "seconds", "cpu_seconds", "cpu_share", "bytes", "psnr_db", "mel_max_db")
    return {**{key: report[key] for key in keys}, "source_bytes": source}


def compare(videos, latents, args) -> dict:
    """Milliseconds per item of both data sets, by the clock and of CPU: medians over rounds, and their ratio."""
    rng = random.Random(args.seed)
    seconds = {"video": [], "latent": []}
    cpu = {"video": [], "latent": []}
    for _ in range(args.rounds):
        places = [rng.randrange(len(videos)) for _ in range(args.items)]
        for kind, data in (("video", videos), ("latent", latents)):
            clock, process = time.perf_counter(), time.process_time()
            for i in places:
                data[i]
            seconds[kind].append((time.perf_counter() - clock) / args.items)
            cpu[kind].append((time.process_time() - process) / args.items)
    by_clock, by_cpu = ({kind: 1000 * statistics.median(x) for kind, x in of.items()} for of in (seconds, cpu))
    ratios = sorted(v / a for v, a in zip(seconds["video"], seconds["latent"]))
    return {"ms": by_clock, "cpu_ms": by_cpu, "ratio": statistics.median(ratios), "ratio_least": ratios[0],
            "ratio_cpu": by_cpu["video"] / by_cpu["latent"]}  # fmt: skip


def ahead(batches: Iterator) -> Iterator:
    """The batches, fetched by a thread while the last one is used."""
    waiting = queue.Queue(1)

    def fetch():
        for batch in batches:
            waiting.put(batch)
        waiting.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    return iter(waiting.get, None)


def train(data, fetch_ahead: bool, args) -> dict:
    """Share of the time after the first batch that a step is busy, and not waiting for its batch."""
    from torch.utils.data import DataLoader

    from data.order import ClipOrder

    order = ClipOrder(len(data), args.batch_size, args.seed, 0, args.steps + 1, 0, 1)
    batches = iter(DataLoader(data, batch_sampler=order, num_workers=args.workers))
    batches = ahead(batches) if fetch_ahead else batches
    next(batches)  # the workers have started
    waits, began = [], time.perf_counter()
    for _ in range(args.steps):
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
        time.sleep(args.step_ms / 1000)
    total = time.perf_counter() - began
    wait, longest = 1000 * statistics.median(waits), 1000 * max(waits)
    return {"busy": 1 - sum(waits) / total, "wait_ms_median": wait, "wait_ms_longest": longest}


if __name__ == "__main__":
    cli.run(main)

"""How the benchmarks measure: both sides in turn in one process, medians, ratios with spread, the machine's own limit.

Every script here writes one JSON record: what was run on what, how it was measured, and rows that say how long our
side took, how long the other side took beside it, and which share of the machine's matrix products that is.
"""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import cli

RESULTS = Path(__file__).parent / "results"
WAYS = ("compiled", "graphs", "compiled+graphs")  # to sample, beside the eager one
DTYPES = ("float32", "bfloat16", "float64")
METHOD = (
    "After the warm-up the sides run in turn in one process, A B A B; seconds are medians, ratios medians and "
    "quartiles of the ratios of neighbouring runs. A GPU is waited for before and after each run. The ceiling is the "
    "best of repeated products of two square matrices in the dtype and with the threads of the run; the share of it "
    "counts linear maps, attention and convolutions for the frames in our calls, as if nothing came from a table."
)


def add_arguments(parser: cli.Parser, repeats: int = 10) -> None:
    """How to measure, and where the figures go: for every script here."""
    group = parser.add_argument_group("measuring")
    group.add_argument("--device", default="cpu", help="cpu or cuda")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model")
    group.add_argument("--threads", type=cli.positive, default=1, help="of the CPU")
    group.add_argument("--warmup", type=cli.whole, default=1, help="runs of each side before the timed ones")
    group.add_argument("--repeats", type=cli.positive, default=repeats, help="timed runs of each side at most")
    group.add_argument("--seconds", type=float, default=30, help="after which no further round begins; one is made")
    group.add_argument("--seed", type=cli.whole, default=0, help="of the weights and inputs")
    group.add_argument("--out", type=Path, help="JSON file for the figures")


def add_model_arguments(parser: cli.Parser, model: str, whole: bool = True) -> None:
    """Which model: for the scripts that take a preset; whole: with its fusion, compiled or not."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=model, help="preset; FLAV-tiny has the shapes of the demo")
    if whole:
        group.add_argument("--fusion", choices=["none", "a", "b", "c"], default="c", help="between the branches")
        group.add_argument("--compile", action="store_true", help="compile our blocks; needs a few runs of --warmup")
    group.add_argument("--latent-size", type=cli.positive, help="side of a latent; if not given 32 of 4 channels, for "
                       "FLAV-tiny 8 of 12 channels")  # fmt: skip
    group.add_argument("--predict-frames", type=cli.positive, help="frames in the window; if not given 10, for "
                       "FLAV-tiny 8")  # fmt: skip


def add_ways(parser: cli.Parser, *ways: str) -> None:
    """More sides of ours, for the scripts that have them."""
    parser.add_argument("--also", nargs="+", choices=ways, default=[], help="sides of ours beside the plain one: "
                        "compiled blocks need a few runs of --warmup, graphs need CUDA")  # fmt: skip


def begin(args):
    """Set threads and seed; device and dtype of the run, as torch has them, and the ceiling there, FLOP/s.

    Raises:
        ValueError: the device cannot be used.
    """
    import torch

    from training.ceiling import matmul_ceiling

    cli.check_device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    return device, dtype, matmul_ceiling(device, dtype)


def alternate(sides: dict[str, Callable], args, device) -> dict[str, list[float]]:
    """Seconds of each run of each side, the sides in turn; by name, in the order of the rounds."""
    from training.ceiling import seconds_of

    for _ in range(args.warmup):
        for run in sides.values():
            run()
    seconds, began, rounds = {name: [] for name in sides}, time.perf_counter(), 0
    while rounds == 0 or (rounds < args.repeats and time.perf_counter() - began < args.seconds):
        for name, run in sides.items():
            seconds[name].append(seconds_of(run, device))
        rounds += 1
    return seconds


def compared(what: str, seconds: dict[str, list[float]], ours: str, other: str | None = None, **more) -> dict:
    """A row: medians of two sides, and how many times longer the other takes, as a median with quartiles.

    Args:
        seconds: of `alternate`. ours, other: the names of the sides in it; without `other` the row has ours alone.
    """
    row = {"what": what, "ours": ours, "ours_s": statistics.median(seconds[ours]), "runs": len(seconds[ours])}
    if other:
        ratios = [b / a for a, b in zip(seconds[ours], seconds[other])]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        row |= {"other": other, "other_s": statistics.median(seconds[other])}
        row |= {"ratio": statistics.median(ratios), "ratio_quartiles": [quartiles[0], quartiles[2]]}
    return {**row, **more}


def share(flops: float, seconds: float, ceiling: float) -> dict:
    """What a row says of the machine's limit: operations, and the share of the ceiling at which they were done."""
    return {"flops": flops, "share_of_ceiling": flops / seconds / ceiling}


def counted_flops(run: Callable) -> int:
    """Operations of a call as torch counts them, for what models/costs.py has no formula for."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # CPU's fused kernel is not counted
        run()
    return counter.get_total_flops()


def peak_gib(device) -> float:
    """Largest memory so far: of torch's allocator on a GPU, of the process on a CPU, GiB."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_peaks(sides: dict[str, Callable], device) -> dict[str, float]:
    """GiB that torch's allocator holds at most while each side runs once more; nothing on a CPU."""
    import torch

    from training.ceiling import seconds_of

    peaks = {}
    for name, run in sides.items() if device.type == "cuda" else ():
        torch.cuda.reset_peak_memory_stats(device)
        seconds_of(run, device)
        peaks[name] = peak_gib(device)
    return {"gpu_peak_gib": peaks} if peaks else {}


def resident_gib(process: int | str = "self") -> float:
    """Memory of this process now, or of another by its number, GiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def report(script: str, args, method: str, device, rows: list[dict], **facts) -> None:
    """Print the rows as a table, and write the record where --out says.

    Args:
        script: its file. method: what it does beyond `METHOD`.
    """
    import torch

    from training.ceiling import data_sheet_flops, device_name

    record = {
        "benchmark": Path(script).stem,
        "method": f"{' '.join(method.split())} {METHOD}",
        "command": sys.argv,
        "arguments": vars(args),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": cli.machine(),
        "device": device_name(device),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in cli.PACKAGES},
        "data_sheet_flops": data_sheet_flops(device_name(device), getattr(torch, args.dtype)),
        **facts,
        "rows": rows,
    }
    print(table([record]))
    if args.out:
        cli.output_folder(args.out.parent)
        here = f"{cli.ROOT}/"  # where the project lies on this machine tells nobody anything
        cli.write_json(args.out, json.loads(json.dumps(record, default=str).replace(here, "")))


def table(records: list[dict]) -> str:
    """All rows of some records in Markdown; `ratio` is how many times longer the other side takes."""
    head = ["benchmark", "what", "ours", "other side", "ratio (quartiles)", "of ceiling", "note"]
    lines = [head, ["---"] * len(head)]
    lines += [cells(record["benchmark"], row) for record in records for row in record["rows"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(benchmark: str, row: dict) -> list[str]:
    """A line of the table; what a row does not have leaves its cell empty."""
    ours, other = (f"{row[side]} {seconds_text(row[f'{side}_s'])}" if side in row else "" for side in ("ours", "other"))
    ratio = "{:.2f} ({:.2f}-{:.2f})".format(row["ratio"], *row["ratio_quartiles"]) if "ratio" in row else ""
    limit = f"{row['share_of_ceiling']:.2f}" if "share_of_ceiling" in row else ""
    return [benchmark, row["what"], ours, other, ratio, limit, row.get("note", "")]


def seconds_text(seconds: float) -> str:
    """Seconds, in ms where they are short."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

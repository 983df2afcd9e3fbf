"""Run the whole suite of speed benchmarks, and make one table of what it left: `make bench`.

    python benchmarks/summary.py
    python benchmarks/summary.py --device cuda --dtype bfloat16 --model FLAV-B/1
    python benchmarks/summary.py --no-run

Each benchmark is run as a user would, one after the other; a JSON file of its own is what the table is made of.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

DEMO = cli.ROOT / "runs/demo/export"
LEGEND = (
    "`ratio` is how many times longer the other side takes than ours: the median over rounds in which both run in "
    "turn, with its quartiles. `of ceiling` is the share of the machine's measured matrix products. The JSON files "
    "beside this one have method, machine, versions and command of every row; `make bench` makes them."
)
OFFICIAL = {  # how many times as fast as the official code ours is
    "16-frame clip, FLAV-S/2, float32": 1.54,
    "forward, FLAV-S/2, float32": 1.05,
    "forward, FLAV-S/2, bfloat16": 1.79,
    "training step, FLAV-S/2, float32": 1.21,
    "first frame, a small model, float32": 3.9,
    "A2V with guidance, float32": 1.05,
}
QUOTED = (
    "Quoted, not measured by `make bench`: this repository holds none of the official code. Both alternated in one "
    "process with the same weights, on one thread of an AMD EPYC with avx512_bf16, before the changes of November 2026."
)


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--model", default="FLAV-S/2", help="preset that is measured beside the demo's")
    p.add_argument("--model-ckpt", type=Path, default=DEMO, help="checkpoint of the demo, for the stream")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--dtype", choices=timing.DTYPES, default="float32", help="of the models")
    p.add_argument("--threads", type=cli.positive, default=1, help="of the CPU")
    p.add_argument("--only", nargs="+", default=[], help="names of JSON files whose benchmarks are run, without suffix")
    p.add_argument("--run", action=argparse.BooleanOptionalAction, default=True, help="measure; else only the table")
    p.add_argument("--out", type=Path, default=timing.RESULTS, help="where JSON files and summary.md go")
    args = p.parse_args(argv)
    cli.output_folder(args.out)
    plan = suite(args)
    if strange := sorted(set(args.only) - plan.keys()):
        p.error(f"--only {strange[0]} is none of {', '.join(plan)}")
    failed = [name for name, command in plan.items() if args.run and wanted(args, name) and not ran(name, command)]
    text = summary([path for name in plan if (path := args.out / f"{name}.json").is_file()])
    cli.write_text(args.out / "summary.md", text)
    print(text)
    if failed:
        sys.exit(f"{len(failed)} of {len(plan)} benchmarks failed: {', '.join(failed)}")


def suite(args) -> dict[str, list]:
    """Name of the JSON file -> the command that writes it."""
    device = args.device.partition(":")[0]
    big = args.model.lower().replace("flav-", "flav_").replace("/", "")
    how = ["--device", args.device, "--dtype", args.dtype, "--threads", args.threads]
    stream = ["--model-ckpt", args.model_ckpt] if has_checkpoint(args) else ["--model", "FLAV-tiny"]
    long = (
        ["--switches"] if device == "cuda" else ["--batch-sizes", 1, "--no-switches", "--warmup", 0]
    )  # minutes on a CPU
    commands = {
        f"forward_{big}": ["forward.py", "--model", args.model],
        "forward_flav_tiny": ["forward.py", "--model", "FLAV-tiny", "--repeats", 100],
        f"train_step_{big}": ["train_step.py", "--model", args.model, "--no-grad-ckpt"],
        "train_step_flav_tiny": ["train_step.py", "--model", "FLAV-tiny", "--batch-size", 16, "--no-grad-ckpt"],
        f"sample_clip_{big}": ["sample_clip.py", "--model", args.model, *long],
        "sample_clip_flav_tiny": ["sample_clip.py", "--model", "FLAV-tiny"],
        "stream_demo": ["stream.py", *stream],
        "vocoder": ["vocoder.py"],
        "codec": ["codec.py"],
        f"fusion_{big}": ["fusion.py", "--model", args.model],
    }
    return {f"{name}_{device}": [*command, *how, "--out", args.out / f"{name}_{device}.json"]
            for name, command in commands.items()}  # fmt: skip


def has_checkpoint(args) -> bool:
    """Whether the demo has left a checkpoint; says so where it has not."""
    found = (args.model_ckpt / "config.json").is_file()
    if args.run and not found:
        print(f"{args.model_ckpt} is no checkpoint (make demo leaves one): the stream has random weights", flush=True)
    return found


def wanted(args, name: str) -> bool:
    """Whether a benchmark is to be run."""
    return not args.only or name in args.only


def ran(name: str, command: list) -> bool:
    """Run one benchmark; whether it succeeded. Its last line says why where it did not."""
    print(f"{name} ...", flush=True)
    command = [sys.executable, cli.ROOT / "benchmarks" / command[0], *command[1:]]
    done = subprocess.run([str(part) for part in command], cwd=cli.ROOT, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} failed: {cli.last_words(done) or 'no word'}", flush=True)
    return done.returncode == 0


def summary(paths: list[Path]) -> str:
    """The table of some records, and what they were measured on."""
    records = [json.loads(path.read_text()) for path in paths]
    machines = sorted({machine(record) for record in records})
    parts = ["# Speed", "", *(f"- {line}" for line in machines), "", LEGEND, "", timing.table(records), "", *official()]
    return "\n".join([*parts, ""])


def official() -> list[str]:
    """Lines of the table beside the official code."""
    rows = [f"| official | {what} | {ratio:.2f} |" for what, ratio in OFFICIAL.items()]
    return [
        "## Beside the official code",
        "",
        QUOTED,
        "",
        "| other side | what | ratio |",
        "| --- | --- | ---: |",
        *rows,
    ]


def machine(record: dict) -> str:
    """What a record was measured on."""
    where = record["machine"] if record["device"] == "cpu" else f"{record['device']}, host {record['machine']}"
    return f"{where}; {record['threads']} CPU thread(s), {record['dtype']}, torch {record['versions']['torch']}"


if __name__ == "__main__":
    cli.run(main)

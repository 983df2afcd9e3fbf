"""Tables of R-FLAV (1.A, 1.B, 2, 3), SyncFlow (1 to 3), AV-Link (1, 3) for any data and checkpoints, rows made anew.

    python benchmarks/tables.py fusions --checkpoints a=A/export b=B/export c=C/export --real DATA --out tables
    python benchmarks/tables.py windows --checkpoints 5=W5/export 10=W10/export 20=W20/export --real DATA --out tables
    python benchmarks/tables.py steps --checkpoints R-FLAV=C/export --real DATA --out tables
    python benchmarks/tables.py conditional --checkpoints R-FLAV=C/export --real DATA --out tables
    python benchmarks/tables.py syncflow --checkpoints SyncFlow-VGG=S/export --prompts P.txt --real DATA --out tables
    python benchmarks/tables.py avlink-v2a --checkpoints AV-Link=L/export --real DATA --out tables
    python benchmarks/tables.py avlink-a2v --checkpoints AV-Link=L/export --real DATA --out tables

Rows come from sample.py, sample_a2v.py, sample_v2a.py and evaluate.py, run as a user would, with the options given
after --sample and --evaluate; a run goes on where it was interrupted. OUT/TABLE.md and OUT/TABLE.json hold what was
measured and, as a table of its own with its source, what the paper's says: other clips, and FAD of other sounds.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli

TITLES = {
    "fusions": "Table 1.A: fusion blocks",
    "windows": "Table 1.B: frames in the window",
    "steps": "Table 2: steps per frame, and others",
    "conditional": "Table 3: sound to picture, picture to sound",
    "syncflow": "SyncFlow, Tables 1 to 3: text to both, picture to sound",
    "avlink-v2a": "AV-Link, Table 1: picture to sound",
    "avlink-a2v": "AV-Link, Table 3: sound to picture",
}
PAPER = cli.ROOT / "docs/paper_tables.json"
QUOTED = {  # paper, and how the name of its table begins
    "fusions": ("R-FLAV", "table_1a"), "windows": ("R-FLAV", "table_1b"), "steps": ("R-FLAV", "table_2"),
    "conditional": ("R-FLAV", "table_3"), "syncflow": ("SyncFlow", "stated"),
    "avlink-v2a": ("AV-Link", "table_1"), "avlink-a2v": ("AV-Link", "table_3"),
}  # fmt: skip
STEPS = (2, 10, 20)
GIVEN = {"A2V": "sample_a2v.py", "V2A": "sample_v2a.py"}
ALONE = {"avlink-v2a": GIVEN["V2A"], "avlink-a2v": GIVEN["A2V"]}  # tables of one script


def main(argv=None) -> None:
    p = cli.Parser(__doc__)
    p.add_argument("table", choices=TITLES, help="which one")
    p.add_argument("--checkpoints", nargs="+", required=True, metavar="ROW=PATH", help="checkpoint of each row")
    p.add_argument("--real", type=Path, required=True, help="data set whose test videos are the real ones")
    p.add_argument("--prompts", type=Path, help="of rows that begin with text: file with a prompt a line")
    p.add_argument("--num", type=cli.positive, default=2048, help="clips of a row")
    p.add_argument("--quoted", type=Path, default=PAPER, help="JSON with the paper's tables")
    p.add_argument("--sample", default="", help="more options of the sampling script, as one string")
    p.add_argument("--evaluate", default="--metrics fvd kvd fad", help="options of evaluate.py, as one string")
    p.add_argument("--seed", type=cli.whole, default=0, help="seed of the noise")
    p.add_argument("--out", type=Path, default=Path("results/tables"), help="where rows and tables go")
    args = p.parse_args(argv)
    if strange := [text for text in args.checkpoints if "=" not in text]:
        p.error(f"--checkpoints {strange[0]} is not ROW=PATH; give e.g. c=RUN/export")
    if (args.table == "syncflow") != bool(args.prompts):
        p.error("--prompts belongs to the table syncflow, and to no other; " + ("leave it out" if args.prompts else
                "give a file with a prompt a line"))  # fmt: skip
    title, theirs = TITLES[args.table], quoted(args.quoted, args.table)
    rows = [measured(args, *row) for row in plan(args.table, args.checkpoints, args.prompts)]
    cli.write_json(
        args.out / f"{args.table}.json", {"table": title, "rows": rows, "quoted": theirs, "machine": cli.machine()}
    )
    text = f"{title}, measured\n\n{markdown(rows)}\n{title}, quoted\n\n{markdown(theirs)}"
    cli.write_text(args.out / f"{args.table}.md", text)
    print(text)


def plan(table: str, checkpoints: list[str], prompts: Path | None = None) -> list[tuple[str, str, list[str]]]:
    """(row, sampling script, its options) of a table."""
    named = [text.split("=", 1) for text in checkpoints]
    if table == "steps":
        return [(f"{name}, n = {n}", "sample.py", ["--model-ckpt", path, "--num-timesteps", str(n)])
                for name, path in named for n in STEPS]  # fmt: skip
    if table == "conditional":
        return [(f"{name}, {task}", script, ["--model-ckpt", path]) for name, path in named
                for task, script in GIVEN.items()]  # fmt: skip
    if table == "syncflow":
        rows = (("text to both", "sample.py", ["--prompts", str(prompts)]), ("V2A", GIVEN["V2A"], []))
        return [(f"{name}, {task}", script, ["--model-ckpt", path, *how]) for name, path in named
                for task, script, how in rows]  # fmt: skip
    return [(name, ALONE.get(table, "sample.py"), ["--model-ckpt", path]) for name, path in named]


def measured(args, row: str, script: str, options: list[str]) -> dict:
    """Sample and evaluate one row, unless it has been."""
    folder = args.out / args.table / "".join(c if c.isalnum() else "_" for c in row)
    films, found = folder / "films", folder / "metrics.json"
    options = [*options, "--num-videos", args.num, "--results-dir", films, "--seed", args.seed, *args.sample.split()]
    options += ["--data-path", args.real] if script in GIVEN.values() else ["--skip-existing"]
    if not (films / "run.json").exists():
        cli.call(script, *options)
    if not found.exists():
        cli.call("evaluate.py", "--fake", films, "--real", args.real, "--num", args.num, "--results-dir", folder,
             *args.evaluate.split())  # fmt: skip
    figures = json.loads(found.read_text())["figures"]
    seconds = json.loads((films / "run.json").read_text())["seconds"]
    unsure = [figure["name"] for figure in figures if figure.get("warning")]  # evaluations of before have none
    return {
        "row": row,
        "figures": {figure["name"]: figure["value"] for figure in figures},
        "notes": sorted({figure["note"] for figure in figures if "not comparable" in figure["note"]})
        + [f"not told from real: {', '.join(unsure)}"] * bool(unsure),
        "clips": figures[0]["fake"],
        "sampling_seconds": seconds,
        "source": "measured",
    }


def quoted(path: Path, table: str) -> list[dict]:
    """The rows of the paper's table; None where it leaves a figure open. Figures of its prose are a row each.

    Raises:
        ValueError: the file lacks the table or its source, or a row is not as long as the columns.
    """
    whose, begins = QUOTED[table]
    try:
        paper = json.loads(path.read_text())[whose]
        name = next(name for name in paper if name.startswith(begins))
        columns, source = paper[name].pop("columns", ["stated"]), f"quoted: {paper['source']}"
        rows = {row: values if isinstance(values, list) else [values] for row, values in _flat(paper[name]).items()}
        return [{"row": row, "figures": dict(zip(columns, values, strict=True)), "source": source}
                for row, values in rows.items()]  # fmt: skip
    except (OSError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no {begins} of {whose} ({error}); give a file like {PAPER}") from None


def _flat(rows: dict) -> dict:
    """Rows that stand in groups, with the group behind their names."""
    parts = ({f"{row}, {name}": x for row, x in part.items()} if isinstance(part, dict) else {name: part}
             for name, part in rows.items())  # fmt: skip
    return {row: values for part in parts for row, values in part.items()}


def markdown(rows: list[dict]) -> str:
    """A table with a column per figure."""
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    lines = [["row", *names, "clips", "source"], ["---"] * (len(names) + 3)]
    for row in rows:
        cells = [_cell(row["figures"].get(name), row["source"]) for name in names]
        lines.append([row["row"], *cells, str(row.get("clips", "")), "; ".join([row["source"], *row.get("notes", [])])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: float | str | None, source: str) -> str:
    """Four digits of what was measured; what is quoted as it stands there."""
    return "" if value is None else f"{value:.4g}" if source == "measured" else str(value)


if __name__ == "__main__":
    cli.run(main)

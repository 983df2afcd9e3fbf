"""Is there a jump where pre-rolling ends (paper, Fig. 5)? Frames that pre-rolling made against as many after them.

    python benchmarks/jump.py --films demo runs/demo/clips_c_norm --films "no fusion" runs/demo/clips_none
    python benchmarks/jump.py --films demo runs/demo0/clips_c_norm runs/demo1/clips_c_norm --out jump.json

Each --films takes a name and the folders of films of balls that belong together, one for each seed. The first three
windows of T frames of each film are judged by themselves; real balls, judged alike, stand beside them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.events import RATE, look
from benchmarks.layout import cell, table

WINDOWS = 3  # windows of T frames that are judged: the first one is that of pre-rolling
REAL = 192  # real films that are judged alike
OF = ("change", "f1", "motion")
HEAD = ("films", "what", "pre-rolled", *(f"{k}. window" for k in range(2, WINDOWS + 1)), "second less first (95 %)",
        "by seed")  # fmt: skip
NAMES = {"change": "change from frame to frame, grey levels", "f1": "event F1", "motion": "motion error"}


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--films", nargs="+", action="append", required=True, metavar=("NAME", "FOLDER"), help="films of a "
                   "kind, a folder for each seed")  # fmt: skip
    p.add_argument("--predict-frames", type=cli.positive, default=8, help="window of the model")
    p.add_argument("--out", type=Path, help="JSON file for the figures")
    args = p.parse_args(argv)
    for name, *folders in args.films:
        if lacking := [folder for folder in folders if not any(Path(folder).rglob("*.mp4"))] or not folders:
            p.error(f"--films {name}: there are no films in {lacking if folders else 'no folder'}; give their folders")
    T = args.predict_frames
    found = {"real": judged([real(WINDOWS * T)], T)}
    for name, *folders in args.films:
        found[name] = judged([look(Path(folder), WINDOWS * T) for folder in folders], T)
    print(table(HEAD, [line for name, figures in found.items() for line in lines(name, figures)]))
    if args.out:
        cli.output_folder(args.out.parent)
        cli.write_json(args.out, {"machine": cli.machine(), "command": sys.argv, "figures": found})


def real(length: int) -> list[tuple]:
    """(frames, wave) of balls that are rendered."""
    from data.synthetic import TEST_START, draw_clip, render, sound

    clips = [draw_clip(0, TEST_START + k) for k in range(REAL)]
    return [(render(clip, length), sound(clip, length, RATE)) for clip in clips]


def judged(seeds: Sequence[list[tuple]], T: int) -> dict:
    """Figures of each window over the films of all seeds, and how they differ from the first to the second.

    Args:
        seeds: (frames, wave) of the films of each seed. T: frames of a window.
    """
    import numpy as np

    from benchmarks.memory_drift import mean, pieces, threshold
    from metrics.sync import bootstrap_f1, f1

    loud = threshold()
    seen = [[pieces(frames.numpy(), wave.numpy(), None, loud, T) for frames, wave in films] for films in seeds]
    films = [film for some in seen for film in some]
    found = {"films": len(films)}
    for of, key in (("change", "change"), ("motion", "flight")):
        values = [np.array([[window[key] for window in film] for film in some], dtype=float) for some in seen]
        steps = [(x[:, 1] - x[:, 0])[np.isfinite(x[:, 1] - x[:, 0])] for x in values]
        by_window = np.concatenate(values).T
        found[of] = {"windows": [mean(x[np.isfinite(x)]) for x in by_window], "step": mean(np.concatenate(steps)),
                     "by_seed": [float(x.mean()) for x in steps if len(x)]}  # fmt: skip
    counts = [[film[k]["counts"] for film in films] for k in range(WINDOWS)]
    by_seed = [[f1([film[k]["counts"] for film in some]) for k in range(2)] for some in seen]
    found["f1"] = {"windows": [{"value": f1(x), "interval": bootstrap_f1(x)} for x in counts],
                   "by_seed": [after - before for before, after in by_seed]}  # fmt: skip
    return found


def lines(name: str, found: dict) -> list[list[str]]:
    """Rows of the table."""
    rows = []
    for of in OF:
        x = found[of]
        step = cell(x["step"]) if "step" in x else ""
        seeds = ", ".join(f"{value:+.2f}" for value in x["by_seed"]) if len(x["by_seed"]) > 1 else ""
        rows.append([f"{name}, {found['films']}", NAMES[of], *map(cell, x["windows"]), step, seeds])
    return rows


if __name__ == "__main__":
    cli.run(main)

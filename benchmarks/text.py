"""Does R-FLAV follow a text? Colour and event F1 on captioned balls: known phrasings, new ones, and after a switch.

    python benchmarks/text.py --seeds 0 1 2 --out benchmarks/results/text_balls.json

The demo's model, trained by texts in the place of classes (configs/balls/text.args). A clip's colour is that of most of
its frames. The switch is a film of red that turns blue: "turned" is the share of its films whose frames are all blue
from one window after the switch on.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.events import FRAMES, LENGTH, RATE, colour, look, parser, prompts_of, score, share
from demo import SAMPLING

TRAINING = cli.ROOT / "configs/balls/text.args"
BATCH = 24  # clips sampled together
SWITCH, END, WINDOW = 24, 48, 8  # frames


def main(argv=None) -> None:
    p = parser(__doc__, "text_balls.json")
    p.add_argument("--steps", type=cli.positive, default=4000, help="of every training")
    p.add_argument("--films", type=cli.positive, default=24, help="that switch")
    args = p.parse_args(argv)
    from data.synthetic import write_dataset

    with TemporaryDirectory() as work:
        data = Path(work) / "data"
        write_dataset(data, args.train, args.clips, LENGTH, args.seed, captions=True)
        runs = [measure(args, seed, data, Path(work) / f"seed_{seed}") for seed in args.seeds]
    facts = {key: value for key, value in vars(args).items() if key != "out"}
    cli.write_json(args.out, {"machine": cli.machine(), **facts, "training": TRAINING.read_text(), "runs": runs})


def measure(args, seed: int, data: Path, work: Path) -> dict:
    """All figures of one training."""
    began, real = time.perf_counter(), look(data / "test")
    length = ("--max-steps", args.steps, "--ckpt-every", args.steps)
    cli.call("train.py", f"@{TRAINING}", "--data-path", data, "--experiment-dir", work / "run", *length, "--seed", seed)
    seconds = time.perf_counter() - began
    result = {"seed": seed, "training_seconds": round(seconds, 1)}
    for split in ("train", "test"):
        films, colours = clips(args, seed, split, work)
        result[split] = {**score(films, real), "colour": share(colours)}
    result["switch"] = switch(args, seed, real, work)
    print(json.dumps({"seed": seed, **{name: result[name] for name in ("train", "test", "switch")}}))
    return result


def sampled(script: str, seed: int, work: Path, name: str, *how) -> list[tuple]:
    """(frames, wave) of the films that a script makes."""
    settings = ("--model-ckpt", work / "run/export", "--results-dir", work / name, "--seed", seed, "--device", "cpu")
    cli.call(script, *settings, *SAMPLING.split(), *how)
    return look(work / name, None)


def clips(args, seed: int, split: str, work: Path) -> tuple[list[tuple], list[bool]]:
    """Clips by the phrasings of a split, all colours in turn, and whether each has its colour."""
    from data.synthetic import BALLS

    file = work / f"{split}.txt"
    file.write_text("\n".join(prompts_of(split, args.clips)))
    how = ("--prompts", file, "--video-length", FRAMES, "--batch-size", BATCH)
    films = sampled("sample.py", seed, work, f"films_{split}", *how)
    return films, [colour(frames) == i % len(BALLS) for i, (frames, _) in enumerate(films)]


def switch(args, seed: int, real: list[tuple], work: Path) -> dict:
    """Films of red that turn blue: F1 of both halves, and the share that is blue one window later and stays so."""
    from data.synthetic import BALLS, FPS, ball_class, captions_of

    blue, _, red = BALLS
    schedule = f"0:{captions_of(red, 'train')[0]},{SWITCH}:{captions_of(blue, 'train')[0]}"
    how = ("--prompt-schedule", schedule, "--num-videos", args.films, "--frames", END)
    films, at = sampled("sample_long.py", seed, work, "switch", *how), SWITCH * RATE // FPS
    turned = [all(ball_class(frames[SWITCH + WINDOW :]) == BALLS.index(blue)) for frames, _ in films]
    before = [colour(frames[:SWITCH]) == BALLS.index(red) for frames, _ in films]
    halves = [(frames[:SWITCH], wave[:at]) for frames, wave in films], [(f[SWITCH:], wave[at:]) for f, wave in films]
    red_half, blue_half = (score(half, real) for half in halves)
    return {"before": red_half, "after": blue_half, "red": share(before), "turned": share(turned)}


if __name__ == "__main__":
    cli.run(main)

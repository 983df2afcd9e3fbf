"""Compare two folders of videos: FVD, KVD, FID, FAD, CLAP, KL, IS, onset accuracy, synchrony, long ones, memorisation.

`accelerate launch evaluate.py` divides the clips among processes. What was computed is kept and not computed again.
Other uses: --sweep (quality against time), --user-study and --tally (people choose).
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from functools import partial
from importlib import metadata
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from data.folders import nearest_path
from evaluation.questions import SETS

if TYPE_CHECKING:  # torch loads after the arguments are known to be good
    from evaluation.measures import Measure
    from evaluation.setting import Result, Setting
    from evaluation.videos import Folder

METRICS = ("fvd", "kvd", "fvd12", "fid", "fad", "sync", "long", "loops", "memorisation", "clap", "clap-sound", "kl",
           "onset-acc", "inception")  # fmt: skip
PAPER = 2048  # clips a side
PACKAGES = (*cli.PACKAGES, "torchvision", "scipy", "librosa", "opencv-python-headless", "lpips", "transformers")


def parse(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--fake", type=Path, help="folder with generated videos")
    p.add_argument("--real", type=Path, help="folder with real videos, or a data set of which --split is taken")
    p.add_argument("--train", type=Path, help="data set trained on, for memorisation")
    p.add_argument("--split", default="test", help="of a data set given as --real")
    p.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=["fvd", "kvd", "fad", "sync"],
        help="what to measure; fad, "
        "long, clap-sound, kl and onset-acc compare with real sounds and are left out, which is told, where --real has "
        "none",
    )
    p.add_argument("--num", "--num-clips", type=cli.positive, default=PAPER, help="clips of 16 frames on either side, "
                   "spread over files; torchrun takes --num for its own, so give it the longer name")  # fmt: skip
    p.add_argument("--allow-fewer", action="store_true", help="go on when a folder has fewer")
    p.add_argument(
        "--features",
        choices=["pretrained", "random"],
        default="pretrained",
        help="random: all networks filled by a stated rule, without weights; figures compare with nothing",
    )
    p.add_argument("--i3d-weights", type=Path, default=Path("weights/i3d_pretrained_400.pt"), help="for FVD, KVD and "
                   "FVD12")  # fmt: skip
    p.add_argument("--audioclip-weights", type=Path, default=Path("weights/AudioCLIP-Full-Training.pt"), help="for FAD")
    p.add_argument("--fid-weights", type=Path, default=Path("weights/pt_inception-2015-12-05-6726825d.pth"),
                   help="for FID: the Inception of 1008 classes, not torchvision's")  # fmt: skip
    p.add_argument("--clap", default="laion/clap-htsat-unfused", help="directory or hub id of a CLAP of transformers: "
                   "clap (a sound and its prompt), clap-sound (a sound and the real one); or random")  # fmt: skip
    p.add_argument("--tagger", default="MIT/ast-finetuned-audioset-10-10-0.4593", help="directory or hub id of an "
                   "audio classifier of transformers: kl, inception; or random")  # fmt: skip
    p.add_argument(
        "--antialias", action="store_true", help="when frames shrink to 64 px; published figures are without"
    )
    p.add_argument("--predict-frames", type=cli.positive, default=10, help="window of the model, whose frames "
                   "pre-rolling makes")  # fmt: skip
    p.add_argument("--onset-tolerance", type=cli.finite, default=0.1, help="largest distance in s of a generated and "
                   "a real onset that agree, of onset-acc")  # fmt: skip
    p.add_argument("--batch-size", type=cli.positive, default=8, help="clips in a network at once")
    p.add_argument("--results-dir", type=Path, default=Path("results/evaluation"), help="where metrics.json and "
                   "report.html go")  # fmt: skip
    p.add_argument("--cache", type=Path, default=Path.home() / ".cache/rflav/features", help="where features are kept")
    p.add_argument("--device", help="cpu, cuda; the best there is if not given")
    p.add_argument("--seed", type=cli.whole, default=0, help="of the choice of clips and of the "
                   "subsets that intervals are made of")  # fmt: skip
    more = p.add_argument_group("other uses")
    more.add_argument("--sweep", nargs="+", action="append", metavar=("OPTION", "VALUE"), help="sample with each value "
                      "of an option of sample.py, as num_timesteps 0.5 1 2 5, and measure each; given again, as "
                      "--sweep solver euler ab2, each with each, a curve a value")  # fmt: skip
    more.add_argument("--model-ckpt", help="checkpoint to sweep")
    more.add_argument("--user-study", nargs=2, type=Path, metavar=("A", "B"), help="write a page on which people "
                      "choose between the videos of two folders")  # fmt: skip
    more.add_argument("--questions", choices=SETS, default="r-flav", help="of the user study: those of a paper's")
    more.add_argument(
        "--pairs", type=cli.positive, help="of the user study, at most; if not given 20, and AV-Link's 50"
    )
    more.add_argument("--tally", nargs="+", type=Path, metavar=("KEY", "FORM"), help="count the forms that came back")
    args = p.parse_args(argv)
    if not (args.user_study or args.tally):
        check(p, args)
    return args


def check(p: cli.Parser, args) -> None:
    """What --help cannot say of the arguments."""
    if args.sweep and (min(map(len, args.sweep)) < 2 or not args.model_ckpt):
        p.error("--sweep takes an option of sample.py and its values, and --model-ckpt; give e.g. num_timesteps 1 2 5")
    if args.sweep and len({option.lstrip("-").replace("_", "-") for option, *_ in args.sweep}) < len(args.sweep):
        p.error("--sweep names an option twice; give all of its values at once")
    if not args.sweep and not args.fake:
        p.error("--fake is missing; give the folder with generated videos")
    if not args.real:
        p.error("--real is missing; give a folder with real videos")
    for path in filter(None, (args.fake, args.real, args.train)):
        if not path.is_dir():
            p.error(f"{path} is no folder{nearest_path(path)}; give one with videos")
    if args.onset_tolerance <= 0:
        p.error(f"--onset-tolerance {args.onset_tolerance:g} lets no onsets agree; give seconds above 0, such as 0.1")
    if "memorisation" in args.metrics and not args.train:
        p.error("memorisation compares with the videos trained on; give --train")
    if "clap" in args.metrics and args.sweep:
        p.error("--sweep samples without prompts, and clap compares with them; leave one of them out")


def main(argv=None):
    args = parse(argv)
    if args.tally:
        return count_votes(args)
    if args.user_study:
        from evaluation.study import write_study

        asked = SETS[args.questions]
        pairs = write_study(*args.user_study, args.results_dir, args.pairs, args.seed, asked)
        fewer = f" of {asked.pairs}" if args.pairs is None and pairs < asked.pairs else ""
        return print(f"{args.results_dir}: {pairs}{fewer} pairs; hand out the folder to {asked.voters} voters or more, "
                     f"keep {args.results_dir}.key.json")  # fmt: skip
    cli.output_folder(args.results_dir)
    cli.output_folder(args.cache)
    return sweep(args) if args.sweep else evaluate(args)


def evaluate(args) -> None:
    """Measure the generated videos and write all there is to say."""
    processes = cli.join_processes(args)
    setting, chosen = prepare(args, processes, args.fake)
    result, seconds = measure(setting, chosen)
    if processes.is_main_process:
        write(args, setting, result, seconds)
    processes.destroy_process_group()


def prepare(args, processes, fake: Path) -> tuple[Setting, dict[str, Measure]]:
    """Look at folders and weights: all that can be wrong is said before long work.

    Raises:
        ValueError, OSError: a folder has too few clips, weights are missing, or the device cannot be used.
    """
    from tqdm import tqdm

    from evaluation.measures import left_out, measures
    from evaluation.setting import Setting
    from evaluation.videos import find_videos

    bar = partial(tqdm, disable=not processes.is_main_process, unit="clip")
    chosen = {name: measure for name, measure in measures().items() if name in args.metrics}
    extractors = networks(args, chosen, str(processes.device) if args.device is None else args.device)
    looked = {"progress": partial(bar, desc="looking"), "seed": args.seed}
    real = find_videos(args.real, args.split, False, **looked)
    if said := left_out(chosen, real):
        chosen = {name: measure for name, measure in chosen.items() if not measure.compares}
        if processes.is_main_process:
            print(said, file=sys.stderr)
    sound = any(measure.sound for measure in chosen.values())
    folders = [find_videos(fake, args.split, sound, **looked), real.heard() if sound else real]
    folders.append(find_videos(args.train, "train", sound, **looked) if args.train else None)
    for folder in folders[:2]:
        enough(folder, args)
    how = (args.cache, processes, args.batch_size, args.seed, bar, args.predict_frames, args.onset_tolerance)
    setting = Setting(*folders, args.num, extractors, *how)
    for one in chosen.values():
        one.check(setting)
    return setting, chosen


def networks(args, chosen: dict[str, Measure], device: str) -> dict:
    """The networks that the measures need, with their weights, by class."""
    from evaluation.features import Motion

    cli.check_device(device)
    files = {"i3d": args.i3d_weights, "i3d12": args.i3d_weights, "fid_inception": args.fid_weights,
             "audioclip": args.audioclip_weights, "audioclip_compat": args.audioclip_weights,
             "clap": args.clap, "tagger": args.tagger}  # fmt: skip
    made = {}
    for kind in {network: None for measure in chosen.values() for network in measure.networks}:
        how = {"antialias": args.antialias} if issubclass(kind, Motion) else {}
        try:
            file = None if "random" in (args.features, files[kind.name]) else files[kind.name]
            made[kind] = kind(file, device, **how)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, or give --features random to try the rest without") from None
    return made


def enough(folder: Folder, args) -> None:
    """Refuse a folder with fewer clips than asked for, unless they are allowed."""
    from evaluation.videos import FPS, FRAMES, told

    found = len(folder.clips(args.num))
    if found < args.num and not args.allow_fewer:
        why = f" ({len(folder.problems)} files cannot be used: {told(folder.problems)})" if folder.problems else ""
        raise ValueError(
            f"{folder.path} has {found} clips of {FRAMES} frames at {FPS} fps, not {args.num}{why}; "
            f"give --num {found}, or --allow-fewer"
        )


def measure(setting: Setting, chosen: dict[str, Measure]) -> tuple[Result, dict[str, float]]:
    """All measures in one result, and the seconds that each took."""
    from evaluation.setting import Result

    whole, seconds = Result([]), {}
    for name, one in chosen.items():
        began = time.perf_counter()
        result = one.run(setting)
        whole += result
        seconds[name] = time.perf_counter() - began
    return whole, seconds


def record(setting: Setting, result: Result, seconds: dict[str, float], left: list[str]) -> dict:
    """What metrics.json says; what is no number there is null. `left`: measures that were asked for and left out."""
    networks = {
        name: {**found.facts, "computed": found.computed, "cached": found.cached,
               "seconds_per_clip": found.seconds_per_clip, "seconds_of_2048_here": found.seconds_per_clip
               and found.seconds_per_clip * PAPER, "seconds_of_2048_on_a_gpu": None}
        for name, found in setting.extracted.items()
    }  # fmt: skip
    folders = {name: folder.facts() for name in ("fake", "real", "train") if (folder := getattr(setting, name))}
    for name in ("fake", "real"):  # of training videos all are looked at
        folders[name] |= getattr(setting, name).chosen(setting.num)
    return {
        "figures": _finite([asdict(figure) for figure in result.figures]),
        "data": _finite(result.data),
        "folders": folders,
        "features": networks,
        "seconds": seconds,
        "left_out": left,
        "processes": setting.processes.num_processes,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "machine": cli.machine(),
    }


def _finite(value):
    """NaN and infinity as None, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(args, setting: Setting, result: Result, seconds: dict[str, float]) -> None:
    """metrics.json, plots, report.html, run.json, and the table on the terminal."""
    from evaluation.report import page, save_plots, table

    left = [name for name in args.metrics if name not in seconds]
    found = record(setting, result, seconds, left)
    cli.write_json(args.results_dir / "metrics.json", found)
    save_plots(result.plots, args.results_dir)
    networks = (f"{name}: weights {facts['weights_sha256']}" for name, facts in found["features"].items())
    facts = {
        **{name: _said(folder) for name, folder in found["folders"].items()},
        "networks": ", ".join(networks),
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "seconds": ", ".join(f"{name} {s:.0f}" for name, s in seconds.items()),
        **({"left out, for want of real sounds": ", ".join(left)} if left else {}),
        "machine": found["machine"],
    }
    cli.write_text(args.results_dir / "report.html", page(result, facts))
    cli.write_run(args.results_dir, args, seconds=sum(seconds.values()))
    print(table(result.figures))
    warn(result)
    print(f"{args.results_dir}: metrics.json, report.html")


def warn(result: Result) -> None:
    """Which figures say nothing, and why."""
    for figure in filter(lambda figure: figure.warning, result.figures):
        print(f"warning: {figure.warning}", file=sys.stderr)


def _said(folder: dict) -> str:
    from data.folders import by_reason

    files = len(set(folder.get("chosen", ())))
    chosen = f" ({files} chosen by {folder['chosen_by']})" if 0 < files < folder["videos"] else ""
    rates, sizes = ", ".join(f"{rate:g}" for rate in folder["fps"]), ", ".join(folder["sizes"])
    skipped = by_reason(folder["problems"])
    return f"{folder['path']}: {folder['videos']} videos{chosen}, {sizes} px, {rates} fps; skipped {skipped}"


def sweep(args) -> None:
    """Sample with each value, measure each, and plot quality against seconds."""
    from evaluation.plots import against_seconds

    options, points, rows = [option.lstrip("-").replace("_", "-") for option, *_ in args.sweep], {}, []
    processes = cli.join_processes(args)
    for values in product(*(values for _, *values in args.sweep)):
        asked = dict(zip(options, values))
        films = args.results_dir / "_".join(f"{option}_{value.replace('/', '-')}" for option, value in asked.items())
        if processes.is_main_process:
            sampled(args, films, *chain(*asked.items()))
        processes.wait_for_everyone()
        setting, chosen = prepare(args, processes, films)
        result, _ = measure(setting, chosen)
        if processes.is_main_process:
            warn(result)
        made = json.loads((films / "run.json").read_text())
        each = made["seconds"] / made["made"]
        rows.append({**asked, "seconds_per_clip": each, "figures": [asdict(figure) for figure in result.figures]})
        curve = ", ".join(f"{option} {value}" for option, value in list(asked.items())[1:])
        for figure in result.figures:
            points.setdefault(figure.name, {}).setdefault(curve, []).append((each, figure.value, values[0]))
    if processes.is_main_process:
        found = {"option": options[0], "curves": options[1:], "rows": _finite(rows), "machine": cli.machine()}
        cli.write_json(args.results_dir / "sweep.json", found)
        against_seconds(points).savefig(args.results_dir / "sweep.png")
        for row in rows:
            figures = ", ".join(f"{figure['name']} {figure['value']:.4g}" for figure in row["figures"])
            asked = ", ".join(f"{option} {row[option]}" for option in options)
            print(f"{asked}: {row['seconds_per_clip']:.3f} s a clip, {figures}")
    processes.destroy_process_group()


def sampled(args, films: Path, *asked: str) -> None:
    """Run sample.py as a user would, unless an earlier sweep did.

    Args:
        asked: an option and its value, and so on.
    Raises:
        ValueError: it failed, and its last line says why; or the films there are of another checkpoint, seed or number.
    """
    if (films / "run.json").exists():
        there = json.loads((films / "run.json").read_text())["arguments"]
        asked = {"model_ckpt": args.model_ckpt, "num_videos": args.num, "seed": args.seed}
        if other := {name: there.get(name) for name, value in asked.items() if there.get(name) != value}:
            raise ValueError(f"{films} holds films of {other}; give another --results-dir, or remove it")
        return
    device = ["--device", args.device] if args.device else []
    options = [f"--{one}" if i % 2 == 0 else one for i, one in enumerate(asked)]
    try:
        cli.call("sample.py", "--model-ckpt", args.model_ckpt, "--num-videos", args.num, *options,
                 "--results-dir", films, "--seed", args.seed, *device)  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{' '.join(options)}: {error}") from None


def count_votes(args) -> None:
    """Tally forms and write tally.json beside the key."""
    from evaluation.study import table, tally

    key, *forms = args.tally
    result = tally(key, forms)
    cli.write_json(key.with_suffix(".tally.json"), result)
    print(table(result))


if __name__ == "__main__":
    cli.run(main)

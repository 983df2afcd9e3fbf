"""The demo: learn bouncing balls and their pings from mp4 files in minutes, on a laptop, and show what was learnt.

Makes the videos, trains fusion c_norm and, beside it on the second core, the control without fusion, samples both
through real mp4 files, and writes runs/demo/index.html, contact_sheet.png, metrics.json and the model in export/.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cli

if TYPE_CHECKING:  # torch and numpy load after the arguments are known to be good
    from numpy.typing import NDArray
    from torch import Tensor

HERE = Path(__file__).parent
RUNS = {"c_norm": "fusion c_norm", "none": "no fusion (control)"}  # c overflowed in 2 of 4 trainings with TRAINING
# Audio scale: half of 1 / std of the mel, which is silent for most of the time; the codec scales pictures likewise.
TRAINING = """--image-size 64 --codec patch-pca --n-mels 64 --audio-scale 1.77 --model FLAV-tiny --predict-frames 8
    --batch-size 8 --sampling data --lr 3e-3 --beta2 0.99 --weight-decay 0 --warmup-steps 50 --lr-schedule cosine
    --ema-decay 0.99 --cache-latents --log-every 25 --sample-every 0"""
SAMPLING = """--cfg-scale 2 --num-timesteps 2"""
GIVEN = """--method guide --guidance-scale 100"""
CLASSES = ("blue", "green", "red")  # of the first samples, in the order of their labels
LONG = 240  # frames, 24 s
FRAMES = 32  # of the other clips
RATE = 16000  # Hz


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train: int  # videos to learn from
    test: int  # real videos that fix the detectors' thresholds
    steps: int
    clips: int  # generated for F1
    rolls: int  # of LONG frames
    others: int  # of each other mode


FULL = Size(train=256, test=64, steps=2200, clips=64, rolls=6, others=24)
QUICK = Size(train=32, test=12, steps=150, clips=8, rolls=1, others=2)

# folder of films -> what it is called in metrics.json after f1_ and motion_, and on the page
SCORES = {
    "clips_c_norm": ("fusion_c_norm", "fusion c_norm, 32 frames"),
    "long": ("long", "fusion c_norm, rolled on to 240 frames"),
    "clips_none": ("fusion_none", "no fusion: the same training, nothing passes between picture and sound"),
    "a2v": ("a2v", "a picture made for the sound of held-out clips (A2V)"),
    "v2a": ("v2a", "a sound made for the picture of held-out clips (V2A)"),
    "extend": ("extend", "held-out clips continued: the 32 generated frames"),
    "switch": ("switch", "red becomes blue in mid-stream, at frame 20 of 44"),
}

JUDGED = {"c_norm": RUNS["c_norm"], "none": RUNS["none"], "long": "240 frames"}


def parse(argv=None):
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="where everything goes")
    p.add_argument("--quick", action="store_true", help="under a minute, with fewer steps and poorer results")
    p.add_argument("--seed", type=cli.whole, default=0, help="of training and sampling; the videos stay the same")
    return p.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    size, out = (QUICK, args.out / "quick") if args.quick else (FULL, args.out)
    cli.output_folder(out)
    began = time.perf_counter()
    say(f"making {size.train} training and {size.test} test videos in {out / 'data'}")
    call("-m", "data.synthetic", out / "data", "--train", size.train, "--test", size.test, log=out / "data.log")
    say(f"training {' and '.join(RUNS.values())}, {size.steps} steps each, side by side")
    train(out, size, args.seed)
    say(f"sampling {size.clips} clips of each, {size.rolls} of {LONG} frames, and {size.others} of each other mode")
    sample(out, size, args.seed)
    shutil.rmtree(out / "export", ignore_errors=True)
    shutil.copytree(out / "c_norm/export", out / "export")
    say("measuring what was written")
    if not args.quick:  # whose few clips say little
        judge(out, size)
    figures, scenes = measure(out, size)
    figures |= {"seed": args.seed, "steps": size.steps, "seconds": round(time.perf_counter() - began, 1)}
    cli.write_json(out / "metrics.json", figures)
    cli.write_run(out, args, metrics=figures)
    write_page(out, figures, scenes, args.quick)
    if args.quick:
        say("quality is reduced: --quick trains 150 steps instead of 2200, so poor synchrony is expected")
    print(
        f"F1 fusion c_norm {figures['f1_fusion_c_norm']:.3f} (95 % {figures['f1_fusion_c_norm_interval'][0]:.3f} to "
        f"{figures['f1_fusion_c_norm_interval'][1]:.3f}), {LONG} frames {figures['f1_long']:.3f}; no fusion "
        f"{figures['f1_fusion_none']:.3f}, chance {figures['f1_chance']:.3f}, real clips {figures['f1_real']:.3f}; A2V "
        f"{figures['f1_a2v']:.3f}, V2A {figures['f1_v2a']:.3f}, extended {figures['f1_extend']:.3f}, switched "
        f"{figures['f1_switch']:.3f}; motion error {cell(figures['motion_fusion_c_norm'])}, of real clips "
        f"{cell(figures['motion_real'])}; "
        f"{figures['seconds']:.0f} s; open {out / 'index.html'}"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def call(*command, log: Path, threads: int | None = None) -> None:
    """Run one of the project's commands as a user would; what it writes goes to `log`.

    Raises:
        ValueError: it failed; the last line that it wrote says why.
    """
    env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    arguments = [sys.executable, *map(str, command)]
    with log.open("w") as output:
        child = subprocess.Popen(arguments, cwd=HERE, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        code = child.wait()
    finally:
        child.kill()  # nothing goes on when the demo is interrupted
    if code:
        last = log.read_text().strip().splitlines()[-1:]
        raise ValueError(f"{command[0]} failed ({' '.join(last)}); all it wrote is in {log}")


def both(job) -> None:
    """Run job(fusion, threads) for both runs side by side, each on its share of the cores."""
    threads = max(1, (os.cpu_count() or 2) // len(RUNS))
    with ThreadPoolExecutor(len(RUNS)) as pool:
        for lane in [pool.submit(job, fusion, threads) for fusion in RUNS]:
            lane.result()


def train(out: Path, size: Size, seed: int) -> None:
    """out/c_norm and out/none: two experiments that differ in the fusion only."""
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(out, size, done))
    watcher.start()
    try:
        both(
            lambda fusion, threads: call(
                *("train.py", "--data-path", out / "data", "--experiment-dir", out / fusion, "--fusion", fusion),
                *("--max-steps", size.steps, "--ckpt-every", size.steps, "--seed", seed, *TRAINING.split()),
                log=out / f"train_{fusion}.log",
                threads=threads,
            )
        )
    finally:
        done.set()
        watcher.join()


def watch(out: Path, size: Size, done: threading.Event) -> None:
    """One progress bar over both trainings, read from their journals."""
    from tqdm import tqdm

    with tqdm(total=size.steps * len(RUNS), unit="step") as bar:
        while not done.wait(1.0):
            bar.update(sum(record[-1]["step"] for fusion in RUNS if (record := journal(out / fusion))) - bar.n)


def journal(experiment: Path) -> list[dict]:
    """Complete records of a training's log.jsonl."""
    path = experiment / "log.jsonl"
    lines = path.read_text().splitlines(True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def sample(out: Path, size: Size, seed: int) -> None:
    """All films, each in its folder of `SCORES`: every mode of the fused model, and the control's clips."""
    ends = sorted((out / "data/test").rglob("*.mp4"))[:: max(1, size.test // size.others)][: size.others]
    lanes = {
        "c_norm": {
            "clips_c_norm": ("sample.py", "--num-videos", size.clips, "--video-length", FRAMES, "--batch-size", 32),
            "long": ("sample.py", "--num-videos", size.rolls, "--video-length", LONG),
            "switch": ("sample_long.py", "--num-videos", size.others, "--frames", 44,
                       "--class-schedule", "0:red,20:blue"),
        },
        "none": {
            "clips_none": ("sample.py", "--num-videos", size.clips, "--video-length", FRAMES, "--batch-size", 32),
            "a2v": ("sample_a2v.py", "--data-path", out / "data", "--num-videos", size.others, *GIVEN.split()),
            "v2a": ("sample_v2a.py", "--data-path", out / "data", "--num-videos", size.others, *GIVEN.split()),
            "extend": ("sample_long.py", "--extend", *ends, "--frames", 2 * FRAMES,
                       "--classes", ",".join(path.parent.name for path in ends)),
        },
    }  # fmt: skip

    def job(lane: str, threads: int) -> None:
        for name, (script, *how) in lanes[lane].items():
            shutil.rmtree(out / name, ignore_errors=True)  # of an earlier run
            export = out / ("none" if name == "clips_none" else "c_norm") / "export"
            settings = ("--model-ckpt", export, "--results-dir", out / name, "--seed", seed, *SAMPLING.split())
            call(script, *settings, *how, log=out / f"{name}.log", threads=threads)

    both(job)


@dataclass(frozen=True)
class Scene:
    """A clip as the detectors see it. first: frame at which its generated part begins."""

    path: Path
    frames: Tensor
    wave: Tensor
    heights: NDArray
    bounces: NDArray
    pings: NDArray
    first: int = 0

    @property
    def events(self) -> tuple[NDArray, NDArray, int]:
        """Bounces, pings and frames of the generated part."""
        shown = (times[times >= self.first] - self.first for times in (self.bounces, self.pings))
        return *shown, len(self.frames) - self.first

    @property
    def flight(self) -> NDArray:
        """Heights of the ball in the generated part, px."""
        return self.heights[self.first :]


def measure(out: Path, size: Size) -> tuple[dict, list[Scene]]:
    """Event F1 of all that was generated, and the scenes to show: one per class and one of each other mode.

    The detectors' threshold is fixed on the real test clips, where F1 must be at least 0.95 to mean anything.
    """
    from data.av import probe, read_audio, read_frames
    from data.synthetic import FPS, ball_height, calibrate, detect_bounces, detect_pings
    from metrics.sync import bootstrap_f1, event_counts, f1, shuffled_f1

    def look(path: Path, first: int = 0) -> Scene:
        frames, wave = read_frames(path, 0, probe(path).frames(FPS), FPS), read_audio(path)
        bounces, pings = detect_bounces(frames), detect_pings(wave, RATE, FPS, threshold)
        return Scene(path, frames, wave, ball_height(frames), bounces, pings, first)

    paths = sorted((out / "data/test").rglob("*.mp4"))[: size.test]
    threshold = calibrate(map(read_audio, paths))
    real = [look(path) for path in paths]
    f1_real = f1([event_counts(*scene.events) for scene in real])
    if f1_real < 0.95:
        raise ValueError(f"F1 of the real clips is {f1_real:.3f}, under 0.95: the detectors cannot be trusted here")
    figures, shown = {"f1_real": f1_real, "clips": size.clips, "ping_threshold": threshold, **flown("real", real)}, []
    for name, (key, _) in SCORES.items():
        scenes = [look(path, FRAMES if name == "extend" else 0) for path in sorted((out / name).glob("*.mp4"))]
        counts = [event_counts(*scene.events) for scene in scenes]
        figures |= {f"f1_{key}": f1(counts), f"f1_{key}_interval": bootstrap_f1(counts)}
        if name != "v2a":  # whose picture is given
            figures |= flown(key, scenes)
        if name == "clips_c_norm":
            figures["f1_chance"] = shuffled_f1([s.bounces for s in scenes], [s.pings for s in scenes], FRAMES)
        if name != "clips_none":
            shown += scenes[: len(CLASSES) if name == "clips_c_norm" else 1]
    return figures, shown


def flown(key: str, scenes: list[Scene]) -> dict:
    """How far the balls are from free flight in what was generated, px per frame^2, and its interval, if they fly."""
    from data.synthetic import GRAVITY
    from metrics.motion import motion_error

    error = motion_error([scene.flight for scene in scenes], GRAVITY)
    interval = (error.low, error.high) if error.clips > 1 else None
    return {f"motion_{key}": error.mean if error.clips else None, f"motion_{key}_interval": interval}


def judge(out: Path, size: Size) -> None:
    """Measures that need no detector made for balls, by evaluate.py: out/judged/ c_norm, none, long."""
    lanes = {"c_norm": {"c_norm": ("clips_c_norm", "sync", size.clips), "long": ("long", "loops", size.rolls)},
             "none": {"none": ("clips_none", "sync", size.clips)}}  # fmt: skip

    def job(lane: str, threads: int) -> None:
        for name, (films, metrics, count) in lanes[lane].items():
            call("evaluate.py", "--fake", out / films, "--real", out / "data", "--metrics", metrics, "--num", count,
                 "--allow-fewer", "--predict-frames", 8, "--results-dir", out / "judged" / name,
                 "--cache", out / "judged" / name / "cache", "--device", "cpu",
                 log=out / f"judged_{name}.log", threads=threads)  # fmt: skip

    (out / "judged").mkdir(exist_ok=True)
    both(job)


def judged(out: Path) -> str:
    """The section of the page on what each of `JUDGED` measured."""
    rows = []
    for name, what in JUDGED.items():
        for figure in json.loads((out / "judged" / name / "metrics.json").read_text())["figures"]:
            ends = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
            cells = (what, figure["name"], f"{figure['value']:.3f}", ends, figure["note"])
            rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return SECTION.format(rows="".join(rows))


def write_page(out: Path, figures: dict, scenes: list[Scene], quick: bool) -> None:
    """index.html, which opens from disk without a server, and the pictures that it shows."""
    from contact import Clip, contact_sheets

    names = [*CLASSES, *(what for name, (_, what) in SCORES.items() if not name.startswith("clips"))]
    sheet = [Clip(scene.frames, scene.wave, title=name) for scene, name in zip(scenes, CLASSES)]
    contact_sheets(sheet, out / "contact_sheet.png")
    for i, scene in enumerate(scenes):
        draw_scene(scene).savefig(out / f"scene_{i}.png")
    draw_losses({RUNS[fusion]: journal(out / fusion) for fusion in RUNS}).savefig(out / "loss.png")
    players = "".join(
        PLAYER.format(name=name, video=scene.path.relative_to(out), plot=f"scene_{i}.png")
        for i, (scene, name) in enumerate(zip(scenes, names))
    )
    rows = "".join(
        f"<tr><td>{what}" + "".join(cells(figures, f"{figure}_{key}") for figure in ("f1", "motion"))
        for key, what in (*SCORES.values(), *REFERENCES)
    )
    quality = "<p><b>Quality is reduced: this is the --quick demo, of 150 steps instead of 2200.</b>" if quick else ""
    page = PAGE.format(
        quality=quality, rows=rows, judged="" if quick else judged(out), players=players, training=TRAINING, **figures
    )
    (out / "index.html").write_text(page)


def cells(figures: dict, key: str) -> str:
    """Of a table: a figure and its interval."""
    ends = figures.get(f"{key}_interval")
    return f"<td>{cell(figures.get(key))}<td>{'{:.3f} to {:.3f}'.format(*ends) if ends else ''}"


def cell(figure: float | None) -> str:
    return "—" if figure is None else f"{figure:.3f}"


def draw_scene(scene: Scene):
    """Figure: height of the ball, loudness, and the events that the detectors found, over time."""
    import numpy as np
    from matplotlib.figure import Figure

    from data.synthetic import FPS

    figure = Figure(figsize=(9, 2.2), dpi=110, layout="constrained")
    height = figure.subplots()
    seconds = (np.arange(len(scene.frames)) + 0.5) / FPS
    height.plot(seconds, scene.heights, color="tab:blue")
    height.vlines(scene.bounces / FPS, 0, 5, color="tab:blue", linewidth=3)
    height.set(xlabel="seconds", xlim=(0, len(scene.frames) / FPS), ylim=(0, None))
    height.set_ylabel("ball height, px", color="tab:blue")
    sound = height.twinx()
    step = RATE // 100
    level = scene.wave[: len(scene.wave) // step * step].unflatten(0, (-1, step)).square().mean(1).sqrt()
    sound.fill_between(np.arange(len(level)) / 100, level, color="tab:orange", alpha=0.5, linewidth=0)
    sound.plot(scene.pings / FPS, np.full(len(scene.pings), 1.0), "v", color="tab:orange", clip_on=False)
    sound.set(ylim=(0, 1))
    sound.set_ylabel("sound, rms", color="tab:orange")
    return figure


def draw_losses(journals: dict[str, list[dict]]):
    """Figure: loss of each run over its steps, by modality."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), dpi=110, layout="constrained")
    for axes, modality in zip(figure.subplots(1, 2, sharex=True), ("video", "audio")):
        for name, records in journals.items():
            axes.semilogy([r["step"] for r in records], [r[f"loss_{modality}"] for r in records], label=name)
        axes.set(title=f"loss, {modality}", xlabel="step")
        axes.legend()
    return figure


REFERENCES = (
    ("chance", "chance: picture of one clip, sound of another"),
    ("real", "real clips: what the detectors can see and hear"),
)

PLAYER = """<section><h3>{name}</h3>
<video controls loop preload="auto" src="{video}"></video><img src="{plot}" alt="events of {name}"></section>
"""

SECTION = """<h2>Without a detector made for balls</h2>
<table><tr><th>of<th>figure<th>value<th>95 %<th>{rows}</table>
<p>By <code>evaluate.py --metrics sync loops</code>: maxima of optical flow against onsets of the sound, each less the
same with the sounds of other clips; and whether 24 s drift away, jump where pre-rolling ends, or loop, as a ball that
bounces evenly does.</p>
<img src="judged/long/drift_mean.png" alt="drift of the mean picture"><img src="judged/long/loops.png" alt="r(k)">
"""

PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>R-FLAV demo: balls that ping when they bounce</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
section {{ display: flex; flex-wrap: wrap; align-items: center; gap: 1rem; margin: 1rem 0 }}
section h3 {{ width: 100%; margin: 0 }}
section img {{ max-width: calc(100% - 15rem) }}
video {{ width: 14rem; image-rendering: pixelated; background: #000 }}
img {{ max-width: 100% }}
td, th {{ text-align: left; padding: 0.2rem 1.2rem 0.2rem 0; border-bottom: 1px solid #ddd }}
code {{ background: #f4f4f4; overflow-wrap: anywhere }}
</style>
<h1>Balls that ping when they bounce</h1>
<p>Picture and sound below were generated together, frame by frame, by a model of 2.2 million parameters that was
trained from mp4 files in {steps} steps on this machine. The whole demo took {seconds:.0f} s. Turn the sound on.</p>
{quality}
<h2>Does the sound happen when the picture says so?</h2>
<table><tr><th>what<th>event F1<th>95 % interval<th>motion error<th>95 % interval{rows}</table>
<p>Bounces seen and pings heard are paired one to one within one frame (0.1 s), over {clips} generated clips that were
written as H.264 + AAC and read back. The detectors' thresholds were fixed on real clips. Motion error: px per frame²
by which a ball in flight misses the acceleration of gravity, without the frames that a bounce touches; one that hovers
has 2.2. Seed {seed}.</p>
<h2>Watch and hear</h2>
{players}
<p>Blue: height of the ball, bars where it is seen to bounce. Orange: loudness, triangles where a ping is heard.</p>
<h2>Contact sheet</h2>
<img src="contact_sheet.png" alt="frames over the spectrogram, one clip per class">
{judged}
<h2>Training</h2>
<img src="loss.png" alt="loss of both runs">
<p><code>train.py {training}</code></p>
"""


if __name__ == "__main__":
    cli.run(main)

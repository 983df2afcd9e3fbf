"""Generate film without end, or --frames of it, in constant memory; stop, resume, fork, steer it, extend a clip."""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from contact import LivePage, check_page, in_terminal
from data.folders import nearest_path
from diffusion.pace import pace

if TYPE_CHECKING:  # torch loads after the arguments are known to be good
    from pipeline import AVPipeline, Streams, StreamState
    from pipeline.film import Film, RealClip

ENDS = 200  # frames at either end of a run whose speed is compared


def parse(argv=None):
    p = cli.Parser(__doc__)
    cli.add_checkpoint_arguments(p)
    cli.add_sampling_arguments(p)
    p.add_argument("--frames", type=cli.whole, default=240, help="frame at which a film ends, 10 a second; 0 for never")
    p.add_argument("--num-videos", type=cli.positive, default=1, help="films made side by side")
    p.add_argument("--class-schedule", help="frame:class,... as 0:red,120:blue, instead of --classes")
    p.add_argument("--prompt-schedule", help="frame:prompt,... as '0:a red ball,120:a blue ball', instead of --prompt")
    p.add_argument("--results-dir", type=Path, default=Path("results"), help="where long_00000.mp4, .wav and state go")
    p.add_argument("--out", choices=["-"], help="- writes the film to stdout: python sample_long.py --out - | ffplay -")
    p.add_argument("--container", choices=["mp4", "mkv"], default="mp4", help="mkv loses least when killed")
    p.add_argument("--save-state", type=cli.whole, default=50, help="frames between states on disk; 0 only at the end")
    p.add_argument("--save-latents", action="store_true", help="write .latents.safetensors too; needs an end")
    begin = p.add_mutually_exclusive_group()
    begin.add_argument("--resume", type=Path, help="state file to go on from")
    begin.add_argument("--fork", type=Path, help="state file to go on from, with the noise of --seed")
    begin.add_argument("--extend", type=Path, nargs="+", help="clips whose ends become the past of a film each, which "
                       "begins with the clip")  # fmt: skip
    p.add_argument("--channels", choices=["mean", "first"], help="how the sound of --extend becomes mono; as in "
                   "training if not given")  # fmt: skip
    p.add_argument("--overlap", action=argparse.BooleanOptionalAction, help="denoise, decode and write in a thread "
                   "each; the film is the same; if not given, on a GPU")  # fmt: skip
    p.add_argument("--preview", action="store_true", help="show the newest frame and the loudness in the terminal")
    p.add_argument("--html", type=Path, help="page that shows the last seconds and renews itself")
    p.set_defaults(solver=None)
    args = p.parse_args(argv)
    if args.extend:
        args.num_videos = len(args.extend)
    if args.num_videos > 1 and (args.out or args.resume or args.fork):
        p.error("--out, --resume and --fork are for one film; leave --num-videos out")
    if args.save_latents and not args.frames:
        p.error("--save-latents keeps all latents in memory; give --frames")
    if args.class_schedule and args.classes:
        p.error("--class-schedule and --classes contradict each other; give one of them")
    if args.prompt_schedule and (args.prompt is not None or args.class_schedule):
        p.error("--prompt-schedule says what every frame shows; leave --prompt and --class-schedule out")
    for path in (args.resume, args.fork, *(args.extend or ())):
        if path and not path.is_file():
            p.error(f"{path} does not exist{nearest_path(path)}; give a file")
    return args


def main(argv=None):
    args = parse(argv)
    cli.output_folder(args.results_dir)
    if args.html:
        check_page(args.html)
    import torch  # like all that takes seconds

    from pipeline import Streams

    pipe = cli.load_pipeline(args, args.channels, whole=False, state=args.resume or args.fork)
    schedule = class_schedule(args.class_schedule, pipe.spec.class_names) or prompt_schedule(args.prompt_schedule, pipe)
    begins = beginnings(args, pipe, schedule)
    guidance = cli.settle_guidance(args, pipe, begins[0].cfg_scale)
    sys.stderr.write(cli.told_of_type(args) + guidance + cli.told_of_both(pipe))
    if args.negative_prompt is None:
        args.negative_prompt = begins[0].negative
    args.solver = args.solver or begins[0].state.solver
    streams = Streams(pipe, args.num_timesteps, args.cfg_scale, negative=args.negative_prompt, solver=args.solver)
    clock, films = Clock(pipe.spec.fps, pace(args.num_timesteps)[1]), {}
    with suppress(BrokenPipeError), cli.Stop() as stop, ExitStack() as files, torch.no_grad():
        for begun in begins:
            films[begun.name] = begun, open_film(args, pipe, begun, files)
            streams.join(begun.name, begun.state, args.frames or None, labels=schedule)
        try:
            make(args, pipe, streams, films, clock, stop)
        finally:
            save(films, pipe, args)
    if args.out:  # its reader may have left: what Python still wants to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    report(args, pipe, films, clock)


def make(args, pipe: AVPipeline, streams: Streams, films: dict, clock: Clock, stop: cli.Stop) -> None:
    """Write the films until they end or a signal asks to stop."""
    from tqdm import tqdm

    from pipeline.overlap import steps_of

    page = LivePage(args.html, pipe.spec.fps, pipe.spec.sample_rate) if args.html else None
    made = sum(film.state.frame for _, film in films.values())
    bar = tqdm(initial=made, total=args.frames * len(films) or None, unit="frame")
    with bar, closing(steps_of(streams, args.overlap)) as steps, page or nullcontext():
        clock.start()
        while not stop.asked and (chunks := next(steps, None)) is not None:
            for name, chunk in chunks:
                films[name][1].write(chunk)
                bar.update(len(chunk.frames))
                if page:
                    page.show(name, chunk.first, chunk.frames, chunk.wave)
                if args.preview:
                    bar.write(in_terminal(chunk.frames[-1], chunk.wave), file=sys.stderr)
            clock.lap(bool(chunks))
            bar.set_postfix_str(clock.told(), refresh=False)
            if args.save_state and clock.steps % max(1, round(args.save_state * args.num_timesteps)) == 0:
                for name in streams.rows:
                    films[name][1].state = streams.state(name)
                save(films, pipe, args)


def report(args, pipe: AVPipeline, films: dict[str, tuple[Beginning, Film]], clock: Clock) -> None:
    """run.json, the latents, and a line on how each film goes on."""
    facts = {name: {"file": str(film.writer.path), "next_frame": film.state.frame} for name, (_, film) in films.items()}
    cli.write_run(args.results_dir, args, spec=asdict(pipe.spec), films=facts, **clock.figures())
    for name, (_, film) in films.items():
        if args.save_latents:
            film.save_latents(args.results_dir / f"{name}.latents.safetensors")
        state = args.results_dir / f"{name}.state.safetensors"
        print(f"{film.writer.path}: {film.writer.frames} frames; goes on with --resume {state}", file=sys.stderr)


@dataclass(frozen=True)
class Beginning:
    """How a film begins: its file's name, the name that its continuations keep, its stream.

    real: clip before it. cfg_scale, negative: of the film that it continues.
    """

    name: str
    base: str
    state: StreamState
    real: RealClip | None = None
    cfg_scale: float | None = None
    negative: str = ""


def beginnings(args, pipe: AVPipeline, schedule: Callable | None) -> list[Beginning]:
    """The films that the arguments ask for.

    Raises:
        ValueError: a state of another model, a class that does not exist, or no frame left to make.
    """
    if args.resume or args.fork:
        begun = [continued(args, pipe)]
    else:
        y = cli.conditions(args, pipe, args.num_videos)
        begun = [beginning(args, pipe, i, schedule(0) if schedule else y and y[i]) for i in range(args.num_videos)]
    for film in begun:
        first = max(film.state.frame, film.real.frames if film.real else 0)
        if args.frames and args.frames <= first:
            raise ValueError(f"--frames {args.frames} leaves nothing to make from frame {first} on; give more, or 0")
    return begun


def beginning(args, pipe: AVPipeline, sample: int, y: int | None) -> Beginning:
    """A new film, after a real clip if there is one to extend."""
    from pipeline.film import RealClip

    name, how = f"long_{sample:05d}", dict(sample=sample, y=y, seed=args.seed)
    if not args.extend:
        return Beginning(name, name, pipe.new_stream(**how))
    real = RealClip.open(args.extend[sample], pipe.codec)
    return Beginning(name, name, real.begun(pipe, **how), real)


def continued(args, pipe: AVPipeline) -> Beginning:
    """The film that goes on from a state file, with noise of another seed if it is a fork."""
    from pipeline import StreamState

    path = args.resume or args.fork
    state, facts = StreamState.load(path)
    cli.check_goes_on(args, pipe, path, facts)
    base = facts["base"]
    if args.fork:
        state, base = state.forked(args.seed), f"{base}_seed_{args.seed}"
    guidance = {"cfg_scale": facts.get("cfg_scale"), "negative": facts.get("negative", "")}
    return Beginning(f"{base}_from_{state.frame:06d}", base, state, **guidance)


def class_schedule(text: str | None, class_names: tuple[str, ...]) -> Callable[[int], int] | None:
    """Frame -> class of "0:red,120:blue".

    Raises:
        ValueError: it does not begin at frame 0, or names a class that does not exist.
    """
    if text is None:
        return None
    turns = schedule_turns(text, f"--class-schedule {text} is not frame:class,... from frame 0 on; give e.g. 0:0,120:1")
    return scheduled(turns, cli.labels(",".join(turns.values()), class_names, len(turns)))


def prompt_schedule(text: str | None, pipe: AVPipeline) -> Callable[[int], int] | None:
    """Frame -> label of "0:a red ball,120:a blue ball"; a prompt may have commas.

    Raises:
        ValueError: it does not begin at frame 0, or the model takes no text.
    """
    if text is None:
        return None
    wrong = (
        f"--prompt-schedule {text} is not frame:prompt,... from frame 0 on; give e.g. '0:a red ball,120:a blue ball'"
    )
    turns = schedule_turns(text, wrong)
    return scheduled(turns, pipe.label(list(turns.values())).tolist())


def schedule_turns(text: str, wrong: str) -> dict[int, str]:
    """What is shown, by the frame from which on it is, in order.

    Args:
        wrong: what a ValueError says if frame 0 is missing or one is there twice.
    """
    turns = [turn.partition(":") for turn in re.split(r",(?=\s*\d+\s*:)", text)]
    good = all(frame.strip().isdecimal() and said.strip() for frame, _, said in turns)
    found = {int(frame): said.strip() for frame, _, said in turns} if good else {}
    if 0 not in found or len(found) < len(turns):
        raise ValueError(wrong)
    return dict(sorted(found.items()))


def scheduled(turns: dict[int, str], labels: list[int]) -> Callable[[int], int]:
    """Frame -> the label of the last turn before it or at it."""
    frames = list(turns)
    return lambda frame: labels[bisect_right(frames, frame) - 1]


def open_film(args, pipe: AVPipeline, begun: Beginning, files: ExitStack) -> Film:
    """The file of a film, which from now on is playable at any moment."""
    from data.av import Writer
    from pipeline.film import Film

    spec = pipe.spec
    container = {"mp4": "mp4", "mkv": "matroska"}[args.container]
    path = args.out or args.results_dir / f"{begun.name}.{args.container}"
    size = (spec.image_size, spec.image_size, spec.fps, spec.sample_rate)
    writer = files.enter_context(Writer(path, *size, preset="endless", container=container))
    return Film(writer, begun.state, begun.real, args.save_latents, cli.bar("reading", "block"))


def save(films: dict[str, tuple[Beginning, Film]], pipe: AVPipeline, args) -> None:
    """Write the state of each film, from which it goes on after its last written frame."""
    for name, (begun, film) in films.items():
        if film.state.frame >= film.real_until:  # before that a new run is the way to go on
            facts = dict(base=begun.base, cfg_scale=args.cfg_scale, **pipe.of_states)
            facts |= {"negative": args.negative_prompt} if args.negative_prompt else {}
            film.state.save(args.results_dir / f"{name}.state.safetensors", **facts)


class Clock:
    """Seconds from one frame to the next, from the first step to the last write, in constant memory.

    Args:
        at_once: frames that leave together, which share the seconds of their call.
    """

    def __init__(self, fps: float, at_once: int = 1):
        self.fps, self.at_once = fps, at_once
        self.steps, self.frames = 0, 0
        self.first, self.last = [], deque(maxlen=ENDS)
        self.counts = Counter()  # of frames by seconds, rounded to 1 %

    def start(self) -> None:
        self.began = self.since = time.perf_counter()

    def lap(self, done: bool) -> None:
        """Take in a step; the steps up to one that gives out frames are the making of a frame."""
        self.steps += 1
        if done:
            now = time.perf_counter()
            seconds, self.since = (now - self.since) / self.at_once, now
            self.frames += self.at_once
            if len(self.first) < ENDS:
                self.first.append(seconds)
            self.last.append(seconds)
            self.counts[round(math.log(seconds) * 100)] += self.at_once

    def told(self) -> str:
        film = self.frames / self.fps
        return f"{film:.1f} s of film, {film / (time.perf_counter() - self.began):.2f} x real time"

    def figures(self) -> dict:
        """Median, 99th percentile, and the median of the first and the last 200 frames, in seconds a frame."""
        if not self.frames:
            return {}
        ends = {"median_first_s": statistics.median(self.first), "median_last_s": statistics.median(self.last)}
        return {"p50_s": self.percentile(0.5), "p99_s": self.percentile(0.99), **ends, "timed_frames": self.frames}

    def percentile(self, share: float) -> float:
        counted = 0
        for place in sorted(self.counts):
            counted += self.counts[place]
            if counted >= share * self.frames:
                return math.exp(place / 100)


if __name__ == "__main__":
    cli.run(main)

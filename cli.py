"""What the scripts share: how they parse, fail, and record what they did. Imports nothing slow: --help is instant."""

import argparse
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import allocator
from data.folders import composed, nearest
from diffusion.pace import SOLVERS, check_sampling, read_pace

if TYPE_CHECKING:
    from accelerate.state import PartialState

ROOT = Path(__file__).parent
PACKAGES = ("torch", "torchaudio", "diffusers", "accelerate", "av", "numpy")  # whose versions change results
PATIENCE = timedelta(days=7)  # of a process that has done its share; the launcher ends all of them when one fails


class Parser(argparse.ArgumentParser):
    """Shows defaults in --help, takes --num_timesteps for --num-timesteps, and complains in one line.

    Args:
        files: arguments may be read from @FILE, in which # begins a comment.
    """

    def __init__(self, description: str, files: bool = False):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        self._files = files

    def parse_args(self, args: list[str] | None = None, namespace=None) -> argparse.Namespace:
        given = sys.argv[1:] if args is None else args
        whole = [own for arg in given for own in (self._read(arg[1:]) if self._files and arg[:1] == "@" else [arg])]
        return super().parse_args([_hyphened(arg) for arg in whole], namespace)

    def _read(self, file: str) -> list[str]:
        """Arguments from a file."""
        try:
            return shlex.split(Path(file).read_text(encoding="utf-8"), comments=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.error(f"@{file} cannot be read ({reason}); give a file of arguments, such as "
                       "@configs/balls/text.args")  # fmt: skip

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _hyphened(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value if arg.startswith("--") else arg


def finite(text: str) -> float:
    """Type of an argument that is a number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive(text: str) -> int:
    """Type of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def whole(text: str) -> int:
    """Type of an argument that may be 0: a seed, a number of workers."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, on what device, how fast: for every script that samples."""
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--model-ckpt", required=True, help="folder that train.py exported, released folder, or hub id")
    group.add_argument("--adapter", help="folder of a LoRA adapter that train.py --lora-rank left, for its own base")
    group.add_argument("--audio-scale", type=float, help="of a released checkpoint of another data set; ours store it")
    group.add_argument("--codec-source", help="local directory or hub id of the frame codec, if not the stored one")
    group.add_argument("--sound-source", help="local directory or hub id of the codec of sound, likewise")
    group.add_argument("--text-source", help="local directory or hub id of the text encoder, if not the stored one")
    group.add_argument("--vocoder", choices=["hifigan", "griffin-lim"], help="griffin-lim does without trained weights")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best there is if not given")
    group.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16", "float64"], default="auto",
                       help="of the model; auto: that of a film that goes on, else bfloat16 for a large model where "
                       "the device computes it natively, else float32. The state of a stream is float32 at "
                       "least")  # fmt: skip
    speed, either = parser.add_argument_group("speed"), argparse.BooleanOptionalAction
    speed.add_argument("--skip", action=either, default=True, help="leave out frames that cannot matter")
    speed.add_argument("--tables", action=either, default=True, help="compute what depends on time and class once")
    speed.add_argument("--compile", action="store_true", help="compile the blocks: for long runs, the first steps wait")


def add_encoding_arguments(parser: argparse.ArgumentParser) -> None:
    """How videos become what a model sees: for the scripts that begin with videos."""
    group = parser.add_argument_group("encoding")
    group.add_argument("--codec", default="sd-vae", help="frame codec: sd-vae, dc-ae, taesd, patch-pca, pixels; of "
                       "whole clips only: cogvideox, wan, block-pca")  # fmt: skip
    group.add_argument("--codec-source", type=_source, help="directory or hub id of its weights, if not the usual")
    group.add_argument("--fps", type=positive, default=10, help="frames a second")
    group.add_argument("--sample-rate", type=positive, default=16000, help="of the sound, Hz")
    group.add_argument("--image-size", type=positive, default=256, help="px, square")
    group.add_argument("--resize", choices=["pad", "crop"], default="pad", help="how other shapes become square")
    group.add_argument("--num-classes", type=whole, help="0 ignores class folders; all of them if not given")
    group.add_argument("--normalise", choices=["file", "clip"], default="file", help="whose peak becomes 0.95")
    group.add_argument("--channels", choices=["mean", "first"], default="mean", help="how sound becomes mono")
    group.add_argument("--n-mels", type=positive, default=256, help="mel bins")
    group.add_argument("--sound", default="mel", help="what sound becomes: mel, or of whole clips only: oobleck, "
                       "audioldm")  # fmt: skip
    group.add_argument("--sound-source", type=_source, help="directory or hub id of its weights")
    text = parser.add_argument_group("text")
    text.add_argument("--text-encoder", help="words, which needs no weights, or t5: texts take the place of classes; "
                      "none if not given")  # fmt: skip
    text.add_argument("--text-source", type=_source, help="directory or hub id of its weights, if not the usual")


def _source(text: str) -> str:
    """A hub id, or a directory that can be read from anywhere."""
    return str(Path(text).resolve()) if Path(text).is_dir() else text


def load_pipeline(args: argparse.Namespace, channels: str | None = None, whole: bool = True, state: Path | None = None):
    """The pipeline that `add_checkpoint_arguments` describes; type and steps go into `args` if not given.

    Args:
        channels: how sound that is given becomes mono, if not as in training. whole: whether clips will do.
        state: file of a stream that goes on, in the type that it was made in if none is given.
    Raises:
        ValueError, OSError: the device or the checkpoint cannot be used.
    """
    import torch

    from pipeline import AVPipeline, StreamState
    from pipeline.dtypes import name_of

    if state and args.dtype == "auto":
        args.dtype = StreamState.load(state)[1].get("dtype", "float32")  # what states of before were made in
    device = args.device or ("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    check_device(device)
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    facts = (args.audio_scale, args.codec_source, args.vocoder, args.text_source, args.adapter, channels,
             args.sound_source)  # fmt: skip
    pipe = AVPipeline.from_pretrained(args.model_ckpt, device, dtype, *facts, skip=args.skip, tables=args.tables)
    args.dtype = name_of(pipe.dtype)
    if not pipe.model.rolls and not whole:
        raise ValueError(f"{args.model_ckpt} is a model of {pipe.model.system}, which makes whole clips and no "
                         "streams; use sample.py, or a model that rolls (r-flav)")  # fmt: skip
    if getattr(args, "num_timesteps", 0) is None:
        args.num_timesteps = pipe.model.num_timesteps
    if hasattr(args, "solver"):
        check_sampling(args.num_timesteps, args.solver, pipe.model.predict_frames if pipe.model.rolls else None)
    if pipe.model.rolls:  # a call of whole clips is long enough for all cores
        share_cores(pipe.model)
    if args.compile:
        pipe.model.compile_blocks()
    return pipe


def check_goes_on(args: argparse.Namespace, pipe, path: Path, facts: dict) -> None:
    """Raise a ValueError if the state in a file, with its facts, is not of this checkpoint in this type."""
    if (made := facts.get("dtype", args.dtype)) != args.dtype:
        raise ValueError(f"{path} was made in {made}, and --dtype is {args.dtype}; leave --dtype out, or give {made}")
    if facts.get("checksum") != pipe.checksum:
        raise ValueError(f"{path} was saved with another checkpoint than {args.model_ckpt}; give the one it belongs to")


def join_processes(args) -> "PartialState":
    """The processes that `accelerate launch` or torchrun started, or this one alone; each takes its own GPU."""
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import parse_flag_from_env

    if args.device is None and parse_flag_from_env("ACCELERATE_USE_CPU"):
        args.device = "cpu"
    return PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)


def check_device(device) -> None:
    """Raise a ValueError if a device cannot be used."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device} cannot be used ({reason}); choose another, or leave it out") from None


def share_cores(model) -> None:
    """One thread for a small model on a CPU, whose kernels are too short to share; OMP_NUM_THREADS overrules it."""
    import torch

    from pipeline.dtypes import is_large

    on_cpu = next(model.parameters()).device.type == "cpu"
    if "OMP_NUM_THREADS" not in os.environ and on_cpu and not is_large(model):
        torch.set_num_threads(1)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How to sample."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--num-timesteps", type=read_pace, help="steps n per frame, 2 if not given; the paper's 20, "
                       "100, 200 steps for the first frame are n = 2, 10, 20; 0.5, 0.25, 1/m make m frames per step; "
                       "of whole clips all steps, 50")  # fmt: skip
    group.add_argument("--solver", choices=SOLVERS, default="euler", help="ab2 looks one velocity of each frame back: "
                       "of second order, at the same calls; of streams")  # fmt: skip
    group.add_argument("--cfg-scale", type=finite, help="classifier-free guidance; 1 is none, in about half the time, "
                       "and may ignore class or text; if not given, 2 for a model with them, 1 for a released one "
                       "and without, 6 for SyncFlow")  # fmt: skip
    group.add_argument("--classes", help="class names or numbers, comma-separated, in turn; all if not given")
    group.add_argument("--prompt", help="what to show, for a model with text")
    group.add_argument("--negative-prompt", help="what guidance leads away from, instead of no text")
    group.add_argument("--seed", type=whole, default=0, help="seed of the noise; sample i of a seed is always the same")


def settle_guidance(args: argparse.Namespace, pipe, before: float | None = None) -> str:
    """Put the class guidance that --cfg-scale left open on record in `args`; what there is to say of it.

    A model without classes has none, and nothing is said.

    Args:
        before: that of a film which goes on.
    """
    if args.cfg_scale is None:
        args.cfg_scale = pipe.cfg_scale if before is None else before
    what = "text" if pipe.model.text_width else "class"
    if pipe.model.links:
        return "" if args.cfg_scale == 1 else (f"cfg scale {args.cfg_scale:g}: a side follows the given one and its "
                                               "text, at a call of its tower alone besides\n")  # fmt: skip
    if args.cfg_scale != 1:
        return f"cfg scale {args.cfg_scale:g}: frames follow their {what}, at two rows of the model each\n"
    remedy = "; give --cfg-scale 2" if pipe.model.has_null_label else ", and this model has no null label to guide from"
    return f"cfg scale 1, no guidance: frames may ignore their {what}{remedy}\n" if pipe.model.conditional else ""


def told_of_type(args: argparse.Namespace) -> str:
    """What there is to say of the type of numbers, once it is known."""
    return f"computes in {args.dtype}\n"


def told_of_both(pipe) -> str:
    """What there is to say of both sides made at once: a linked model that rolls has not learnt it."""
    if not pipe.model.rolls or pipe.model.conditioning_times is None:
        return ""
    return ("this model was trained to make one side for a given other; both at once may not keep step: see "
            "sample_v2a.py and sample_a2v.py\n")  # fmt: skip


def conditions(args: argparse.Namespace, pipe, count: int) -> list[int] | None:
    """The label of each of `count` samples, by --prompt or --classes; None for a model without text and classes.

    Raises:
        ValueError: the model has no such class, or no text.
    """
    if args.prompt is not None and args.classes:
        raise ValueError("--prompt and --classes contradict each other; give one of them")
    if args.prompt is not None:
        return [int(pipe.label(args.prompt))] * count
    if pipe.model.text_width and not args.classes:
        return [pipe.model.null_label] * count
    return labels(args.classes, pipe.spec.class_names, count)


def labels(text: str | None, class_names: tuple[str, ...], count: int) -> list[int] | None:
    """A class for each of `count` samples, in turn; None for a model without classes.

    Raises:
        ValueError: a class that the model does not have.
    """
    if not class_names:
        if text:
            raise ValueError(f"--classes {text} was given, but this model has no classes; leave it out")
        return None
    chosen = range(len(class_names)) if text is None else [_class(name, class_names) for name in text.split(",")]
    return [chosen[i % len(chosen)] for i in range(count)]


def _class(name: str, class_names: tuple[str, ...]) -> int:
    if composed(name) in class_names:
        return class_names.index(composed(name))
    if name.isdecimal() and int(name) < len(class_names):
        return int(name)
    raise ValueError(f"class {name!r} does not exist{nearest(name, class_names)}; choose {', '.join(class_names)} or "
                     f"0 to {len(class_names) - 1}")  # fmt: skip


def bar(desc: str, unit: str = "file", **more) -> Callable:
    """Wraps a wait as tqdm does: shows how far it is once it lasts longer than a second, and goes when it ends."""
    from tqdm import tqdm

    return partial(tqdm, desc=desc, unit=unit, leave=False, delay=1, **more)


def output_folder(path: Path) -> Path:
    """Make the folder and try to write in it, before long work starts.

    Raises:
        OSError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}); choose another output folder") from None
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file; it appears complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, "utf-8", "backslashreplace")  # names of files need not be UTF-8
    part.replace(path)


def write_json(path: Path, value) -> None:
    """Write a JSON file; it appears complete or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_run(folder: Path, args: argparse.Namespace, **facts) -> None:
    """run.json: what was run, with what, when, and what came of it."""
    record = {
        "command": sys.argv,
        "arguments": vars(args),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        **facts,
    }
    write_json(folder / "run.json", record)


def machine() -> str:
    """Processor and number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def _git_commit() -> str | None:
    here = Path(__file__).parent
    found = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return found.stdout.strip() or None


class Stop:
    """Inside the block SIGINT and SIGTERM set `asked`, so that work can end in order; a second one ends it at once."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame) -> None:
        self.asked = True
        signal.signal(number, self.before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def call(script: str, *arguments, through: Sequence[str] = ()) -> str:
    """Run another of the project's scripts as a user would; what it prints.

    Args:
        through: a command that runs the script's, given behind it.
    Raises:
        ValueError: it failed; its last line says why.
    """
    command = [*through, sys.executable, ROOT / script, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{script} failed: {last_words(done) or 'it says nothing'}")
    return done.stdout


def last_words(done: subprocess.CompletedProcess) -> str:
    """The last line that a process said of its errors, or ""."""
    return (done.stderr.strip().splitlines() or [""])[-1]


def run(main: Callable[[], None]) -> None:
    """Run a script's main: errors of input become one sentence and exit code 2.

    RFLAV_TRACEBACK=1 shows where they came from.
    """
    allocator.keep_freed()
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: names of files need not be UTF-8
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("RFLAV_TRACEBACK"):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _sentence(error: Exception) -> str:
    """What an error says, in one line; what it said in a data worker is the last line of the traceback it brings."""
    text = str(error)
    if "\nOriginal Traceback " in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())

"""What changes gained: the code of an older commit beside that of this tree, each in processes of its own.

    python benchmarks/commits.py --before 312b144 --out benchmarks/results/commits_cpu.json
    python benchmarks/commits.py --before HEAD --only call_1 training_tiny_1

Needs git and the commit in its history; the older code lies in a folder that is removed afterwards.
"""

import json
import shutil
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks import timing

METHOD = (
    "This very script is put into the other commit's tree and run in both trees in turn, before and after, each time "
    "in a process of its own that warms up and then repeats for some seconds; its figure is the median. Random "
    "weights of the demo's model (FLAV-tiny, a window of 8, n = 2, nothing decoded) and of FLAV-S/2 (10 frames). A "
    "training step is that of training/learner.py: loss, gradients, clipping, AdamW, average of the weights. The type "
    "that is taken where nobody says is bfloat16 after, where the CPU multiplies it itself, and float32 before."
)
FRAMES, SCALE, CLASS_SCALE = 16, 25.0, 2.0  # of a clip; of guidance by gradient and by class


def call(batch: int) -> Callable:
    """A call of the demo's model while it rolls."""
    import torch

    pipe = random_pipeline()
    window, T = pipe.windows(list(range(batch)), 1), pipe.model.predict_frames
    t = (1 - (torch.arange(T, dtype=torch.float64) + 0.5) / T).expand(batch, T)
    velocity = torch.no_grad()(pipe.velocity(1.0, 2))
    return partial(velocity, window.v, window.a, t, y=window.y)


def clip(batch: int) -> Callable:
    """Clips of it, without class guidance."""
    return partial(random_pipeline().sample, list(range(batch)), FRAMES, 1, num_timesteps=2, cfg_scale=1.0)


def natural_clip(batch: int) -> Callable:
    """Clips of FLAV-S/2 in the type that the tree's scripts take where nobody says."""
    pipe = random_pipeline("FLAV-S/2", natural=True)
    return partial(pipe.sample, list(range(batch)), FRAMES, num_timesteps=2, cfg_scale=1.0)


def guided(batch: int) -> Callable:
    """Pictures for given sounds, guided by gradient and class."""
    import torch

    from diffusion.guidance import Guidance
    from diffusion.known import known_clip
    from diffusion.noise import Modality

    pipe = random_pipeline()
    sound = torch.randn(batch, FRAMES, *pipe.model.frame_shapes[1])
    given = known_clip(sound, Modality.AUDIO)
    how = dict(num_timesteps=2, cfg_scale=CLASS_SCALE, known=lambda window: (None, given(window)))
    return partial(pipe.sample, list(range(batch)), FRAMES, 1, guidance=Guidance(SCALE), **how)


def natural_dtype(model):
    """The type that the tree's scripts take where nobody says; before they chose, float32."""
    import torch

    try:
        from pipeline import dtypes
    except ImportError:
        return torch.float32
    return dtypes.natural_dtype(model, "cpu")


def training(preset: str, batch: int, natural: bool = False) -> Callable:
    """A step of a learner on a batch that stays the same; natural: under --mixed-precision auto, if the tree has it."""
    import torch
    from accelerate import Accelerator

    from benchmarks import subjects
    from diffusion.flow import logit_normal_weight
    from models import FLAV
    from training.learner import Learner

    model = subjects.random(FLAV(**config(preset)))
    v, a, t, noise = subjects.training_batch(model, batch)
    y = torch.zeros(batch, dtype=torch.long) if model.num_classes else None
    precision = "bf16" if natural and natural_dtype(model) == torch.bfloat16 else "no"
    learner = Learner(Accelerator(cpu=True, mixed_precision=precision), model, logit_normal_weight)
    return partial(learner.step, dict(v=v, a=a, y=y, times=t, noise=noise), 1e-4)


CASES: dict[str, tuple[str, Callable, tuple]] = {  # by name: in words, what makes it, of what
    **{f"call_{b}": (f"call, FLAV-tiny, batch {b}", call, (b,)) for b in (1, 4)},
    **{f"clip_{b}": (f"clip, FLAV-tiny, batch {b}", clip, (b,)) for b in (1, 4)},
    **{f"guided_{b}": (f"clip for a given sound, guided, FLAV-tiny, batch {b}", guided, (b,)) for b in (1, 4)},
    **{f"training_tiny_{b}": (f"training step, FLAV-tiny, batch {b}", training, ("FLAV-tiny", b)) for b in (1, 4, 16)},
    "training_s2_1": ("training step, FLAV-S/2, batch 1", training, ("FLAV-S/2", 1)),
    "natural_training": ("training step, FLAV-S/2, batch 1, --mixed-precision auto", training, ("FLAV-S/2", 1, True)),
    "natural_clip": ("clip, FLAV-S/2, batch 1, --dtype auto", natural_clip, (1,)),
}


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--before", help="commit whose code is the other side")
    p.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="what is measured")
    p.add_argument("--here", action="store_true", help="measure this tree alone and print its seconds, as each process")
    timing.add_arguments(p, repeats=3)
    p.set_defaults(seconds=5.0, warmup=2)  # in each process; a second training step takes new memory still
    args = p.parse_args(argv)
    if args.device != "cpu" or args.dtype != "float32":
        p.error(f"commits are compared on a CPU in float32, not on {args.device} in {args.dtype}; leave these out")
    if args.here:
        return print(json.dumps({name: here(args, name) for name in args.only}))
    if not args.before:
        p.error("there is no other side; give --before COMMIT")
    with tree_of(args.before) as tree:
        device, _, ceiling = timing.begin(args)
        rows = [row(args, name, tree, ceiling) for name in args.only]
    timing.report(__file__, args, METHOD, device, rows, matmul_ceiling_flops=ceiling)


def row(args, name: str, tree: Path, ceiling: float) -> dict:
    """How long both trees take, and the MFU before and after where it is a training step."""
    what, _, of = CASES[name]
    seconds = {"after": [], "before": []}
    for _ in range(args.repeats):
        for side, where in (("before", tree), ("after", cli.ROOT)):
            seconds[side].append(asked(args, name, where))
    found = timing.compared(what, seconds, "after", "before")
    if name.startswith("training"):
        from models.flav_costs import FLAVCosts

        flops = FLAVCosts(config(of[0])).training_flops(of[1], recomputed=False)
        mfu = {side: flops / statistics.median(seconds[side]) / ceiling for side in ("before", "after")}
        found |= {"mfu": mfu, "note": f"MFU {mfu['before']:.2f} before, {mfu['after']:.2f} after"}
    return found


def asked(args, name: str, tree: Path) -> float:
    """Seconds that a process of its own finds in a tree.

    Raises:
        ValueError: it failed there; with the last line of what it said.
    """
    command = (sys.executable, tree / "benchmarks" / Path(__file__).name, "--here", "--only", name,
               "--threads", args.threads, "--seconds", args.seconds, "--warmup", args.warmup)  # fmt: skip
    done = subprocess.run([str(part) for part in command], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        said = cli.last_words(done) or "it said nothing"
        raise ValueError(f"{name} does not run in {tree} ({said}); leave it out by --only")
    return json.loads(done.stdout.splitlines()[-1])[name]


def here(args, name: str) -> float:
    """Median of the seconds that a case takes in this tree."""
    import torch

    torch.set_num_threads(args.threads)  # as timing.begin does, but without the ceiling, half a second of each process
    torch.manual_seed(args.seed)
    _, make, of = CASES[name]
    args.repeats = 1000  # as many as fit in --seconds
    return statistics.median(timing.alternate({name: make(*of)}, args, torch.device("cpu"))[name])


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The code of a commit with this script in it, in a folder for the time of the block.

    Raises:
        ValueError: git knows no such commit here.
    """
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "tree.tar"
        git = ("git", "-C", str(cli.ROOT), "archive", f"--output={archive}", f"{commit}^{{tree}}")
        done = subprocess.run(git, capture_output=True, text=True)
        if done.returncode:
            said = cli.last_words(done) or "it said nothing"
            raise ValueError(f"--before {commit} is no commit of this repository ({said}); name one of `git log`")
        tree = Path(folder) / "tree"
        shutil.unpack_archive(archive, tree, filter="data")
        shutil.copy(__file__, tree / "benchmarks")
        yield tree


def config(preset: str) -> dict:
    """Arguments of FLAV, in the shapes of the demo or of the paper."""
    from benchmarks import subjects

    return subjects.config(Namespace(model=preset, latent_size=None, predict_frames=None))


def random_pipeline(preset: str = "FLAV-tiny", natural: bool = False):
    """A pipeline around a model with random weights, the demo's or of the paper's shapes, which decodes nothing.

    natural: in the type of `natural_dtype`, not float32.
    """
    import torch

    from benchmarks import subjects
    from models import FLAV
    from pipeline import AVPipeline

    of = config(preset)
    model = subjects.random(FLAV(**of))
    dtype = natural_dtype(model) if natural else torch.float32
    return AVPipeline(model, subjects.codec(of, kind=subjects.Undecoded), dtype=dtype)


if __name__ == "__main__":
    cli.run(main)

"""Does a LoRA adapter teach the demo's model a new motion? Event F1 before and after, and the adapter's size.

    python benchmarks/lora.py --model-ckpt runs/demo/export --out benchmarks/results/lora_demo.json

The model knows balls that bounce with a ping at the floor; the adapter is trained on balloons, which ping at the
ceiling, of the same three classes: an adapter fits no base with other classes. F1 pairs pings with turns at the ceiling
("balloon") or at the floor ("bounce") in clips that sample.py wrote as mp4: of the base, of base + adapter, of the base
again afterwards, and of a model tuned in all its weights. "shuffled" pairs pictures with the sounds of other clips.
"""

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.events import FRAMES, look, score
from demo import TRAINING

BATCH = 24  # clips sampled together


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--model-ckpt", type=Path, required=True, help="export/ of the demo, or one trained as it is")
    p.add_argument("--ranks", type=cli.positive, nargs="+", default=[8], help="of the adapters, one training each")
    p.add_argument("--lr", type=float, default=1e-2, help="learning rate of the adapters")
    p.add_argument("--full-lr", type=float, default=3e-3, help="learning rate of full fine-tuning, as in the demo")
    p.add_argument("--steps", type=cli.positive, default=1000, help="of every training")
    p.add_argument("--train", type=cli.positive, default=128, help="videos of balloons to learn from")
    p.add_argument("--clips", type=cli.positive, default=48, help="generated for each F1, and real ones")
    p.add_argument("--cfg-scale", type=float, default=2.0, help="classifier-free guidance, as in the demo")
    p.add_argument("--seed", type=cli.whole, default=0, help="of training and sampling; the videos stay the same")
    p.add_argument("--out", type=Path, default=cli.ROOT / "benchmarks/results/lora_demo.json", help="JSON file")
    args = p.parse_args(argv)
    args.model_ckpt = args.model_ckpt.resolve()
    if not (args.model_ckpt / "config.json").is_file():
        p.error(f"{args.model_ckpt} has no config.json; give the folder that the demo exported")
    with TemporaryDirectory() as work:
        result = measure(args, Path(work))
    facts = {key: value for key, value in vars(args).items() if key not in ("model_ckpt", "out")}
    facts |= {"frames": FRAMES, "training": " ".join(TRAINING.split())}
    cli.write_json(args.out, {"machine": cli.machine(), **facts, **result})


def measure(args, work: Path) -> dict:
    """All figures, from before the trainings to after them."""
    from data.synthetic import write_dataset

    data, before = work / "balloons", digests(args.model_ckpt)
    write_dataset(data, args.train, args.clips, FRAMES, motion="balloon")
    real = look(data / "test")
    result = {"real": {"balloon": score(real, real, "balloon")}, "codec_psnr": reconstruction(args.model_ckpt, real)}

    def judged(films: Path, **model) -> dict:
        sample(args, films, args.clips, **model)
        return {motion: score(look(films), real, motion) for motion in ("balloon", "bounce")}

    result["base"] = {"parameters": parameters(args.model_ckpt), **show("before", judged(work / "before"))}
    result["lora"] = [lora(args, rank, data, work, judged) for rank in args.ranks]
    removed = show("adapter removed", judged(work / "removed"))
    result["adapter_removed"] = {**removed, "base_files_unchanged": digests(args.model_ckpt) == before}
    cost = train(args, data, work / "full", args.full_lr)
    full = show("full", judged(work / "full_films", model_ckpt=work / "full/export"))
    weights = (work / "full/export/model.safetensors").stat().st_size
    return {**result, "full": {"weights_bytes": weights, **cost, **full}}


def lora(args, rank: int, data: Path, work: Path, judged) -> dict:
    """Train an adapter and judge base + adapter; whether the training's export makes the same films, byte for byte."""
    run, films, exported = (work / f"{name}_{rank}" for name in ("rank", "films", "exported"))
    cost = train(args, data, run, args.lr, "--lora-rank", rank)
    figures = show(f"rank {rank}", judged(films, adapter=run / "adapter"))
    sample(args, exported, min(args.clips, BATCH), model_ckpt=run / "export")
    same = all(path.read_bytes() == (films / path.name).read_bytes() for path in exported.glob("sample_*"))
    return {"rank": rank, **size(run / "adapter"), **cost, **figures, "export_makes_the_same_films": same}


def size(adapter: Path) -> dict:
    """Parameters of an adapter, and bytes of its weights and of its whole folder."""
    from safetensors.torch import load_file

    weights = adapter / "adapter_model.safetensors"
    return {
        "parameters": sum(x.numel() for x in load_file(weights).values()),
        "weights_bytes": weights.stat().st_size,
        "folder_bytes": sum(path.stat().st_size for path in adapter.iterdir()),
    }


def parameters(checkpoint: Path) -> int:
    from safetensors.torch import load_file

    return sum(x.numel() for x in load_file(checkpoint / "model.safetensors").values())


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def train(args, data: Path, run: Path, lr: float, *more) -> dict:
    """Fine-tune the base on a folder of videos: seconds by the clock, and of the CPU, which count no waiting."""
    began, used = time.perf_counter(), cpu_seconds()
    length = ("--max-steps", args.steps, "--ckpt-every", args.steps)
    cli.call("train.py", "--data-path", data, "--experiment-dir", run, "--init-from", args.model_ckpt,
             *TRAINING.split(), "--lr", lr, *length, "--seed", args.seed, *more)  # fmt: skip
    return {"lr": lr, "seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - used}


def cpu_seconds() -> float:
    """Of all processes that were run and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def sample(args, to: Path, count: int, model_ckpt: Path | None = None, adapter: Path | None = None) -> None:
    """Films of all classes in turn, of the base where no other checkpoint is given."""
    more = ["--adapter", adapter] if adapter else []
    cli.call("sample.py", "--model-ckpt", model_ckpt or args.model_ckpt, "--results-dir", to, "--num-videos", count,
         "--video-length", FRAMES, "--batch-size", BATCH, "--cfg-scale", args.cfg_scale, "--seed", args.seed,
         "--device", "cpu", *more)  # fmt: skip


def reconstruction(checkpoint: Path, films: list[tuple]) -> float:
    """PSNR in dB of films through the base's frame codec, which was fitted to bouncing balls."""
    import torch

    from pipeline import AVCodec

    codec = AVCodec.load(checkpoint).frames
    x = torch.stack([frames for frames, _ in films]).movedim(-1, -3) / 127.5 - 1  # (N,T,3,H,W) in [-1,1]
    error = (codec.decode(codec.encode(x)[0]) - x).square().mean()
    return (10 * torch.log10(4 / error)).item()


def show(what: str, figures: dict) -> dict:
    print(json.dumps({what: figures}), flush=True)
    return figures


if __name__ == "__main__":
    cli.run(main)

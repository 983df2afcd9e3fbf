"""Train a model on a folder of videos: accelerate launch train.py --data-path VIDEOS --experiment-dir RUN.

The same command resumes, bit for bit: data order, noise and weights are functions of the seed and the step.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import cli

SAME = ("model", "fusion", "fusion_blocks", "conditioning_times", "predict_frames", "causal_attn", "class_dropout_prob",
        "dtype", "lora_rank", "freeze", "stage", "variant", "memory")  # fmt: skip
DRY_STEPS = 3
TOGETHER = 5  # steps after which processes ask each other whether one was told to stop
SKIPS = 10  # steps in a row whose loss or gradient is not finite, after which training stops
log = logging.getLogger("train")


def parse(argv=None) -> argparse.Namespace:
    p = cli.Parser(__doc__.splitlines()[0], files=True)
    p.add_argument("--dry-run", action="store_true", help="three steps, nothing kept: what a run would take")
    data = p.add_argument_group("data")
    data.add_argument("--data-path", type=Path, required=True, help="folder with train/[class/]file.mp4, or one that "
                      "prepare.py wrote, whose facts need no repeating")  # fmt: skip
    data.add_argument("--audio-scale", type=float, help="of the normalised mel; 1 / its std, measured, if not given")
    data.add_argument("--num-workers", type=cli.whole, default=4, help="processes that decode videos")
    data.add_argument("--cache-latents", action="store_true", help="encode all files once and keep them in memory")
    cli.add_encoding_arguments(p)

    model = p.add_argument_group("model")
    model.add_argument("--model", default="FLAV-B/1", help="preset: FLAV-XL/2 ... FLAV-S/8, FLAV-tiny; SyncFlow-XL/2, "
                       "SyncFlow-tiny; AVLink-L, AVLink-tiny")  # fmt: skip
    model.add_argument("--variant", help="for ablations; of SyncFlow no-adaptor, text-only, spatial-tap, of AV-Link "
                       "no-reinject, symcross, direct, network, after-1, after-2, after-3, after-11, "
                       "after-22")  # fmt: skip
    model.add_argument("--fusion", default="c", help="what passes between the branches: none, a, b, c, c_norm; "
                       "adaptor, from picture to sound; link, both ways by time")  # fmt: skip
    model.add_argument("--fusion-blocks", type=cli.whole, nargs="+", metavar="BLOCK", help="numbers of the blocks in "
                       "which it does, from 0; all if not given")  # fmt: skip
    model.add_argument("--predict-frames", type=cli.positive, help="frames in the window, or of a whole clip; 10 and "
                       "32 if not given, or those of prepared clips")  # fmt: skip
    model.add_argument("--memory", type=cli.positive, nargs="+", default=[], metavar="AGE", help="ages, in frames "
                       "before the window, of clean frames of the past that a model which rolls sees, too, such as "
                       "1 8 9 16 17 28; none if not given")  # fmt: skip
    model.add_argument("--causal-attn", action=argparse.BooleanOptionalAction, default=True,
                       help="no frame sees a later one")  # fmt: skip
    model.add_argument("--grad-ckpt", action="store_true", help="recompute blocks in the backward pass to save memory")
    model.add_argument("--class-dropout-prob", type=float, default=0.1, help="share of labels dropped for guidance")
    model.add_argument("--use-sd-vae", action="store_true", help="the same as --codec sd-vae")
    model.add_argument("--vocoder", default="griffin-lim", help="griffin-lim, or a folder with a HiFi-GAN")

    tune = p.add_argument_group("fine-tuning")
    tune.add_argument("--init-from", nargs="+", metavar="CHECKPOINT", help="checkpoint to begin with: a folder, a "
                      "released one, or a hub id; classes and window may be others; or two whose towers of picture and "
                      "sound are to be linked")  # fmt: skip
    tune.add_argument("--stage", help="of SyncFlow: video; audio, which goes on from it (--init-from) with the video "
                      "frozen; joint, all of it, if not given. Of AV-Link: video, audio; v2a, a2v, link, in which what "
                      "passes between them learns to make the sound, the picture, or each in turn. Of FLAV: link, "
                      "which trains the fusion to, between frozen branches of a --fusion none run")  # fmt: skip
    tune.add_argument("--conditioning-times", type=flow_time, nargs="+", metavar="TIME", help="of stages that make a "
                      "side for a given one: flow times of a given picture and of a given sound, in (0, 1], or of "
                      "AV-Link uniform; 0.96 and 0.8 if not given")  # fmt: skip
    tune.add_argument("--freeze", nargs="+", default=[], metavar="PATTERN", help="parameters that stay: 'blocks.0.*'")
    tune.add_argument("--lora-rank", type=cli.whole, default=0, help="train an adapter of this rank instead of the "
                      "weights; 0 for none")  # fmt: skip

    optim = p.add_argument_group("training")
    optim.add_argument("--batch-size", type=cli.positive, default=16, help="clips per process")
    optim.add_argument("--micro-batches", type=cli.positive, default=1, help="parts of a batch that follow each other, "
                       "to save memory; the result is the same up to rounding")  # fmt: skip
    optim.add_argument("--compile", action="store_true", help="compile the blocks: faster steps after a slow first one")
    optim.add_argument("--max-steps", type=cli.positive, default=400_000, help="steps to train in all")
    optim.add_argument("--sampling", choices=["logit", "logit-noise", "data", "uniform"],
                       help="weight of the loss over time, of which logit-noise counts pure noise a little, and data "
                       "the error of clean frames instead of velocities, for small models; of whole clips, how times "
                       "are drawn; logit and uniform if not given")  # fmt: skip
    optim.add_argument("--logit-mean", type=float, help="whole clips, --sampling logit: mean of the logit of times, "
                       "under 0 nearer to noise; 0 if not given, -1 of a side made for a given one")  # fmt: skip
    optim.add_argument("--logit-std", type=float, help="its standard deviation; 1 if not given")
    optim.add_argument("--theta", type=float, default=0.2, help="share of clips in pre-rolling")
    optim.add_argument("--independent-times", type=float, default=0.0, help="share of clips in which picture "
                       "and sound have different times or one is clean: for A2V and V2A, try 0.25")  # fmt: skip
    optim.add_argument("--cuts", type=float, default=0.0, help="share of clips that turn, at a frame, into one of "
                       "another class or text: for films that are steered, try 0.1")  # fmt: skip
    optim.add_argument("--memory-noise", type=float, default=0.0, help="of --memory: its frames have one time for all "
                       "of a clip, uniform in [1 - it, 1], so that a model bears with its own errors")  # fmt: skip
    optim.add_argument("--pairing", type=cli.whole, help="whole clips: noise is paired with so many clips by optimal "
                       "transport; 0 for none; at most 8 that divide --batch-size if not given")  # fmt: skip
    optim.add_argument("--lr", type=float, help="learning rate; 1e-4 if not given, AV-Link's 3e-4")
    optim.add_argument("--lr-schedule", choices=["constant", "cosine"], default="constant", help="cosine ends at 5 %%")
    optim.add_argument(
        "--warmup-steps", type=cli.whole, help="steps of linear warm-up; 0 if not given, AV-Link's 10000"
    )
    optim.add_argument("--beta2", type=float, help="of AdamW; 0.999 if not given, AV-Link's 0.99")
    optim.add_argument("--weight-decay", type=float, help="of AdamW; 0.02 if not given, AV-Link's 0.01")
    optim.add_argument("--clip-grad-norm", type=float, default=1.0, help="largest gradient norm")
    optim.add_argument("--ema-decay", type=float, default=0.9999, help="largest decay of the averaged weights")
    optim.add_argument(
        "--mixed-precision",
        choices=["auto", "no", "bf16", "fp16"],
        help="of accelerate, whose own setting it is if "
        "not given; auto: that of the run which goes on, else bf16 for a large model where the device computes it "
        "natively, else no",
    )
    optim.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the weights")
    optim.add_argument("--seed", type=cli.whole, default=0, help="of data order, noise and initial weights")

    out = p.add_argument_group("output")
    out.add_argument("--experiment-dir", type=Path, required=True, help="checkpoints/, export/, log.jsonl, run.json")
    out.add_argument("--results-dir", type=Path, default=Path("results"), help="of samples, inside the experiment")
    out.add_argument("--tracker", choices=["tensorboard", "wandb"], default="tensorboard", help="where curves go")
    out.add_argument("--log-every", type=cli.positive, default=100, help="steps between log lines")
    out.add_argument("--validate", action="store_true", help="in each log line, too: loss of the averaged weights on "
                     "clips of test/")  # fmt: skip
    out.add_argument("--ckpt-every", type=cli.positive, default=5000, help="steps between checkpoints")
    out.add_argument("--ckpt-limit", type=cli.positive, default=3, help="checkpoints kept")
    out.add_argument("--sample-every", type=cli.whole, default=20_000, help="steps between samples; 0 for none")
    out.add_argument("--video-length", type=cli.positive, default=50, help="frames per sample of a stream")
    out.add_argument("--push-to-hub", metavar="REPO", help="hub id that takes export/ after the last step")
    args = p.parse_args(argv)
    args.init_from, *args.init_more = args.init_from or [None]
    if args.use_sd_vae and args.codec != "sd-vae":
        p.error(f"--use-sd-vae contradicts --codec {args.codec}; give one of them")
    if args.lora_rank and not args.init_from:
        p.error("--lora-rank adapts a trained model; give it with --init-from")
    if args.lora_rank and args.freeze:
        p.error("--lora-rank trains nothing but its adapter; leave --freeze out")
    if args.batch_size % args.micro_batches:
        p.error(
            f"--micro-batches {args.micro_batches} does not divide --batch-size {args.batch_size}; choose a divisor"
        )
    if args.tracker == "wandb" and not find_spec("wandb"):
        p.error("--tracker wandb needs the package wandb, which is not here; pip install wandb, or leave --tracker out")
    if not 0 <= args.independent_times <= 1:
        p.error(f"--independent-times {args.independent_times} is no share of the clips; choose 0 to 1")
    if args.independent_times and args.sampling == "uniform":
        p.error("--independent-times shows clean frames, whose noise cannot be told; leave out --sampling uniform")
    if not 0 <= args.cuts <= 1:
        p.error(f"--cuts {args.cuts} is no share of the clips; choose 0 to 1")
    if args.cuts and args.batch_size % 2:
        p.error(
            f"--cuts takes the clip beside, and --batch-size {args.batch_size} leaves one alone; choose an even one"
        )
    if not 0 <= args.memory_noise <= 1:
        p.error(f"--memory-noise {args.memory_noise} leads to no flow time; choose 0 to 1")
    if args.memory_noise and not args.memory:
        p.error("--memory-noise is of the frames of a memory; give --memory, or leave it out")
    if args.logit_std is not None and not 0 < args.logit_std < math.inf:
        p.error(f"--logit-std {args.logit_std} spreads no times; choose one above 0")
    if args.logit_mean is not None and not math.isfinite(args.logit_mean):
        p.error(f"--logit-mean {args.logit_mean} is no place of times; choose a finite one, such as -0.8")
    if args.pairing and args.batch_size % args.pairing:
        p.error(f"--pairing {args.pairing} does not divide --batch-size {args.batch_size}; choose a divisor, or 0")
    if args.text_encoder and args.num_classes:
        p.error("--text-encoder puts texts in the place of classes; leave --num-classes out")
    args.text_width = 0  # until the texts are there
    new, trained = not (args.experiment_dir / "pipeline").is_dir(), args.vocoder != "griffin-lim"
    if new and trained and not (Path(args.vocoder) / "config.json").is_file():
        p.error(f"--vocoder {args.vocoder} has no config.json; give the folder of a HiFi-GAN, or griffin-lim")
    return args


def flow_time(text: str) -> float | str:
    """A number, or "uniform"."""
    return text if text == "uniform" else float(text)


def main(argv=None) -> None:
    args = parse(argv)
    cli.output_folder(args.experiment_dir)
    if not args.dry_run:
        return train(args)
    with TemporaryDirectory(dir=args.experiment_dir, prefix=".dry_run_") as folder:
        short = {"experiment_dir": Path(folder), "max_steps": DRY_STEPS, "log_every": 1, "sample_every": 0}
        train(argparse.Namespace(**{**vars(args), **short, "whole": args.max_steps}))


def train(args) -> None:
    """Train from the newest checkpoint to the last step."""
    import torch  # after the arguments are known to be good, like all that takes seconds
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from tqdm import tqdm

    from training.encode import encode_batch
    from training.hub import check_login, push
    from training.learner import learning_rate
    from training.opening import check_names, open_run, open_texts, run_costs, settle_precision
    from training.report import complaint, dry_report
    from training.sharding import check_sharding
    from training.storage import Journal, resume
    from training.validation import Validation

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for speaker in (log, logging.getLogger("training")):
        speaker.setLevel(logging.INFO)
    config = ProjectConfiguration(str(args.experiment_dir), logging_dir=str(args.experiment_dir / "tensorboard"))
    kind = check_names(args)
    settle_precision(args, kind)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, log_with=args.tracker, project_config=config)
    device, dtype = accelerator.device, getattr(torch, args.dtype)
    check_sharding(accelerator)
    if args.push_to_hub and accelerator.is_main_process:
        check_login(args.push_to_hub)
    with accelerator.main_process_first():
        dataset, codec = open_run(args, kind, cli.bar)
        captions, texts = open_texts(args, dataset, cli.bar)
        held_out = Validation(args, kind, dataset, cli.bar) if args.validate else None
    facts = {"seed": args.seed, "global_batch": args.batch_size * accelerator.num_processes}
    facts |= {name: getattr(args, name) for name in SAME} | {"text_encoder": args.text_encoder}
    codec.to(device)
    learner, towers = make_learner(args, accelerator, codec)
    facts |= towers
    first_step = resume(accelerator, learner.state, args.experiment_dir, **facts)
    if first_step >= args.max_steps:
        log.info(
            "%s is at step %s already; --max-steps %s asks for no more", args.experiment_dir, first_step, args.max_steps
        )
        return
    loader, draws = make_data(args, accelerator, dataset, codec, learner.raw, first_step, captions, texts)
    if held_out:
        held_out.ready(accelerator, codec, learner)
    costs = run_costs(args, codec, texts)
    meter, journal = make_meter(args, accelerator, costs), Journal(accelerator, args.experiment_dir, first_step)
    steps = range(first_step, args.max_steps)
    if accelerator.is_main_process:
        announce(args, accelerator, dataset, codec, learner.raw, steps)

    bar = tqdm(steps, initial=first_step, total=args.max_steps, unit="step", disable=not accelerator.is_main_process)
    learner.model.train()
    with cli.Stop() as stop:  # SIGTERM of a scheduler, or Ctrl-C: a checkpoint, then the end; workers inherit it
        batches, measured = iter(loader), time.perf_counter()
        for step in bar:
            asked = time.perf_counter()
            batch = next(batches)
            meter.waited += time.perf_counter() - asked

            inputs = draws(step, *encode_batch(batch, codec, device, dtype, args.memory))
            lr = learning_rate(step, args.lr, args.warmup_steps, args.lr_schedule, args.max_steps)
            done = step + 1
            telling = done % args.log_every == 0 or done == args.max_steps
            # before the step, as the batch's own loss
            of_average = learner.averaged_loss(inputs)[0] if telling else None
            loss, norm = learner.step(inputs, lr)
            meter.add(loss, inputs["times"], norm, inputs.get("shares"))

            stopping = told_to_stop(accelerator, stop, done)
            if telling:
                seconds, measured = time.perf_counter() - measured, time.perf_counter()
                record = meter.read(accelerator, seconds, loss, of_average) | (held_out() if held_out else {})
                journal.write({"step": done, "lr": lr, **record})
                bar.set_postfix(loss=record["loss"], wait=f"{record['data_wait']:.0%}")
                if record["skipped_in_a_row"] >= SKIPS:
                    order = loader.batch_sampler
                    raise FloatingPointError(complaint(args, done - record["skipped_in_a_row"], dataset, order))
            if not args.dry_run:
                keep(args, accelerator, learner, codec, done, stopping, facts, captions.texts if captions else ())
            if stopping:
                log.info("stopped with a checkpoint at step %s; the same command goes on", done)
                break
    accelerator.end_training()
    if args.dry_run and accelerator.is_main_process:
        print(dry_report(args, accelerator, learner.raw, costs, len(loader.dataset)))
    elif args.push_to_hub and done == args.max_steps and accelerator.is_main_process:
        push(args.push_to_hub, {"": args.experiment_dir / "export", "adapter": args.experiment_dir / "adapter"})


def make_learner(args, accelerator, codec):
    """The model with its optimiser and average, as the arguments want them, and what must stay of its weights."""
    import torch

    from diffusion.flow import WEIGHTS
    from models import model_of_preset
    from training.learner import Learner
    from training.opening import begin, check_clips, model_config

    torch.manual_seed(args.seed)
    kind = model_of_preset(args.model)
    model = kind(**model_config(args, codec)).to(getattr(torch, args.dtype))
    check_clips(model, codec)
    stays = begin(args, model, codec.spec.class_names)
    if kind.rolls:  # a call of whole clips is long enough for all cores
        cli.share_cores(model)
    if args.compile:
        model.compile_blocks()
    how = {"beta2": args.beta2, "weight_decay": args.weight_decay, "clip": args.clip_grad_norm}
    weight = WEIGHTS[args.sampling] if kind.rolls else WEIGHTS["uniform"]  # their times are drawn denser
    parts = args.micro_batches
    return Learner(accelerator, model, weight, parts, **how, ema_decay=args.ema_decay), stays


def make_data(args, accelerator, dataset, codec, model, first_step: int, captions=None, texts=None):
    """The batches of this process from a step on, and what is drawn for them."""
    from torch.utils.data import DataLoader

    from data.captions import Captioned
    from data.index import is_prepared
    from data.order import ClipOrder
    from training.encode import encode_files
    from training.opening import make_draws

    device, ranks, main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
    progress = cli.bar("encoding", disable=not main)
    cached = args.cache_latents and not is_prepared(args.data_path)
    clips = encode_files(dataset, codec, device, progress) if cached else dataset
    clips = Captioned(clips, captions, dataset.folder, args.predict_frames, args.fps) if captions else clips
    steps = (first_step, args.max_steps)
    order = ClipOrder(len(clips), args.batch_size, args.seed, *steps, accelerator.process_index, ranks)
    workers = 0 if cached else args.num_workers
    loader = DataLoader(clips, batch_sampler=order, num_workers=workers, pin_memory=device.type == "cuda")
    return loader, make_draws(args, codec, model, order.rows(), texts)


def make_meter(args, accelerator, costs):
    """What is measured: of a model of this size on this device."""
    import torch

    from training.ceiling import data_sheet_flops, device_name, matmul_ceiling
    from training.meter import Meter

    device, precision = accelerator.device, accelerator.mixed_precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, getattr(torch, args.dtype))
    limits = {"matmul": matmul_ceiling(device, dtype, seconds=0.05),
              "data_sheet": data_sheet_flops(device_name(device), dtype)}  # fmt: skip
    flops = costs.training_flops(args.batch_size, recomputed=False)
    peaks = {name: peak for name, peak in limits.items() if peak}
    return Meter(device, args.predict_frames * args.batch_size, flops, peaks)


def announce(args, accelerator, dataset, codec, model, steps: range) -> None:
    """run.json, and a line on what begins."""
    ranks, size = accelerator.num_processes, sum(p.numel() for p in model.parameters())
    cli.write_run(args.experiment_dir, args, spec=asdict(codec.spec), processes=ranks, parameters=size,
                  skipped=dataset.skipped)  # fmt: skip
    log.info("%s; %.1f million parameters, steps %s to %s, %s process%s on %s, mixed precision %s", dataset.summary(),
             size / 1e6, steps.start, steps.stop, ranks, "es" * (ranks > 1), accelerator.device,
             accelerator.mixed_precision)  # fmt: skip


def keep(
    args, accelerator, learner, codec, done: int, stopping: bool, facts: dict, prompts: Sequence[str] = ()
) -> None:
    """The checkpoint, export and samples that are due after a step. Called by every process."""
    from training.storage import export, save_checkpoint

    saving = done % args.ckpt_every == 0 or done == args.max_steps or stopping
    showing = bool(args.sample_every) and done % args.sample_every == 0
    if saving:
        save_checkpoint(accelerator, learner.state, args.experiment_dir, done, args.ckpt_limit, **facts)
    averaged = learner.averaged() if saving or showing else None
    if saving and accelerator.is_main_process:
        export(averaged, codec, args.experiment_dir, done, args.init_from)
    if showing and accelerator.is_main_process:
        preview(args, averaged, codec, done, accelerator.device, prompts)


def told_to_stop(accelerator, stop: cli.Stop, done: int) -> bool:
    """Whether this process, or after every few steps any of them, was told to stop: all end at the same step."""
    if accelerator.num_processes == 1:
        return stop.asked
    if done % TOGETHER:
        return False
    if stop.asked:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def preview(args, model, codec, step: int, device, prompts: Sequence[str] = (), clips: int = 4) -> None:
    """Samples of a plain model, which moves to the device, as mp4 and a contact sheet."""
    import torch

    from contact import Clip, contact_sheets
    from data.av import write_clip
    from pipeline import pipeline_of
    from training.lora import merged

    model = merged(model) if args.lora_rank else model
    spec, folder = codec.spec, args.experiment_dir / args.results_dir / f"step_{step:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    names = prompts[:: math.ceil(len(prompts) / clips)] if prompts else spec.class_names  # spread over all texts
    chosen = [i % len(names) for i in range(clips)] if names else []
    y = [names[i] for i in chosen] if prompts else torch.tensor(chosen) if chosen else None
    length = args.video_length if model.rolls else args.predict_frames
    made = pipeline_of(model, codec, device).sample(list(range(clips)), length, y, seed=args.seed)
    sheet = []
    for i, (frames, wave) in enumerate(zip(made.frames.cpu(), made.wave.cpu())):
        write_clip(folder / f"sample_{i:05d}.mp4", frames, wave, spec.fps, spec.sample_rate)
        title = f"step {step}, sample {i}" + (f", {names[chosen[i]]}" if chosen else "")
        sheet.append(Clip(frames, wave, spec.fps, spec.sample_rate, title))
    contact_sheets(sheet, folder / "contact_sheet.png")


if __name__ == "__main__":
    cli.run(main)

"""SyncFlow on captioned balls: does the sound keep step, does the colour follow the text, what does each part bring?

    python benchmarks/syncflow.py --seeds 0 1 2                    # the README's three commands, judged
    python benchmarks/syncflow.py --seeds 0 1 2 --ablations        # and of the first, every variant, guidance, stage 3

The videos are made once; of each seed the three commands of the README run as they are printed there, and 48 prompts of
known phrasings, 48 of phrasings never trained and 24 held-out videos are judged. A clip's colour is that of most of its
frames; F1 is of bounces seen against pings heard, "shuffled" that of pictures with others' sounds: the chance.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.events import LENGTH, RATE, colour, look, parser, prompts_of, score, share

CLIP = 20  # frames of the clips that are cut from the videos
PREPARING = "--codec block-pca --image-size 64 --n-mels 64 --clip-frames 20 --text-encoder words"
TRAINING = cli.ROOT / "configs/balls/syncflow.args"
STEPS = {"video": 700, "audio": 1000, "joint": 200}
SAMPLING = "--batch-size 24"  # and the paper's 50 steps
GUIDANCE = (1, 2, 4, 6, 8)


def main(argv=None) -> None:
    p = parser(__doc__, "syncflow_balls.json")
    p.add_argument("--given", type=cli.positive, default=24, help="held-out videos that get a sound")
    p.add_argument("--cfg-scale", type=float, default=2.0, help="of the figures that do not sweep it")
    p.add_argument("--ablations", action="store_true", help="of the first seed: variants, guidance, stage 3, too")
    args = p.parse_args(argv)
    from data.synthetic import write_dataset

    with TemporaryDirectory() as work:
        data = Path(work) / "data"
        write_dataset(data, args.train, args.clips, LENGTH, args.seed, captions=True)
        began = time.perf_counter()
        cli.call("prepare.py", "--data-path", data, "--out", Path(work) / "latents", *PREPARING.split())
        seconds = round(time.perf_counter() - began, 1)
        runs = [Run(args, seed, data, Path(work)).measured() for seed in args.seeds]
    facts = {key: value for key, value in vars(args).items() if key != "out"}
    how = {"preparing": PREPARING, "training": TRAINING.read_text(), "steps": STEPS, "sampling": SAMPLING}
    cli.write_json(args.out, {"machine": cli.machine(), **facts, **how, "prepare_seconds": seconds, "runs": runs})


class Run:
    """One seed: its trainings, each once, and what their films are worth."""

    def __init__(self, args, seed: int, data: Path, work: Path):
        self.args, self.seed, self.data, self.latents = args, seed, data, work / "latents"
        self.work, self.seconds = work / f"seed_{seed}", {}
        self.real = [(frames[:CLIP], wave[: CLIP * RATE // 10]) for frames, wave in look(data / "test", CLIP)]

    def measured(self) -> dict:
        """All figures, printed as they come."""
        video = self.trained("video", "video", None)
        audio = self.trained("audio", "audio", video)
        none = self.trained("no-adaptor", "audio", video, "--variant", "no-adaptor")
        result = {
            "seed": self.seed,
            "train": self.text_to_both(audio, "train"),
            "test": self.text_to_both(audio, "test"),
            "video_to_sound": self.sound_for_pictures(audio),
            "no-adaptor": self.text_to_both(none, "train"),
        }
        if self.args.ablations and self.seed == self.args.seeds[0]:
            result["ablations"] = self.ablations(video, audio)
        result["curves"] = {run.name: curve(run) for run in sorted(self.work.glob("run_*"))}
        result["training_seconds"] = self.seconds
        print(json.dumps({name: x for name, x in result.items() if name != "curves"}), flush=True)
        return result

    def ablations(self, video: Path, audio: Path) -> dict:
        """Variants of the sound tower, the third stage, other guidance, and one weight set at other sizes."""
        found = {}
        for variant in ("text-only", "spatial-tap"):
            run = self.trained(variant, "audio", video, "--variant", variant)
            found[variant] = self.text_to_both(run, "train")
        joint = self.trained("joint", "joint", audio, "--lr", 2e-4)
        found["joint"] = {**self.text_to_both(joint, "train"), "video_to_sound": self.sound_for_pictures(joint)}
        for scale in GUIDANCE:
            found[f"guidance_{scale}"] = self.text_to_both(audio, "train", "--cfg-scale", scale)
        for size in ("128", "48x96"):
            found[f"size_{size}"] = self.text_to_both(audio, "train", "--image-size", size)
        return found

    def trained(self, name: str, stage: str, source: Path | None, *more) -> Path:
        """The run of a stage, which begins with the export of another."""
        run, began = self.work / f"run_{name}", time.perf_counter()
        start = ("--init-from", source / "export") if source else ()
        how = ("--stage", stage, "--max-steps", STEPS[stage], "--ckpt-every", STEPS[stage], "--seed", self.seed)
        cli.call("train.py", "--data-path", self.latents, "--experiment-dir", run, f"@{TRAINING}", *how, *start,
                 *more)  # fmt: skip
        self.seconds[name] = round(time.perf_counter() - began, 1)
        return run

    def sampled(self, script: str, run: Path, *how) -> list[tuple]:
        """(frames, wave) of the films that a script makes; they are removed with the work."""
        folder = self.work / f"films_{len(list(self.work.glob('films_*')))}"
        settings = ("--model-ckpt", run / "export", "--results-dir", folder, "--seed", self.seed, "--device", "cpu",
                    "--cfg-scale", self.args.cfg_scale)  # fmt: skip
        cli.call(script, *settings, *SAMPLING.split(), *how)
        return look(folder, None)

    def text_to_both(self, run: Path, split: str, *how) -> dict:
        """Clips by the phrasings of a split: F1, and the share of clips of the right colour."""
        from data.synthetic import BALLS

        file = self.work / f"{split}.txt"
        file.write_text("\n".join(prompts_of(split, self.args.clips)))
        films = [(viewed(frames), wave) for frames, wave in self.sampled("sample.py", run, "--prompts", file, *how)]
        right = share([colour(frames) == i % len(BALLS) for i, (frames, _) in enumerate(films)])
        return {**score(films, self.real), "colour": right}

    def sound_for_pictures(self, run: Path) -> dict:
        """F1 of held-out videos that get a sound, whose picture is given (V2A)."""
        how = ("--data-path", self.data, "--num-videos", self.args.given, "--video-length", CLIP)
        return score(self.sampled("sample_v2a.py", run, *how), self.real)


def viewed(frames):
    """Pictures of another size as the detector knows them, 64 px square."""
    from data.frames import fit, to_uint8

    if frames.shape[1:3] == (64, 64):
        return frames
    return to_uint8(fit(frames, 64, "crop")).movedim(1, -1)


def curve(run: Path) -> list[tuple[int, float, float]]:
    """(step, held-out loss of the picture, of the sound) of a run's log."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [(r["step"], r["held_out_loss_video"], r["held_out_loss_audio"]) for r in map(json.loads, lines)]


if __name__ == "__main__":
    cli.run(main)

"""Event F1 of films on the demo's task, as the benchmarks that sample mp4s judge them."""

from pathlib import Path

import cli

FRAMES, RATE = 32, 16000  # length and sample rate of the demo's clips
LENGTH = 60  # frames of captioned balls


def parser(doc: str, out: str) -> cli.Parser:
    """Arguments that benchmarks of training on captioned balls share.

    Args:
        doc: of the script. out: name of the JSON file, if not given.
    """
    p = cli.Parser(doc.splitlines()[0])
    p.add_argument("--seeds", type=cli.whole, nargs="+", default=[0], help="of training and sampling; the videos stay")
    p.add_argument("--train", type=cli.positive, default=200, help="videos to learn from")
    p.add_argument("--clips", type=cli.positive, default=48, help="sampled by phrasings of training, and by others")
    p.add_argument("--seed", type=cli.whole, default=0, help="of the videos")
    p.add_argument("--out", type=Path, default=cli.ROOT / "benchmarks/results" / out, help="JSON file")
    return p


def look(folder: Path, frames: int | None = FRAMES) -> list[tuple]:
    """(frames, wave) of each mp4 in a folder, those of its folders too; of the whole film for None frames."""
    from data.av import probe, read_audio, read_frames
    from data.synthetic import FPS

    def seen(path: Path) -> tuple:
        count = frames or probe(path).frames(FPS)
        return read_frames(path, 0, count), read_audio(path, 0, count * RATE // FPS)

    return [seen(path) for path in sorted(folder.rglob("*.mp4"))]


def score(films: list[tuple], real: list[tuple], motion: str = "bounce") -> dict:
    """F1 of turns seen, as of a motion, against pings heard, whose threshold is fixed on real clips.

    Args:
        films: of equal length.
    Returns:
        f1 with its bootstrap interval, f1 of pictures with the sounds of other films ("shuffled"), and how many turns
        were seen and pings heard.
    """
    from data.synthetic import FPS, calibrate, detect_bounces, detect_pings
    from metrics.sync import bootstrap_f1, event_counts, f1, shuffled_f1

    height = calibrate(wave for _, wave in real)
    seen = [detect_bounces(frames, motion) for frames, _ in films]
    heard = [detect_pings(wave, RATE, FPS, height) for _, wave in films]
    length = len(films[0][0])
    counts = [event_counts(v, a, length) for v, a in zip(seen, heard)]
    return {
        "f1": f1(counts),
        "interval": bootstrap_f1(counts),
        "shuffled": shuffled_f1(seen, heard, length),
        "seen": sum(c.v for c in counts),
        "heard": sum(c.a for c in counts),
    }


def prompts_of(split: str, count: int) -> list[str]:
    """Captions of captioned balls by the phrasings of a split: all colours in turn, in one phrasing after the other."""
    from data.synthetic import BALLS, captions_of

    phrasings = list(zip(*(captions_of(ball, split) for ball in BALLS)))  # each with all colours
    return [phrasings[i // len(BALLS) % len(phrasings)][i % len(BALLS)] for i in range(count)]


def colour(frames) -> int:
    """Label of the colour that most frames have; -1 without a ball."""
    import numpy as np

    from data.synthetic import ball_class

    labels, counts = np.unique(ball_class(frames), return_counts=True)
    return int(labels[counts.argmax()])


def share(right: list[bool]) -> float:
    return sum(right) / len(right)

"""Part a folder of videos, or of pieces of them, into train/ and test/ so that no video has pieces in both.

    python -m data.split PIECES DATA --test 0.25 --video-of "(.+)_[0-9]+"

Links lead to the files, which stay where they are; captions go along.
"""

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from data.folders import SPLITS, printable, walk


def video_of(file: Path, pattern: str | None) -> str:
    """Name of the video that a file is a piece of, whatever folder it lies in.

    Args:
        pattern: a regular expression that the name without suffix matches from its beginning to its end, whose first
            group is the video's; None where each file is a video of its own.
    Raises:
        ValueError: the name does not match.
    """
    if pattern is None:
        return file.stem
    if not (found := re.fullmatch(pattern, file.stem)) or not found.groups():
        raise ValueError(
            f'--video-of {pattern} does not tell the video of {printable(str(file))}; give e.g. "(.+)_[0-9]+" for '
            "video_003.mp4"
        )
    return found[1]


def parted(videos: dict[str, int], share: float, seed: int) -> set[str]:
    """The videos for the test: as near to a share of all pieces as their order allows, at least one and not all.

    A video's place in the order depends on its name and the seed alone, so more videos hardly move the others.

    Args:
        videos: name -> number of its pieces.
    Raises:
        ValueError: the share is none, or there are fewer than two videos.
    """
    if not 0 < share < 1:
        raise ValueError(f"--test {share} is no share of the pieces; choose 0 to 1, e.g. 0.25")
    if len(videos) < 2:
        raise ValueError(f"all pieces are of the video {', '.join(videos)}; give --video-of a pattern whose first "
                         "group differs between videos")  # fmt: skip
    order = sorted(videos, key=lambda name: sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest())
    wanted, sums = share * sum(videos.values()), [0]
    for name in order:
        sums.append(sums[-1] + videos[name])
    count = min(range(1, len(order)), key=lambda n: abs(sums[n] - wanted))
    return set(order[:count])


def split_folder(folder: Path, out: Path, share: float, pattern: str | None = None, seed: int = 0) -> dict[str, int]:
    """Write out/train and out/test, of links and a metadata.jsonl; the number of pieces in each.

    Args:
        folder: of [class/]file. share: of all pieces, for the test. pattern: as of `video_of`.
    Raises:
        ValueError: the folder has no videos, `out` has a split already, or as of `video_of` and `parted`.
    """
    files, _ = walk(folder) if folder.is_dir() else ([], [])
    if not files:
        raise ValueError(f"{folder} has no videos; give a folder of [class/]file.mp4")
    if there := [name for name in SPLITS if (out / name).exists()]:
        raise ValueError(f"{out} has {there[0]}/ already; choose another folder, or remove it")
    pieces = defaultdict(list)
    for file in files:
        pieces[video_of(file, pattern)].append(file)
    test = parted({name: len(found) for name, found in pieces.items()}, share, seed)
    captions, counts = _captions(folder, files), {}
    for split, names in (("train", pieces.keys() - test), ("test", test)):
        chosen = sorted(file for name in names for file in pieces[name])
        _write(out / split, folder, chosen, captions)
        counts[split] = len(chosen)
    return counts


def _captions(folder: Path, files: list[Path]) -> dict[str, list[dict]]:
    """Rows of metadata of each file; none where nobody wrote any."""
    from data.captions import read_captions  # torch takes seconds

    beside = (folder / file.with_suffix(".txt") for file in files)
    if not any(path.is_file() for path in (folder / "metadata.jsonl", folder / "metadata.csv", *beside)):
        return {}
    found = read_captions(folder, map(str, files))
    rows = defaultdict(list)
    for file, places in found.of_file.items():
        for place, span in zip(places, found.spans.get(file, [None] * len(places))):
            piece = dict(zip(("start", "end"), span or ()))
            rows[file].append({"file_name": file, "caption": found.texts[place], **piece})
    return rows


def _write(split: Path, folder: Path, files: Iterable[Path], captions: dict[str, list[dict]]) -> None:
    rows = []
    for file in files:
        (split / file).parent.mkdir(parents=True, exist_ok=True)
        os.symlink((folder / file).resolve(), split / file)
        rows += (json.dumps(row) + "\n" for row in captions.get(printable(str(file)), ()))
    if rows:
        (split / "metadata.jsonl").write_text("".join(rows))


def main(argv: list[str] | None = None) -> None:
    how = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "description": __doc__.splitlines()[0]}
    p = argparse.ArgumentParser(prog="python -m data.split", **how)
    p.add_argument("folder", type=Path, help="[class/]file.mp4, with captions or without")
    p.add_argument("out", type=Path, help="folder that gets train/ and test/")
    p.add_argument("--test", type=float, default=0.25, help="share of all pieces that goes to the test")
    p.add_argument("--video-of", metavar="PATTERN", help="regular expression of names without suffix, whose first "
                   'group is the video: "(.+)_[0-9]+"; each file is a video of its own if not given')  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the choice")
    args = p.parse_args(argv)
    try:
        counts = split_folder(args.folder, args.out, args.test, args.video_of, args.seed)
    except (OSError, ValueError, re.error) as error:
        p.error(str(error))
    print(f"{args.out}: {counts['train']} pieces to train, {counts['test']} to test, no video in both")


if __name__ == "__main__":
    main()

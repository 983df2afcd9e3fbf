"""A user study as in Table 4 of R-FLAV and of AV-Link: people choose between two methods, not knowing which is which.

`write_study` makes a folder to hand out and a key to keep; `tally` turns the forms that come back into figures.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import file_digest, sha256
from html import escape
from math import comb, sqrt
from pathlib import Path
from reprlib import repr as shown
from statistics import NormalDist, quantiles
from string import Template
from typing import Any

from data.choice import choose
from evaluation.questions import SETS, Questions

PAGE = Path(__file__).with_suffix(".html")
SUFFIXES = {".mp4", ".webm", ".mkv"}
SIDES = ("left", "right")
CHOICES = {"left": "Left", "right": "Right", "same": "No difference"}
ONE_DATE = 946_684_800  # all copies are from 1 January 2000 (seconds since 1970): zip knows no date before 1980
ENOUGH_VOTERS = 5  # fewer say nothing about how voters differ
RESAMPLES = 2000
PROTOCOL = (
    "Share of A: (A + same / 2) of all votes. "
    f"By voters: its 95 % interval over {RESAMPLES} draws of voters with replacement, from {ENOUGH_VOTERS} voters on. "
    "Wilson: 95 % interval of A / (A + B), without ties. p: two-sided sign test, without ties. "
    "The last two take votes as independent, which votes of one voter are not."
)

Pair = dict[str, tuple[str, Path]]  # side -> title of the method, its video
Votes = dict[tuple[int, str], str]  # number of the pair, question -> "a", "b" or "same"


def write_study(
    a: Path, b: Path, out: Path, pairs: int | None = None, seed: int = 0, asked: Questions = SETS["r-flav"]
) -> int:
    """Write a blinded study of the videos of two folders: `out` to hand out and, beside it, NAME.key.json to keep.

    Videos of equal name are a pair. The others are paired in sorted order; where one folder has more of them, the rule
    of `data.choice` takes as many by their names. From all pairs the study's are drawn. Each method is on the
    left in half of them. Copies have neutral names and one date; what is inside a file (its size, tags of the encoder)
    stays as it is. The same videos and arguments give the same study.

    Args:
        a, b: folders with mp4, webm or mkv files; folders in them are not searched.
        out: new or empty folder.
        pairs: at most so many are shown; as many as `asked` says if not given.
        seed: of the draw, the order and the sides.
        asked: what is asked about each pair, and how many voters it takes, which the tally tells.
    Returns:
        the number of pairs.
    Raises:
        ValueError: there is nothing to pair, the two videos of a pair differ in suffix, or `out` or the key is taken.
    """
    pairs = asked.pairs if pairs is None else pairs
    if pairs < 1:
        raise ValueError(f"a study of {pairs} pairs shows nothing; ask for at least 1")
    a, b, out = (Path(os.path.abspath(folder)) for folder in (a, b, out))
    key, videos, titles = out.with_name(f"{out.name}.key.json"), (_videos(a), _videos(b)), _titles(a, b)
    drawn = _draw(_paired(*videos, seed), titles, pairs, seed)
    _check_free(out, key)

    record = {
        "study": "",
        "seed": seed,
        "a": titles[0],
        "b": titles[1],
        "folders": {titles[0]: str(a), titles[1]: str(b)},
        "questions": dict(asked.texts),
        "voters": asked.voters,
        "pairs": [_entry(i, pair) for i, pair in enumerate(drawn, 1)],
    }
    record["study"] = _identity(record, drawn)
    out.mkdir(parents=True, exist_ok=True)
    for entry, pair in zip(record["pairs"], drawn):
        for side in SIDES:
            _place(out / _blinded(entry, side), lambda part, source=pair[side][1]: _copy(source, part))
    _place(key, lambda part: part.write_text(json.dumps(record, indent=2), encoding="utf-8"))
    _place(out / "index.html", lambda part: part.write_text(_page(record), encoding="utf-8"))
    return len(drawn)


def _videos(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    found = sorted(p for p in files if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{folder} has no videos ({', '.join(sorted(SUFFIXES))}); give a folder that holds some")
    return found


def _titles(a: Path, b: Path) -> tuple[str, str]:
    """The folders' names or, where they are equal, those of the first parents that differ."""
    if a.samefile(b):
        raise ValueError(f"both folders are {a}; a study compares two")
    return next((x, y) for x, y in zip(reversed(a.parts), reversed(b.parts)) if x != y)


def _paired(a: list[Path], b: list[Path], seed: int) -> list[tuple[Path, Path]]:
    shared = {path.name for path in a} & {path.name for path in b}
    others = [[path for path in files if path.name not in shared] for files in (a, b)]
    fewer = min(map(len, others))
    a, b = (
        [path for path in files if path.name in shared] + choose(alone, fewer, seed, content=lambda path: path.name)
        for files, alone in zip((a, b), others)
    )
    return list(zip(a, b))


def _draw(found: list[tuple[Path, Path]], titles: tuple[str, str], pairs: int, seed: int) -> list[Pair]:
    """Draw pairs in random order, each method on the left in half of them."""
    rng = random.Random(json.dumps([seed, *titles]))  # with the titles, since other studies shall have other sides
    drawn = rng.sample(found, min(pairs, len(found)))
    half = rng.choice([len(drawn) // 2, (len(drawn) + 1) // 2])
    swapped = rng.sample([i < half for i in range(len(drawn))], len(drawn))
    for a, b in drawn:
        _check_suffixes(a, b)
    sides = (zip(titles, pair) for pair in drawn)
    return [dict(zip(reversed(SIDES) if swap else SIDES, side)) for side, swap in zip(sides, swapped)]


def _check_suffixes(a: Path, b: Path) -> None:
    if a.suffix.lower() != b.suffix.lower():
        raise ValueError(
            f"{a} and {b} are to be compared, but {a.suffix} and {b.suffix} tell them apart; convert one of the folders"
        )


def _check_free(out: Path, key: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; choose another for the study")
    if key.exists():
        raise ValueError(f"{key} belongs to a study that was handed out; move it away or choose another folder")


def _entry(i: int, pair: Pair) -> dict[str, Any]:
    return {"pair": i, **{side: {"method": pair[side][0], "file": pair[side][1].name} for side in SIDES}}


def _identity(record: dict[str, Any], drawn: list[Pair]) -> str:
    """12 hex digits that change with any of the videos, their sides and the questions."""
    digest = sha256(json.dumps(record).encode())
    for _, path in (pair[side] for pair in drawn for side in SIDES):
        with path.open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _blinded(entry: dict[str, Any], side: str) -> str:
    return f"pair_{entry['pair']:03d}_{side}{Path(entry[side]['file']).suffix.lower()}"


def _copy(source: Path, target: Path) -> None:
    """Copy bytes only. A hard link would keep the original's date, and giving it another would change the original."""
    shutil.copyfile(source, target)
    os.utime(target, (ONE_DATE, ONE_DATE))


def _place(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write a file that appears under its name once it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    fill(part)
    part.replace(path)


def tally(key: Path, forms: Sequence[Path]) -> dict[str, Any]:
    """Count the votes that came back.

    Args:
        key: NAME.key.json of the study.
        forms: the voters' files; one that leaves questions open counts with the votes it has.
    Returns:
        study, its titles a and b, the numbers of pairs, voters and voters `wanted`, open answers by voter under
        `incomplete`, the `protocol` of the figures in words and, in `questions`, for each: votes for a, b and same,
        voters who answered, share_a, bootstrap (low, high), wilson (low, high), p; None where there are too few votes
        or voters.
    Raises:
        ValueError: a file cannot be read, belongs to another study, has votes that the study does not know or one vote
            twice, or a voter has two files.
    """
    record = _read(key, ("study", "a", "b", "questions", "pairs"), "give the key that was written with the study")
    _check_key(key, record)
    if not forms:
        raise ValueError(f"there are no forms to count for {key}; give the files that voters sent back")
    ballots = _ballots(record, forms)
    full = len(record["pairs"]) * len(record["questions"])
    figures = {}
    for name, text in record["questions"].items():
        counts = [
            Counter(choice for (_, asked), choice in votes.items() if asked == name) for votes in ballots.values()
        ]
        figures[name] = {"text": text, **_figures([count for count in counts if count])}
    return {
        **{name: record[name] for name in ("study", "a", "b")},
        "pairs": len(record["pairs"]),
        "voters": len(ballots),
        "wanted": record.get("voters"),
        "questions": figures,
        "incomplete": {voter: full - len(votes) for voter, votes in ballots.items() if len(votes) < full},
        "protocol": PROTOCOL,
    }


def _read(path: Path, names: Sequence[str], remedy: str) -> dict[str, Any]:
    """Read a JSON object that has at least these names."""
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; {remedy}")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {remedy}") from None
    if not isinstance(found, dict) or not all(name in found for name in names):
        raise ValueError(f"{path} lacks one of {', '.join(names)}; {remedy}")
    return found


def _check_key(key: Path, record: dict[str, Any]) -> None:
    """A key that was changed would give the votes to the wrong method, or to none."""
    titles, questions, pairs = [record["a"], record["b"]], record["questions"], record["pairs"]
    texts = [record["study"], *titles, *(questions.values() if isinstance(questions, dict) else [None])]
    good = all(isinstance(text, str) for text in texts) and titles[0] != titles[1] and isinstance(pairs, list)
    good = good and type(record.get("voters", 0)) is int  # keys of before have none
    if not good or not all(_is_pair(entry, titles) for entry in pairs):
        raise ValueError(f"{key} is damaged; give the key that was written with the study")


def _is_pair(entry: Any, titles: list[str]) -> bool:
    if not isinstance(entry, dict) or type(entry.get("pair")) is not int:
        return False
    sides = [entry.get(side) for side in SIDES]
    methods = [side.get("method") for side in sides if isinstance(side, dict)]
    return methods in (titles, titles[::-1])


def _ballots(record: dict[str, Any], forms: Sequence[Path]) -> dict[str, Votes]:
    """Votes by voter; names that differ in capitals and spaces only are one voter."""
    ballots, sent = {}, {}
    for path in forms:
        form = _read(path, ("study", "voter", "votes"), "ask the voter to save the votes again")
        if form["study"] != record["study"]:
            raise ValueError(
                f"{path} votes in study {shown(form['study'])}, not {shown(record['study'])}; tally it with its own key"
            )
        voter = " ".join(form["voter"].split()) if isinstance(form["voter"], str) else ""
        if not voter:
            raise ValueError(f"{path} has no name of a voter; write one into the file")
        if first := sent.get(voter.casefold()):
            raise ValueError(f"{first} and {path} are both of voter {shown(voter)}; give one of them")
        sent[voter.casefold()], ballots[voter] = path, _votes(record, path, form["votes"])
    return ballots


def _votes(record: dict[str, Any], path: Path, votes: Any) -> Votes:
    """Check the votes of a form and say for which method they are."""
    pairs = {entry["pair"]: entry for entry in record["pairs"]}
    known = {"pair": list(pairs), "question": list(record["questions"]), "choice": list(CHOICES)}
    letters, meant = {record["a"]: "a", record["b"]: "b"}, {}
    for vote in _objects(path, votes):
        for what in known:
            if vote.get(what) not in known[what]:
                raise ValueError(
                    f"{path} votes for {what} {shown(vote.get(what))}, which the study does not have; remove that vote"
                )
        pair, question, choice = (vote[what] for what in known)
        if (pair, question) in meant:
            raise ValueError(f"{path} votes twice for {shown(question)} of pair {pair}; remove one of the votes")
        meant[pair, question] = "same" if choice == "same" else letters[pairs[pair][choice]["method"]]
    return meant


def _objects(path: Path, votes: Any) -> list[dict]:
    if not isinstance(votes, list) or not all(isinstance(vote, dict) for vote in votes):
        raise ValueError(f"{path} has no list of votes; ask the voter to save the votes again")
    return votes


def _figures(counts: list[Counter]) -> dict[str, Any]:
    """What one question's votes say; counts of "a", "b" and "same" of each voter who answered it."""
    total = sum(counts, Counter())
    a, b = total["a"], total["b"]
    return {
        **{choice: total[choice] for choice in ("a", "b", "same")},
        "voters": len(counts),
        "share_a": _share(counts) if counts else None,
        "bootstrap": bootstrap_share(counts) if len(counts) >= ENOUGH_VOTERS else None,
        "wilson": wilson(a, a + b) if a + b else None,
        "p": sign_test(a, b) if a + b else None,
    }


def _share(counts: Sequence[Mapping[str, int]]) -> float:
    return sum(c["a"] + c["same"] / 2 for c in counts) / sum(c["a"] + c["b"] + c["same"] for c in counts)


def bootstrap_share(counts: Sequence[Mapping[str, int]], seed: int = 0) -> tuple[float, float]:
    """95 % interval (low, high) of the share of A, ties counting half, when whole voters are drawn with replacement."""
    rng = random.Random(seed)
    cuts = quantiles([_share(rng.choices(counts, k=len(counts))) for _ in range(RESAMPLES)], n=40, method="inclusive")
    return cuts[0], cuts[-1]


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % score interval (low, high) of a share of which k of n > 0 votes were seen (Wilson, 1927)."""
    z = NormalDist().inv_cdf(0.975)
    middle, half = k + z**2 / 2, z * sqrt(k * (n - k) / n + z**2 / 4)
    return max(0.0, (middle - half) / (n + z**2)), min(1.0, (middle + half) / (n + z**2))


def sign_test(a: int, b: int) -> float:
    """Probability of votes at least as uneven as a to b, either way, if each were the toss of a coin."""
    return min(1.0, 2 * sum(comb(a + b, i) for i in range(min(a, b) + 1)) / 2 ** (a + b))


def table(result: dict[str, Any]) -> str:
    """Plain text for a terminal of what `tally` returns."""
    head = ("question", "A", "B", "same", "voters", "share of A", "by voters", "Wilson", "p")
    rows = [head, *(_row(name, question) for name, question in result["questions"].items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    fewer = f" of {wanted} asked for" if (wanted := result["wanted"]) and result["voters"] < wanted else ""
    title = f"study {result['study']}: {result['pairs']} pairs, voters: {result['voters']}{fewer}"
    open_answers = [f"{voter!r} left open: {n}" for voter, n in result["incomplete"].items()]
    return "\n".join(
        [title, f"A: {result['a']}", f"B: {result['b']}", "", *lines, "", *open_answers, result["protocol"]]
    )


def _row(name: str, question: dict[str, Any]) -> tuple[str, ...]:
    share = "-" if question["share_a"] is None else f"{100 * question['share_a']:.1f} %"
    spans = (question["bootstrap"], question["wilson"])
    ends = ("-" if span is None else f"{100 * span[0]:.1f} to {100 * span[1]:.1f} %" for span in spans)
    p = "-" if question["p"] is None else f"{question['p']:.2g}"
    return (name, *(str(question[n]) for n in ("a", "b", "same", "voters")), share, *ends, p)


def _page(record: dict[str, Any]) -> str:
    """The page for voters; of the record it uses only what voters may know."""
    pairs = "\n".join(_section(entry, len(record["pairs"]), record["questions"]) for entry in record["pairs"])
    total = len(record["pairs"]) * len(record["questions"])
    return Template(PAGE.read_text()).substitute(study=escape(record["study"]), total=total, pairs=pairs)


def _section(entry: dict[str, Any], n: int, questions: Mapping[str, str]) -> str:
    i = entry["pair"]
    videos = "\n".join(VIDEO.substitute(i=i, label=CHOICES[side], file=_blinded(entry, side)) for side in SIDES)
    asked = "\n".join(_question(i, name, text) for name, text in questions.items())
    return PAIR.substitute(i=i, n=n, videos=videos, questions=asked)


def _question(i: int, name: str, text: str) -> str:
    choices = "\n".join(
        CHOICE.substitute(i=i, question=escape(name), value=value, label=label) for value, label in CHOICES.items()
    )
    return QUESTION.substitute(text=escape(text), choices=choices)


CHOICE = Template(
    '<label><input type="radio" name="$i $question" value="$value" data-pair="$i" data-question="$question">'
    " $label</label>"
)
QUESTION = Template("<fieldset><legend>$text</legend>\n$choices\n</fieldset>")
VIDEO = Template(
    '<figure><video src="$file" controls preload="metadata" playsinline aria-label="Pair $i, $label"></video>'
    "<figcaption>$label</figcaption></figure>"
)
PAIR = Template("""<section id="pair-$i">
<h2>Pair $i of $n</h2>
<div class="sides">
$videos
</div>
$questions
</section>""")

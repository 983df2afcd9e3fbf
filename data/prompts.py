"""Files of prompts: a text a line, or JSON objects that say more."""

from dataclasses import dataclass
from pathlib import Path

from data.lines import parsed

KEYS = {"prompt": str, "seed": int, "negative": str}


@dataclass(frozen=True)
class Prompt:
    """What a sample is to show, with the seed of its noise and the text to lead away from, where a line has them."""

    text: str
    seed: int | None = None
    negative: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: one a line; with .jsonl an object a line, of `prompt` and, if wanted, `seed`, `negative`.

    Raises:
        ValueError: a line cannot be understood, told by number; or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a UTF-8 file with a prompt a line") from None
    read = _object if path.suffix.lower() == ".jsonl" else lambda line, where: Prompt(line.strip())
    found = [read(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} has no prompt; give a text a line")
    return found


def _object(line: str, where: str) -> Prompt:
    row = parsed(line, where)
    good = isinstance(row, dict) and "prompt" in row and all(type(row[k]) is KEYS.get(k) for k in row)
    if not good or row.get("seed", 0) < 0:
        raise ValueError(
            f'{where} is not {{"prompt": text}} with, if wanted, "seed": whole number, "negative": text; mend that line'
        )
    return Prompt(row["prompt"], row.get("seed"), row.get("negative"))

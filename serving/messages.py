"""What a page may ask for: every message is checked here before anything is done."""

import json
import math
import re
from collections.abc import Callable

MOST = 4  # films in one batch
LONGEST = 4096  # bytes of a message
PROMPT = 300  # characters of a prompt or a class
STEPS, GUIDANCE = 50, 20.0  # most of either
LARGEST = 2**31 - 1  # frame or seed
TURNS = re.compile(r",\s*\d+\s*:")  # which would begin another turn in a schedule


def whole(low: int, high: int = LARGEST) -> Callable[[object], bool]:
    """Whether something is a whole number from `low` to `high`."""
    return lambda x: type(x) is int and low <= x <= high


def _text(x: object) -> bool:
    fits = isinstance(x, str) and 0 < len(x.split()) and len(x) <= PROMPT
    return fits and x.isprintable() and not TURNS.search(x)


def _guidance(x: object) -> bool:
    return type(x) in (int, float) and math.isfinite(x) and 1 <= x <= GUIDANCE


# what is asked for -> its facts: what they must be, in words, and whether something is that
_FILM = ("a film's number", whole(1))
_SEED = (f"a whole number from 0 to {LARGEST}", whole(0))
ASKED: dict[str, dict[str, tuple[str, Callable[[object], bool]]]] = {
    "label": {"film": _FILM, "to": (f"a text of 1 to {PROMPT} characters, no number and colon after a comma", _text)},
    "seed": {"film": _FILM, "to": _SEED},
    "steps": {"to": (f"a whole number from 1 to {STEPS}", whole(1, STEPS))},
    "guidance": {"to": (f"a number from 1 to {GUIDANCE:g}", _guidance)},
    "fork": {"film": _FILM, "at": _SEED, "seed": _SEED},
    "close": {"film": _FILM},
    "joint": {"film": _FILM},
    "pause": {},
    "play": {},
    "release": {},
    "playing": {"on": ("true or false", lambda x: type(x) is bool)},
}
OPTIONAL = {("fork", "at"), ("fork", "seed")}


def checked(text: str) -> tuple[dict, int]:
    """A message as it came, as a dict that asks for something known, and the number it is answered with.

    Raises:
        ValueError: it is wrong; in one sentence, which repeats nothing of it but names that are known.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a message has {LONGEST} characters at most; send a shorter one")
    try:
        message = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError('a message is JSON such as {"do": "pause"}; send that') from None
    if not isinstance(message, dict) or not isinstance(message.get("do"), str) or message["do"] not in ASKED:
        raise ValueError(f"a message asks to do one of {', '.join(ASKED)}; send one of these")
    number = message.pop("id", 0)
    if not whole(0)(number):
        raise ValueError(f"id is {_SEED[0]}; send such a number or none")
    what, facts = message["do"], ASKED[message["do"]]
    for name, (words, fits) in facts.items():
        missing = name not in message and (what, name) not in OPTIONAL
        if missing or (name in message and not fits(message[name])):
            raise ValueError(f"{name} of {what} is {words}; send such a value")
    if len(message) > 1 + sum(name in message for name in facts):
        raise ValueError(f"{what} takes {', '.join(facts) or 'nothing'} and nothing else; leave the rest out")
    return message, number


def _no_number(name: str) -> None:
    raise ValueError(name)

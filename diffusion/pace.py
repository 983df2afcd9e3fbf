"""How fast a stream goes: n steps of the sampler per frame, or for n = 1/m m frames per step. Imports no torch."""

from argparse import ArgumentTypeError

SOLVERS = ("euler", "ab2")


def pace(n: float) -> tuple[int, int]:
    """Steps per frame and frames that leave per call of `num_timesteps` n: (n, 1), or (1, m) for n = 1/m.

    Raises:
        ValueError: n is neither whole nor 1/m.
    """
    unit, m = (round(n), 1) if n >= 1 else (1, round(1 / n) if n > 0 else 0)
    if m < 1 or abs(n * m - unit) > 1e-9:
        raise ValueError(f"num_timesteps {n:g} {_wrong(n)}")
    return unit, m


def check_pace(n: float, T: int) -> None:
    """Refuse a `num_timesteps` by which the frames that leave per call do not divide a window of T.

    Raises:
        ValueError: in one sentence, with the nearest that do.
    """
    m = pace(n)[1]
    if T % m:
        divisors = [d for d in range(1, T + 1) if T % d == 0]
        near = [max(d for d in divisors if d < m), *[d for d in divisors if d > m][:1]]
        raise ValueError(
            f"num_timesteps {_share(m)} lets {m} frames leave per call, which do not divide a window of {T}; give "
            f"{' or '.join(map(_share, near))}, the nearest that do"
        )


def check_sampling(n: float, solver: str | None, T: int | None) -> None:
    """Refuse steps or a solver that a model does not take.

    Args:
        T: its window; None of a model of whole clips.
    Raises:
        ValueError: in one sentence, with what it takes.
    """
    if T is not None:
        return check_pace(n, T)
    if pace(n)[1] > 1:
        raise ValueError(f"num_timesteps {_share(pace(n)[1])} is for models that roll, and this one makes whole clips; "
                         "give a whole number, such as 50")  # fmt: skip
    if solver == "ab2":
        raise ValueError("solver ab2 is for models that roll, and this one makes whole clips; leave it out")


def read_pace(text: str) -> int | float:
    """Type of an argument that gives `num_timesteps`: a whole number, 0.5, 0.25, 1/3."""
    over, slash, under = text.partition("/")
    try:
        n = float(over) / float(under) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        n = 0.0
    if n >= 1 and n.is_integer():
        return int(n)
    if 0 < n < 0.6 and abs(n * round(1 / n) - 1) < 0.011:  # people write 0.33 for a third
        return 1 / round(1 / n)
    raise ArgumentTypeError(f"{text} {_wrong(n)}")


def _wrong(n: float) -> str:
    """What to say of a number that is no `num_timesteps`."""
    said = "is not a whole number of 1 or more, nor 0.5, 0.25 or another 1/m"
    if not 0 < n < float("inf"):
        return f"{said}; give such as 2"
    near = (str(int(n)), str(int(n) + 1)) if n > 1 else (_share(int(1 / n) + 1), _share(int(1 / n)))
    return f"{said}; give {' or '.join(near)}, the nearest"


def _share(m: int) -> str:
    """1/m as people write it."""
    decimal = f"{1 / m:g}"
    return decimal if float(decimal) == 1 / m else f"1/{m}"

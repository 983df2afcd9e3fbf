"""train.py with one preset more, which is small enough for tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from models import FLAV_presets

SMALL = {"FLAV-mini": {**FLAV_presets["FLAV-tiny"], "hidden_size": 32, "num_heads": 2}}


def main() -> None:
    FLAV_presets.update(SMALL)
    train.main(sys.argv[1:])


if __name__ == "__main__":
    train.cli.run(main)

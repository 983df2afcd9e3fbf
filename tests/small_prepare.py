"""prepare.py with one file on its contact sheet: drawing it takes longer than all the rest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import prepare

SHOWN = 1


def main() -> None:
    prepare.SHOWN = SHOWN
    prepare.main(sys.argv[1:])


if __name__ == "__main__":
    prepare.cli.run(main)

"""train.py with one preset more, which is small enough for tests, and no time spent on what its device can do.

Where LINGERS is a step, the process waits a while after it, so that a test strikes it there.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from models import FLAV_presets
from models.avlink import AVLink_presets
from models.syncflow import SyncFlow_presets
from training import ceiling
from training.storage import Journal

MINI = {"hidden_size": 32, "depth": 2, "num_heads": 2}
SMALL = {"FLAV-mini": {**FLAV_presets["FLAV-tiny"], **MINI}}
SMALL_CLIPS = {"SyncFlow-mini": {**SyncFlow_presets["SyncFlow-tiny"], **MINI}}
SMALL_LINKS = {
    "AVLink-mini": {
        **AVLink_presets["AVLink-tiny"],
        **MINI,
        "depth": 3,
        "placement": [1, 2],
        "link_size": 32,
        "patch_size": 2,
    }
}
LINGERS = int(os.environ.get("LINGERS", 0))
SECONDS = 2


def lingering(write):
    """Lines of the log, after one of which the process waits."""

    def written(self, record):
        write(self, record)
        if record["step"] == LINGERS:
            time.sleep(SECONDS)

    return written


def main() -> None:
    FLAV_presets.update(SMALL)
    SyncFlow_presets.update(SMALL_CLIPS)
    AVLink_presets.update(SMALL_LINKS)
    ceiling.matmul_ceiling = lambda *args, **how: 1e11
    Journal.write = lingering(Journal.write)
    train.main(sys.argv[1:])


if __name__ == "__main__":
    train.cli.run(main)

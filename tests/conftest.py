"""What every test shares: one thread, the fixtures' folder, and the parity cases of the official implementation."""

import functools
import gc
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

gc.disable()  # until all is imported: it would look through that again and again
os.environ["HF_HUB_OFFLINE"] = "1"  # read on import of the hub's library: no test waits for a network

FIXTURES = Path(__file__).parent / "fixtures"
PARITY = FIXTURES / "parity"

torch.set_num_threads(1)  # tests are small: a second thread costs more than it brings, and one thread is reproducible


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="module")
def small_preset():
    """A mini of each system, of which other tests need not know; the device's ceiling is measured once."""
    from models import FLAV_presets
    from models.avlink import AVLink_presets
    from models.syncflow import SyncFlow_presets
    from tests.small_train import SMALL, SMALL_CLIPS, SMALL_LINKS
    from training import ceiling

    measured = functools.cache(ceiling.matmul_ceiling)
    with (
        patch.dict(FLAV_presets, SMALL),
        patch.dict(SyncFlow_presets, SMALL_CLIPS),
        patch.dict(AVLink_presets, SMALL_LINKS),
        patch.object(ceiling, "matmul_ceiling", measured),
    ):
        yield


@pytest.fixture(scope="session")
def parity():
    """`parity("joint_uncond_w4_k2")` -> the manifest's case, with `.tensors` and `.weights` where it has some."""
    manifest = json.loads((PARITY / "manifest.json").read_text())
    cases = {case["name"]: case for case in manifest["cases"]}

    def load(name: str) -> SimpleNamespace:
        case = cases[name]
        tensors = load_file(PARITY / case["file"]) if case["file"].endswith(".safetensors") else {}
        weights = load_file(PARITY / case["weights"]) if "weights" in case else {}
        more = {"path": PARITY / case["file"], "folder": PARITY, "tensors": tensors, "weights": weights}
        return SimpleNamespace(**{**case, **more})

    return load


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported stays: the garbage collector need not look through it, nor processes import it anew."""
    gc.collect()
    gc.freeze()
    gc.enable()
    if processes := sys.modules.get("tests.processes"):
        processes.context()

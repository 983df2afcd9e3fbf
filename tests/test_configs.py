"""configs/: accelerate and train.py read each file as what its name says."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

import train
from models import MODELS

ROOT = Path(__file__).parents[1]
CONFIGS, BALLS = ROOT / "configs/accelerate", ROOT / "configs/balls"


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [("gpu_1", "NO", 1, 1), ("ddp_8", "MULTI_GPU", 1, 8), ("fsdp_8", "FSDP", 1, 8), ("ddp_2x8", "MULTI_GPU", 2, 16)],
)
def test_config_is_what_its_name_says(name, kind, machines, processes):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind and config.mixed_precision == "bf16"
    assert (config.num_machines, config.num_processes, config.use_cpu) == (machines, processes, False)


@pytest.mark.parametrize("name", sorted(path.name for path in BALLS.iterdir()))
def test_arguments_of_balls_are_trains_own_and_say_what_they_are_for(name, tmp_path):
    args = train.parse([f"@{BALLS / name}", "--data-path", "D", "--experiment-dir", str(tmp_path)])
    assert (args.text_encoder == "words") != (args.stage == "link") and (BALLS / name).read_text().startswith("# ")
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    assert any(f"train.py @configs/balls/{name}" in page.read_text() for page in pages)


def test_every_config_is_tested_and_says_what_it_is_for():
    names = {path.stem for path in CONFIGS.iterdir()}
    assert names == {"gpu_1", "ddp_8", "fsdp_8", "ddp_2x8"}
    assert all(path.read_text().startswith("# ") for path in CONFIGS.iterdir())


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_fsdp_wraps_the_blocks_that_a_model_names(kind):
    settings = load_config_from_file(str(CONFIGS / "fsdp_8.yaml")).fsdp_config
    assert (
        settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP" and len(settings) == 5
    )  # and no names of its own
    with torch.device("meta"):
        model = kind(**{**next(iter(kind.presets.values())), "depth": 1})
    assert {type(module).__name__ for module in model.modules()} >= set(kind._no_split_modules)

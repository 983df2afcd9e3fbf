"""How models are kept: a folder with config.json and model.safetensors, here or on the hub."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn

FILES = ("config.json", "model.safetensors")
TRAINING = {"lr": 1e-4, "warmup_steps": 0, "beta2": 0.999, "weight_decay": 0.02}  # of AdamW


class Pretrained(PyTorchModelHubMixin):
    """The hub's mixin for modules, with a loader that is strict, silent and reads safetensors only.

    Attributes:
        system: what its config.json calls the class. presets: arguments by name.
        rolls: whether each frame has a flow time of its own, so that streams can be made; else it makes whole clips.
        frames: of a clip in training, or of the window, where none are given.
        sampling: weight of the loss over time, or how times of clips are drawn, where none is given.
        stages: of training, by name; stages_from_weights: those of them that go on from trained weights;
            stages_holding: those in which one side is given at a fixed time while the other learns.
        variants: arguments of its ablations, by name.
        takes: sides that may be given while the other is made. methods: how, the one that is its own first.
        needs_text: whether a model of whole clips makes nothing without one.
        towers: stages in which the tower of one side is trained by itself -> that side. links: stages in which one side
            is made for a given other -> the sides that are. conditioning_times: flow times at which a given picture and
            a given sound are held; None where they move with what is made for them.
        of_towers: arguments that make its towers what they are, but for those of_data, which clips and texts settle.
        of_linked: what config.json records of the towers that a trained link belongs to.
        training: arguments of train.py where none are given.
        num_timesteps, cfg_scale: steps of sampling, a frame or a clip, and guidance, where none are given.
    """

    system: ClassVar[str]
    presets: ClassVar[dict[str, dict]]
    rolls: ClassVar[bool]
    frames: ClassVar[int]
    sampling: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ()
    stages_from_weights: ClassVar[tuple[str, ...]] = ()
    stages_holding: ClassVar[tuple[str, ...]] = ()
    variants: ClassVar[dict[str, dict]] = {}
    takes: ClassVar[tuple[str, ...]] = ("picture", "sound")
    methods: ClassVar[tuple[str, ...]] = ("guide", "replace", "clean")
    needs_text: ClassVar[bool] = True
    towers: ClassVar[dict[str, str]] = {}
    links: ClassVar[dict[str, tuple[str, ...]]] = {}
    conditioning_times: Sequence[float] | None = None
    of_towers: ClassVar[tuple[str, ...]] = ()
    of_data: ClassVar[tuple[str, ...]] = ()
    of_linked: ClassVar[tuple[str, ...]] = ()
    training: ClassVar[dict[str, float]] = TRAINING
    num_timesteps: ClassVar[int]
    cfg_scale: ClassVar[float]

    @classmethod
    def least_weights(cls, config: Mapping) -> tuple[int, int]:
        """How many numbers, and in how many tensors, a model of this config has at least: cheap, and never too many."""
        raise NotImplementedError

    @classmethod
    def check_stage(cls, stage: str, **config) -> None:
        """Raise a ValueError if a model of these arguments has no such stage of training."""
        if stage not in cls.stages:
            raise ValueError(f"stage {stage!r} is unknown; choose one of {', '.join(cls.stages)}")

    def methods_for(self, given: str) -> tuple[str, ...]:
        """How a "picture" or a "sound" may be given, the way that is the model's own first."""
        return self.methods

    def recorded(self) -> dict[str, str]:
        """What config.json records of the weights."""
        return {}

    def check_recorded(self, config: Mapping, folder: Path) -> None:
        """Raise a ValueError if a config.json records other weights than those that lay beside it."""

    def save_pretrained(self, save_directory: str | Path, **how) -> str | None:
        done = super().save_pretrained(save_directory, **how)
        path = Path(save_directory) / "config.json"
        path.write_text(
            json.dumps({"system": self.system, **self.recorded(), **json.loads(path.read_text())}, indent=2)
        )
        return done

    @classmethod
    def _from_pretrained(
        cls, *, model_id, local_files_only, revision, cache_dir, force_download, token, **architecture
    ):
        hub = dict(revision=revision, cache_dir=cache_dir, force_download=force_download, token=token)
        folder = checkpoint_folder(model_id, local_files_only=local_files_only, **hub)
        model = cls(**architecture)
        model.load(load_file(folder / "model.safetensors"), source=str(folder / "model.safetensors"))
        model.check_recorded(json.loads((folder / "config.json").read_text()), folder)
        return model.eval()

    def load(self, state: dict[str, Tensor], source: str = "state") -> None:
        """Load weights by their names; every key must be there and no other.

        Raises:
            ValueError: keys or shapes differ; names the first few.
        """
        own = self.state_dict()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
        if missing or extra or shapes:
            differs = [f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in sorted(shapes)]
            raise ValueError(
                f"{source} does not fit this model: missing {missing[:3]}, unknown {extra[:3]}, {differs[:3]} "
                f"({len(missing)}, {len(extra)} and {len(shapes)} in all); check its config.json"
            )
        self.load_state_dict(state)


def checkpoint_folder(model_id: str, **hub) -> Path:
    """The local folder of a model's config and weights: `model_id` itself, or its snapshot.

    Args:
        hub: as of `snapshot_download`.
    Raises:
        FileNotFoundError: a file is missing.
    """
    folder = Path(model_id)
    if not folder.is_dir():
        folder = Path(snapshot_download(model_id, allow_patterns=list(FILES), **hub))
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a folder that train.py exported, or a hub id")
    return folder


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a plain model's weights, in float32: training in float64 from a float32 base keeps it."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.float().cpu().flatten().numpy())  # as they lie in memory: a copy would take as long again
    return digest.hexdigest()

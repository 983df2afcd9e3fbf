"""Clips cut from files that were encoded whole: what training reads when no video needs decoding any more."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from data.past import first_needed, with_past


@dataclass(frozen=True)
class EncodedFile:
    """One file in model space: mean, std (F,C,h,w) of its video latents, a (F,S,M) its scaled mel, y its class."""

    mean: Tensor
    std: Tensor
    a: Tensor
    y: int
    path: str


class LatentDataset(Dataset):
    """Every clip of `clip_frames` frames in encoded files, in the order of `ClipDataset`.

    Exact because codecs work frame by frame and the mel of a clip is the slice of its file's mel.
    Item: `mean`, `std` (T,C,h,w), `a` (T,S,M), `y`, `path`, `start`. With `ages` of a memory its frames come before
    those of the clip, as `data.past.with_past` sets them.
    """

    def __init__(self, files: Sequence[EncodedFile], clip_frames: int, ages: Sequence[int] = ()):
        self.files, self.clip_frames, self.ages = files, clip_frames, ages
        self._ends = list(accumulate(len(file.mean) - clip_frames + 1 for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = bisect_right(self._ends, index)
        start = index - (self._ends[i - 1] if i else 0)
        file, cut = self.files[i], slice(first_needed(start, self.ages), start + self.clip_frames)
        parts = {"mean": file.mean, "std": file.std, "a": file.a}
        latents = {name: with_past(x[cut], start, self.ages) for name, x in parts.items()}
        return {**latents, "y": file.y, "path": file.path, "start": start}

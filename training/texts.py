"""Captions of a data set as tokens, encoded once and kept in float16."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data.prepared import PreparedDataset
from models.text import Text, TextEncoder, load_text_encoder, padded

FILE = "text.safetensors"  # of a prepared folder
TOGETHER = 32  # captions in one call of the encoder


class Texts:
    """Tokens of captions by their position; position -1 is the null text. From a file, only what is asked for is read.

    Args:
        tokens: (N,D) float16 of all captions in a row, or such a slice of a file. ends: (P,) where each one ends.
    Attributes:
        width: D. longest: tokens of the longest caption.
    """

    def __init__(self, tokens, ends: Tensor):
        self._tokens, self._ends = tokens, [0, *ends.tolist()]
        self.width = tokens[:0].shape[1]
        self.longest = max((end - start for start, end in pairwise(self._ends)), default=0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __call__(self, places: Tensor) -> Text:
        """Text of captions (B,) on the CPU, in float32."""
        cuts = (slice(*self._ends[i : i + 2]) if i >= 0 else slice(0, 0) for i in places.tolist())
        return padded([self._tokens[cut].float() for cut in cuts], self.width)

    @classmethod
    def encoded(cls, captions: Sequence[str], encoder: TextEncoder, progress: Callable = iter) -> "Texts":
        """Encode captions.

        Args:
            progress: wraps the row of batches, as tqdm does.
        """
        found = []
        for first in progress(range(0, len(captions), TOGETHER)):
            found += [x.half() for x in encoder.encode(captions[first : first + TOGETHER])]
        return cls(torch.cat(found), torch.tensor([len(x) for x in found]).cumsum(0))

    def save(self, path: Path, **facts: str) -> None:
        """Write a safetensors file with these facts; it appears whole or not at all."""
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(save({"tokens": self._tokens, "ends": torch.tensor(self._ends[1:])}, facts))
        part.replace(path)

    @classmethod
    def open(cls, path: Path) -> tuple["Texts", dict[str, str]]:
        """What `save` wrote, mapped into memory, and its facts.

        Raises:
            ValueError: the file is missing or damaged.
        """
        try:
            file = safe_open(path, framework="pt")
            return cls(file.get_slice("tokens"), file.get_tensor("ends")), file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is missing or damaged ({error}); run prepare.py again") from None


def encoded_texts(captions: Sequence[str], reader: TextEncoder, progress: Callable = iter) -> tuple[Texts, str]:
    """Captions encoded in memory, and what to say of those that were cut."""
    return Texts.encoded(captions, reader, progress), cut_summary(captions, reader)


def prepare_texts(
    out: Path, captions: Sequence[str], encoder: str, source: str | None, progress: Callable = iter
) -> tuple[dict, str]:
    """text.safetensors of a prepared folder, unless it is there for these captions; what its index says of it.

    Returns:
        The facts for the index, and what to say of captions that were cut.
    """
    facts = {"encoder": encoder, "source": source or "", "captions": hash_captions(captions)}
    path, cut = out / FILE, ""
    try:
        texts, there = Texts.open(path)
    except ValueError:
        there = {}
    if there != facts:
        texts, cut = encoded_texts(captions, load_text_encoder(encoder, source), progress)
        texts.save(path, **facts)
    return {"encoder": encoder, "source": source, "width": texts.width, "captions": list(captions)}, cut


def prepared_texts(data: PreparedDataset, encoder: str, source: str | None) -> Texts:
    """The tokens of the captions of a prepared folder.

    Raises:
        ValueError: they were not prepared, or by another encoder.
    """
    root, said = data.folder.parent, data.text
    if not said:
        raise ValueError(f"{root} was prepared without text; run prepare.py again with --text-encoder {encoder}")
    if (said["encoder"], said["source"]) != (encoder, source):
        told = " ".join(filter(None, (said["encoder"], said["source"])))
        raise ValueError(f"{root} was prepared with text encoder {told}; give that, or prepare another folder")
    texts, facts = Texts.open(root / FILE)
    if facts.get("captions") != hash_captions(said["captions"]):
        raise ValueError(f"{root / FILE} is not the file that the index means; run prepare.py again")
    return texts


def hash_captions(captions: Sequence[str]) -> str:
    """sha256 of captions in their order."""
    return sha256("\n".join(captions).encode(errors="backslashreplace")).hexdigest()


def cut_summary(captions: Sequence[str], encoder: TextEncoder) -> str:
    """What to say of captions that are longer than the encoder takes; "" if none is."""
    cut = sum(length > encoder.most for length in encoder.lengths(captions))
    return f"{cut} of {len(captions)} captions were cut to {encoder.most} tokens" if cut else ""

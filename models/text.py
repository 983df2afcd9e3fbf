"""Texts as a model reads them: tokens of fixed encoders, a class and a line of the registry each."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor, nn

NULL_TEXT = -1  # label of what no prompt says anything of


@dataclass(frozen=True)
class Text:
    """Texts of a batch: tokens (B,L,D), and mask (B,L) bool of those that there are. A row of none is the null text.

    Of each frame of a clip: (B,T,L,D) and (B,T,L).
    """

    tokens: Tensor
    mask: Tensor

    @property
    def there(self) -> Tensor:
        """(B,) or (B,T) bool, which rows say anything."""
        return self.mask.any(-1)

    def pooled(self) -> Tensor:
        """Mean over the tokens that there are, (B,D) or (B,T,D); zero for the null text."""
        mask = self.mask.unsqueeze(-1).to(self.tokens.dtype)
        return (self.tokens * mask).sum(-2) / mask.sum(-2).clamp(min=1)

    def to(self, *where) -> Text:
        """On a device, or with tokens of a dtype."""
        dtypes = [x for x in where if isinstance(x, torch.dtype)]
        devices = [x for x in where if not isinstance(x, torch.dtype)]
        return Text(self.tokens.to(*devices, *dtypes), self.mask.to(*devices))

    def __getitem__(self, rows) -> Text:
        return Text(self.tokens[rows], self.mask[rows])


def padded(texts: Sequence[Tensor], width: int) -> Text:
    """One `Text` of encoded texts (L_i,D) of different lengths, L_i 0 for the null text."""
    lengths = torch.tensor([len(x) for x in texts])
    L = max(1, int(lengths.max()) if len(texts) else 1)
    tokens = torch.zeros(len(texts), L, width)
    for row, x in zip(tokens, texts):
        row[: len(x)] = x
    return Text(tokens, torch.arange(L) < lengths.unsqueeze(1))


def with_null(text: Text | None, null: Tensor, clips: int) -> Text:
    """Text of so many clips, in which the null text is one token, `null` (D,); None is the null text of all."""
    if text is None:
        return Text(null.expand(clips, 1, -1), torch.ones(clips, 1, dtype=torch.bool, device=null.device))
    first = torch.arange(text.mask.shape[1], device=null.device) == 0
    nothing = ~text.there.unsqueeze(1)
    tokens = torch.where((nothing & first).unsqueeze(-1), null, text.tokens.to(null.dtype))
    return Text(tokens, text.mask | (nothing & first))


class TextEncoder(nn.Module, ABC):
    """Texts -> tokens of a fixed width; nothing of it is trained.

    Attributes:
        name: in the registry. width: D of a token. most: tokens of a text, beyond which it is cut.
    """

    name: str
    width: int
    most: int = 300  # as SyncFlow's family takes

    @abstractmethod
    def __init__(self, source: str | None = None):
        """source: where its weights are, a local directory or hub id; None its default."""
        super().__init__()

    @abstractmethod
    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Tokens of each text, float32 (L,width) on the CPU, L at most `most` and 0 for a text without a word."""


class Words(TextEncoder):
    """Each word a unit Gaussian vector keyed by its letters, capitals or not; it needs no weights and no download.

    Texts that share words have means that lie near each other, so a phrasing never seen is understood by its words.
    """

    name, width = "words", 64

    def __init__(self, source: str | None = None):
        super().__init__(source)
        if source:
            raise ValueError(f"the text encoder words has no weights, so none can come from {source}; leave it out")

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(_words(text)) for text in texts]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        found = [[_word_vector(word, self.width) for word in _words(text)[: self.most]] for text in texts]
        return [torch.stack(vectors) if vectors else torch.zeros(0, self.width) for vectors in found]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalize("NFC", text).casefold())


@lru_cache(maxsize=2**14)
def _word_vector(word: str, width: int) -> Tensor:
    key = int.from_bytes(sha256(word.encode(errors="surrogatepass")).digest()[:16])
    draws = np.random.Generator(np.random.Philox(key=[key % 2**64, key >> 64]))
    return torch.from_numpy(draws.standard_normal(width, dtype=np.float32))


class T5(TextEncoder):
    """The encoder of a T5 (Raffel et al., 2020, arXiv 1910.10683) through transformers."""

    name = "t5"

    def __init__(self, source: str | None = None):
        super().__init__(source)
        from transformers import AutoTokenizer, T5EncoderModel  # seconds, which other encoders do not need

        source = source or "google/t5-v1_1-xxl"
        local = Path(source).is_dir()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
            self.encoder = T5EncoderModel.from_pretrained(source, local_files_only=local).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FileNotFoundError(
                f"text encoder {source} cannot be loaded ({reason}); give --text-source the folder or hub id of a T5"
            ) from None
        self.width = self.encoder.config.d_model

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) if text.strip() else 0 for text, ids in zip(texts, self._ids(texts, None))]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        said = [text for text in texts if text.strip()]
        found = iter([])
        if said:
            ids = [torch.tensor(row) for row in self._ids(said, self.most)]
            grid = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.encoder.config.pad_token_id or 0)
            mask = torch.arange(grid.shape[1]) < torch.tensor([[len(row)] for row in ids])
            device = self.encoder.device
            hidden = self.encoder(input_ids=grid.to(device), attention_mask=mask.to(device)).last_hidden_state
            found = iter([x[: len(row)].float().cpu() for x, row in zip(hidden, ids)])
        return [next(found) if text.strip() else torch.zeros(0, self.width) for text in texts]

    def _ids(self, texts: Sequence[str], most: int | None) -> list[list[int]]:
        how = {"truncation": True, "max_length": most} if most else {"verbose": False}
        return self.tokenizer(list(texts), **how)["input_ids"]


TEXT_ENCODERS: dict[str, type[TextEncoder]] = {encoder.name: encoder for encoder in (Words, T5)}


def load_text_encoder(name: str, source: str | None = None) -> TextEncoder:
    """The encoder of a name in the registry, in evaluation mode.

    Raises:
        ValueError: there is no such encoder. FileNotFoundError: its weights cannot be had.
    """
    if name not in TEXT_ENCODERS:
        raise ValueError(f"text encoder {name!r} is unknown; choose one of {', '.join(TEXT_ENCODERS)}")
    return TEXT_ENCODERS[name](source).eval()

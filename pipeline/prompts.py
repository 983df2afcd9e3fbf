"""Prompts of a pipeline: texts by number, encoded once, so that a frame's text is a label like a class."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten

import torch
from torch import Tensor

from models.text import NULL_TEXT, TextEncoder, padded

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Said:
    """Texts and what a model reads of each: vectors (P,D_t) float32 on the CPU, the means of their tokens."""

    texts: tuple[str, ...]
    vectors: Tensor

    def only(self, labels: Tensor) -> tuple["Said", Tensor]:
        """The texts that these labels have, and the labels among them."""
        used = [label for label in labels.unique().tolist() if label != NULL_TEXT]
        place = torch.full((len(self.texts) + 1,), NULL_TEXT)
        place[used] = torch.arange(len(used))
        return Said(tuple(self.texts[i] for i in used), self.vectors[used]), place[labels]


class Prompts:
    """The texts that a pipeline has met. What is there stays, so a label means the same for ever.

    Args:
        open_encoder: makes the encoder, when the first text is new. width: D_t that the model takes.
    """

    def __init__(self, open_encoder: Callable[[], TextEncoder], width: int):
        self._open, self._encoder, self._width = open_encoder, None, width
        self.said = Said((), torch.zeros(0, width))

    def labels(self, y: int | str | Sequence[str] | Tensor | None) -> Tensor:
        """Labels of a text or of several, or labels as they are; None is the null text.

        Raises:
            ValueError: a label is that of no text; as of `label`.
        """
        if isinstance(y, str):
            return torch.tensor(self.label(y))
        if is_texts(y):
            return torch.tensor([self.label(text) for text in y])
        y = torch.as_tensor(NULL_TEXT if y is None else y)
        if y.min() < NULL_TEXT or y.max() >= len(self.said.texts):
            raise ValueError(f"label {y.tolist()} is that of no text; give the text itself")
        return y

    def label(self, text: str) -> int:
        """The label of a text; without a word it is the null text.

        Raises:
            ValueError, FileNotFoundError: the encoder is not the model's, or cannot be had.
        """
        text = " ".join(text.split())
        if not text:  # also of a model that reads none
            return NULL_TEXT
        if text in self.said.texts:
            return self.said.texts.index(text)
        tokens, (length,) = self.encoder.encode([text]), self.encoder.lengths([text])
        if length > len(tokens[0]):
            log.warning("a prompt of %s tokens is cut to %s: %s", length, len(tokens[0]), shorten(text, 60))
        if not len(tokens[0]):
            return NULL_TEXT
        rounded = tokens[0].half().float()  # as in training
        self._keep(rounded)
        return self._add(text, padded([rounded], self._width).pooled())

    def _keep(self, tokens: Tensor) -> None:
        """What to do with the tokens (L,D) of a new text: a stream needs their mean only."""

    def take(self, said: Said) -> Tensor:
        """Make the texts of a state known: (P + 1,) the label here of each, and last that of the null text."""
        known = self.said.texts
        labels = [known.index(text) if text in known else self._add(text, vector.unsqueeze(0))
                  for text, vector in zip(said.texts, said.vectors)]  # fmt: skip
        return torch.tensor([*labels, NULL_TEXT])

    @property
    def encoder(self) -> TextEncoder:
        """The encoder, whose width is the model's."""
        if self._encoder is None:
            encoder = self._open()
            if encoder.width != self._width:
                raise ValueError(
                    f"text encoder {encoder.name} gives tokens of width {encoder.width}, this model takes "
                    f"{self._width}; give --text-source the encoder that it was trained with"
                )
            self._encoder = encoder
        return self._encoder

    def _add(self, text: str, vector: Tensor) -> int:
        self.said = Said((*self.said.texts, text), torch.cat([self.said.vectors, vector]))
        return len(self.said.texts) - 1


def is_texts(y) -> bool:
    """Whether this is a text, or a row of them, and no labels."""
    return isinstance(y, str) or (isinstance(y, Sequence) and bool(y) and isinstance(y[0], str))

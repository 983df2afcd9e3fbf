"""Sound from a mel that arrives in pieces, without seams and in constant memory."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor


class Vocoder(Protocol):
    """What a stream needs of a vocoder."""

    hop: int  # samples per mel frame
    n_mels: int
    state_keys: frozenset[str]  # of the state that `speak` returns; "mel" (B,M,f) is always among them

    def __call__(self, log_mel: Tensor) -> Tensor:
        """log-mel (B,M,F) -> wave (B, F * hop)."""

    def ahead(self, step: int) -> int:
        """Mel frames that must follow one before a stream that takes `step` at a time has spoken it, at most."""

    def speak(self, log_mel: Tensor, state: dict[str, Tensor], last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of a stream, a pure function: the samples (B, n * hop) that are ready, and the state after them.

        Args:
            log_mel: (B,M,f) next frames; f may be 0.
            state: what the last step returned, {} at the beginning.
            last: no frames will follow, so all samples are ready.
        """


def stream(vocoder: Vocoder, mels: Iterable[Tensor]) -> Iterator[Tensor]:
    """Waves (B, n * hop) of consecutive mel chunks (B,M,f), as soon as they are ready: joined, one per mel frame."""
    voice = VocoderStream(vocoder)
    for mel in mels:
        if (wave := voice.push(mel)).shape[-1]:
            yield wave
    if voice.state():
        yield voice.finish()


class VocoderStream:
    """A vocoder in the middle of a sound: mel frames in, the samples that no later frame can change out.

    Args:
        vocoder: whose joined chunks are the samples of the whole mel.
        state: the `state()` of a stream to go on with, bit for bit where arithmetic repeats itself (CPU, same number
            of threads); None for a new one.
    Raises:
        ValueError: the state belongs to a stream of another vocoder.
    """

    def __init__(self, vocoder: Vocoder, state: dict[str, Tensor] | None = None):
        self.vocoder, self._state = vocoder, dict(state or {})
        if self._state and self._state.keys() != vocoder.state_keys:
            raise ValueError(
                f"the state holds {sorted(self._state)}, a stream of this vocoder has {sorted(vocoder.state_keys)}; "
                f"resume with the vocoder that the stream was begun with"
            )

    def state(self) -> dict[str, Tensor]:
        """All that a resumed stream needs, (B, ...) each, contiguous and never written to again; {} if it is new."""
        return dict(self._state)

    def push(self, mel: Tensor) -> Tensor:
        """Take mel frames (B,M,f), return the samples (B, n * hop) that are ready; n may be 0.

        Raises:
            ValueError: the mel has another height than the vocoder, or another batch than the stream.
        """
        if self._state and mel.shape[:-1] != self._state["mel"].shape[:-1]:
            raise ValueError(
                f"mel has shape {tuple(mel.shape)}, the stream goes on with {tuple(self._state['mel'].shape[:-1])} "
                f"clips and mel bins; begin another stream for other clips"
            )
        wave, self._state = self.vocoder.speak(mel, self._state, last=False)
        return wave

    def finish(self) -> Tensor:
        """The samples (B, n * hop) of the frames still waiting; afterwards the stream is as new.

        Raises:
            ValueError: no mel was pushed.
        """
        if not self._state:
            raise ValueError("the vocoder stream has no mel to finish; push at least one chunk first")
        wave, _ = self.vocoder.speak(self._state["mel"][..., :0], self._state, last=True)
        self._state = {}
        return wave


def speak_in_context(
    vocoder: Vocoder, context: int, log_mel: Tensor, state: dict[str, Tensor], last: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """`Vocoder.speak` for any vocoder whose samples depend on at most `context` mel frames on each side.

    A frame is spoken once that many frames follow it, and forgotten once that many spoken ones follow it. The state
    "mel" (B, M, up to 2 * context) is therefore what was pushed last: the frames before its last `context` are spoken
    already and serve as left context.
    """
    known = state["mel"] if state else log_mel[..., :0]
    mel = torch.cat([known, log_mel], dim=-1)
    spoken = max(known.shape[-1] - context, 0)
    ready = mel.shape[-1] if last else max(mel.shape[-1] - context, 0)
    wave = vocoder(mel) if ready > spoken else mel.new_empty(len(mel), 0)
    left = mel[..., max(ready - context, 0) :].clone()  # a view would keep the chunk alive
    return wave[:, spoken * vocoder.hop : ready * vocoder.hop], {"mel": left}

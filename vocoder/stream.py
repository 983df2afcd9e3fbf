"""Sound from a mel that arrives in pieces, without seams and in constant memory."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


def stream(vocoder: Callable[[Tensor], Tensor], mels: Iterable[Tensor]) -> Iterator[Tensor]:
    """Waves (B, n * hop) of consecutive mel chunks (B,M,f): joined, the vocoder's wave of the joined mel.

    Each wave ends `vocoder.context` frames before the mel read so far; the last one brings the rest.
    """
    voice = VocoderStream(vocoder)
    for mel in mels:
        if (wave := voice.push(mel)).shape[-1]:
            yield wave
    if voice.state() is not None:
        yield voice.finish()


class VocoderStream:
    """A vocoder with the mel frames that it still needs.

    Samples of a frame depend on at most `context` frames on each side (a convolutional vocoder), so a frame is spoken
    once that many frames follow it, and forgotten once that many spoken ones follow it. The state is therefore
    the last 2 * context frames: those before the last `context` are spoken already and serve as left context.

    Args:
        vocoder: mel (B,M,F) -> wave (B, F * hop), with attributes `hop` and `context`.
        state: the `state()` of a stream to go on with, None for a new one.
    """

    def __init__(self, vocoder: Callable[[Tensor], Tensor], state: Tensor | None = None):
        self.vocoder = vocoder
        self._mel = state

    def state(self) -> Tensor | None:
        """(B, M, up to 2 * context) mel frames: all that a resumed stream needs. None before the first push."""
        return self._mel

    def push(self, mel: Tensor) -> Tensor:
        """Take mel frames (B,M,f), return the samples (B, n * hop) that no later frame can change; n may be 0."""
        spoken = self._settled()
        self._mel = mel if self._mel is None else torch.cat([self._mel, mel], dim=-1)
        ready = self._settled()
        wave = self._speak(spoken, ready)
        self._mel = self._mel[..., max(ready - self.vocoder.context, 0) :].clone()  # a view would keep the chunk alive
        return wave

    def finish(self) -> Tensor:
        """The samples of the frames still waiting; afterwards the stream is as new.

        Raises:
            ValueError: no mel was pushed.
        """
        if self._mel is None:
            raise ValueError("the vocoder stream has no mel to finish; push at least one chunk first")
        wave = self._speak(self._settled(), self._mel.shape[-1])
        self._mel = None
        return wave

    def _settled(self) -> int:
        """Frames at the start of the state that have their whole right context; between pushes they are spoken."""
        return 0 if self._mel is None else max(self._mel.shape[-1] - self.vocoder.context, 0)

    def _speak(self, first: int, end: int) -> Tensor:
        """Samples (B, (end - first) * hop) of frames first..end-1 of the state."""
        if first == end:
            return self._mel.new_empty(self._mel.shape[0], 0)
        hop = self.vocoder.hop
        return self.vocoder(self._mel)[..., first * hop : end * hop]

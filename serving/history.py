"""What was changed in a film and when, and the commands of `sample_long.py` that make the same film."""

import shlex
from dataclasses import dataclass, replace

LOST = "# from frame {frame} on the film follows a given {kind}, which sample_long.py cannot: go on from a snapshot"


@dataclass(frozen=True)
class Turn:
    """How a film goes on from a frame: label (a class or a prompt, or None), seed, steps per frame, guidance.

    told: what the person did, for the list on the page. begun: "new", "state" or "clip" at the beginning. given: kind
    of what is given from here on. opened: seed of the state that a film began with.
    """

    frame: int
    label: str | None
    seed: int
    steps: float
    guidance: float
    told: str = ""
    begun: str = ""
    given: str = ""
    opened: int | None = None


class History:
    """The turns of a film, one at a frame at most, from its beginning on.

    Args:
        texts: whether labels are prompts.
    """

    def __init__(self, first: Turn, texts: bool = False, turns: tuple[Turn, ...] = ()):
        self.turns, self.texts = [*turns, first], texts

    @property
    def now(self) -> Turn:
        """The turn that holds now."""
        return self.turns[-1]

    def add(self, frame: int, told: str, **changed) -> None:
        """A change from a frame on; one at the same frame as the last one joins it."""
        turn = replace(self.now, **{"begun": "", **changed}, frame=frame, told=told)
        if self.now.frame == frame:
            told = ", ".join(filter(None, (self.now.told, told)))
            turn = replace(turn, told=told, begun=self.now.begun)
            self.turns.pop()
        self.turns.append(turn)

    def until(self, frame: int) -> tuple[Turn, ...]:
        """The turns before a frame, for a film that leaves this one there."""
        return tuple(turn for turn in self.turns if turn.frame < frame)

    def listed(self) -> list[dict]:
        """Frame and words of each turn, for the page."""
        return [{"frame": turn.frame, "told": turn.told} for turn in self.turns]

    def commands(self, checkpoint: str, end: int, folder: str = "live") -> str:
        """A shell script that makes the same film up to frame `end`: a command a turn, whose parts join without seam.

        Args:
            checkpoint: as given to live.py, with what else must be as in its command. folder: where films go.
        """
        lines, base, name = [], "long_00000", "long_00000"
        for before, turn, until in zip([None, *self.turns], self.turns, [*(t.frame for t in self.turns[1:]), end]):
            if until <= turn.frame:
                continue
            if turn.given:
                lines.append(LOST.format(kind=turn.given, frame=turn.frame))
                break
            how, base, name = self._begun(before, turn, base, name, folder)
            line = f"python sample_long.py --model-ckpt {checkpoint} {how}--num-timesteps {turn.steps} "
            lines.append(line + f"--cfg-scale {turn.guidance:g} --frames {until} --results-dir {shlex.quote(folder)}")
        return "\n".join(lines) + "\n"

    def _begun(self, before: Turn | None, turn: Turn, base: str, name: str, folder: str) -> tuple[str, str, str]:
        """What a command begins with, the name that continuations keep, and the name of its film."""
        if turn.begun == "clip":
            return f"--extend CLIP --seed {turn.seed} {self._label(turn, 'new')}", base, name
        if turn.begun == "new":
            return f"--seed {turn.seed} {self._label(turn, 'new')}", base, name
        state = f"{folder}/{name}.state.safetensors" if before else "STATE"
        relabelled = self._label(turn, "later") if before is None or turn.label != before.label else ""
        if turn.seed != (before.seed if before else turn.opened):
            base = f"{base}_seed_{turn.seed}"
            how = f"--fork {shlex.quote(state)} --seed {turn.seed} "
        else:
            how = f"--resume {shlex.quote(state)} "
        return how + relabelled, base, f"{base}_from_{turn.frame:06d}"

    def _label(self, turn: Turn, when: str) -> str:
        if turn.label is None:
            return ""
        if when == "new":
            return f"{'--prompt' if self.texts else '--classes'} {shlex.quote(turn.label)} "
        option = "--prompt-schedule" if self.texts else "--class-schedule"
        return f"{option} {shlex.quote(f'0:{turn.label}')} "

"""LinkedPipeline: two frozen generators and their link, which make one side for the other (AV-Link)."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from diffusion.clip import Given
from diffusion.guidance import link_guided
from models.link import SIDES
from pipeline.clips import ClipPipeline, Wish


class LinkedPipeline(ClipPipeline):
    """Clips of two linked towers.

    A side is made for a given other, which is held at its conditioning time, its noise drawn once; guidance leads away
    from what the made side's tower makes alone. Where none is given the picture's tower makes one by its text, and then
    the sound is made for that (AV-Link, Sec. 4.4). A tower that is not linked yet makes its own side alone; the other
    stays empty.
    """

    def _denoised(self, noise: Mapping[str, Tensor], sides: Mapping[str, Given], wish: Wish) -> tuple[Tensor, Tensor]:
        whole = [side for side, given in sides.items() if given.whole]
        if whole:
            return self._for_given(whole[0], noise, sides, wish)
        trained = [side for side in SIDES if side not in self.model.untrained]
        made = self._alone(trained[0], noise, wish)
        if len(trained) < len(SIDES):
            empty = {"picture": noise["picture"] * 0, "sound": self._silence(noise["sound"])}
            return tuple((empty | made).values())
        return self._for_given(trained[0], noise, self._held(made, noise), wish)

    def _silence(self, like: Tensor) -> Tensor:
        """Tokens (B,N,M) of no sound."""
        samples = self.codec.sound.hop * like.shape[1] + 2 * self.codec.context
        return self.codec.encode_sound(torch.zeros(len(like), samples, device=self.device)).to(like)

    def _alone(self, side: str, noise: Mapping[str, Tensor], wish: Wish) -> dict[str, Tensor]:
        """A side that its tower makes by its text."""
        made = self._followed(self._guided(wish, alone=side), noise, {}, wish)
        return {side: made[SIDES.index(side)]}

    def _for_given(
        self, given: str, noise: Mapping[str, Tensor], sides: Mapping[str, Given], wish: Wish
    ) -> tuple[Tensor, Tensor]:
        """Both sides, of which the other one is made for the given one."""
        return self._followed(self._linked(given, sides[given], wish), noise, sides, wish)

    def _linked(self, given: str, shown: Given, wish: Wish) -> Callable:
        """The linked model, led away from the tower of the made side, of which neither given side nor text is known."""
        text, null = self.text(wish.labels), self.text(wish.null)
        (made,) = set(SIDES) - {given}
        linked = partial(self._called, text=text, given=given)
        if not self.model.reinject:  # then the given side is told nothing, and shows the same at all steps
            x, t = shown.at(0.0, shown.clean)
            t = torch.full((len(x),), t, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
            linked = partial(linked, features=self.model.given_features(given, x.to(self.dtype), t, text))
        return link_guided(linked, partial(self._called, text=null, alone=made), wish.scale)

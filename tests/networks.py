"""Networks of a few hundred weights in place of I3D, Inception and AudioCLIP, to test what is made of features."""

from torch import nn

from evaluation.features import CompatSound, Motion, Pictures, Sound


class Eye(nn.Module):
    """(B, 48) mean colours of 4x4 cells -> (B, 12)"""

    def __init__(self):
        super().__init__()
        self.look = nn.Linear(48, 12)

    def forward(self, x):
        return self.look(x)


class Gaze(nn.Module):
    """(B, 3, 299, 299) pictures -> (B, 3) mean colours."""

    def forward(self, x):
        return x.mean((2, 3))


class Ear(nn.Module):
    """(B, 70560) sound -> (B, 6); in `compat` by the group, as batch norms make it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 6)

    def embed(self, wave, mode):
        y = self.fc(10 * wave.unflatten(-1, (10, -1)).square().mean(-1).sqrt())
        return y - y.mean(0) if mode == "compat" else y


def cells(self, clip):
    x = clip.picture().float().mean(0).movedim(-1, 0) / 255  # (3,H,W)
    return nn.functional.adaptive_avg_pool2d(x, 4).flatten()


def small_networks(replace):
    """`replace(object, name, value)` the networks by small ones: what is tested here is what is made of features."""
    replace(Motion, "module", Eye)
    replace(Motion, "read", cells)
    replace(Pictures, "module", Gaze)
    for kind in (Sound, CompatSound):
        replace(kind, "module", Ear)

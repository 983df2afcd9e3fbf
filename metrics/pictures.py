"""Inception v3 as FID knows it: the image network whose pooled features the Fréchet inception distance is of.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule". Its weights, of 1008 classes, are TensorFlow's of
2015-12-05 and not torchvision's of 1000 classes: figures of the two do not compare. Beside the classes it differs from
torchvision's network in what it pools before the last branch of each block, so the rest is torchvision's.
"""

from functools import partial

from torch import Tensor
from torch.nn import functional as F
from torchvision.models import inception

SOURCE = "releases of github.com/mseitzer/pytorch-fid (pt_inception-2015-12-05-6726825d.pth, not torchvision's weights)"
CLASSES, WIDTH = 1008, 2048
_mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)  # of what is in the picture
_most = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class _Pooled:
    """A block whose last branch pools in its own way; mixed into those of torchvision."""

    pool = staticmethod(_mean)

    def forward(self, x: Tensor) -> Tensor:
        y, last = super().forward(x), self.branch_pool(self.pool(x))
        y[:, -last.shape[1] :] = last
        return y


class _A(_Pooled, inception.InceptionA):
    pass


class _C(_Pooled, inception.InceptionC):
    pass


class _E(_Pooled, inception.InceptionE):
    pass


class _Last(_E):
    pool = staticmethod(_most)


class Inception(inception.Inception3):
    """Pooled features of pictures. Built in eval mode; the caller fills it and runs it under inference_mode.

    Modules are named as in the published weight file, which `metrics.weights.load` therefore reads as is.
    """

    def __init__(self):
        blocks = [inception.BasicConv2d, _A, inception.InceptionB, _C, inception.InceptionD, _E, None]
        super().__init__(CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c = _Last(WIDTH)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features before the classes.

        Args:
            x: (B,3,299,299) in [-1, 1], from `metrics.resize.inception_input`.
        Returns:
            (B,2048)
        Raises:
            ValueError: x has another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (3, 299, 299):
            raise ValueError(
                f"Inception got {tuple(x.shape)}, expected (B, 3, 299, 299); make its input with "
                "metrics.resize.inception_input"
            )
        *stages, _, _ = self.children()  # without dropout and classes
        for stage in stages:
            x = stage(x)
        return x.flatten(1)

"""Loss on held-out clips: of the averaged weights, on clips of test/ that no step learns from."""

import math
from argparse import Namespace
from collections.abc import Callable

from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.captions import Captioned
from data.clips import ClipDataset
from data.order import ClipOrder
from models.checkpoint import Pretrained
from pipeline.avcodec import AVCodec
from training.encode import encode_batch
from training.learner import Learner
from training.opening import make_draws, open_data, open_texts

CLIPS = 64  # at least, of all processes; kept in memory as latents


class Validation:
    """Loss of the averaged weights on clips of test/, with times and noise that stay, so curves of runs compare.

    Times, noise and dropped labels are drawn as in training. Made by every process; each has its share of the clips.

    Args:
        args: of train.py. kind: of its model. training: the clips that are learnt from, whose classes these must have.
        progress: as of `open_run`.
    Raises:
        ValueError, FileNotFoundError: there are no usable test clips, or they are of other classes.
    """

    def __init__(self, args: Namespace, kind: type[Pretrained], training: ClipDataset, progress: Callable):
        self.args, self.clips = args, open_data(args, kind, progress("indexing"), "test")
        if self.clips.class_names != training.class_names:
            raise ValueError(
                f"{self.clips.folder} has the classes {self.clips.class_names}, and training {training.class_names}; "
                "give both the same class folders, or leave --validate out"
            )
        captions, self.texts = open_texts(args, self.clips, progress)
        if captions:
            self.clips = Captioned(self.clips, captions, self.clips.folder, args.predict_frames, args.fps)

    def ready(self, accelerator: Accelerator, codec: AVCodec, learner: Learner) -> None:
        """Encode this process's clips; afterwards the loss may be asked for."""
        batch, ranks, device = self.args.batch_size, accelerator.num_processes, accelerator.device
        steps = math.ceil(CLIPS / (batch * ranks))
        order = ClipOrder(len(self.clips), batch, self.args.seed, 0, steps, accelerator.process_index, ranks)
        draws = make_draws(self.args, codec, learner.raw, order.rows(), self.texts)
        loader = DataLoader(self.clips, batch_sampler=order)
        dtype = next(learner.raw.parameters()).dtype
        encoded = [encode_batch(one, codec, device, dtype, self.args.memory) for one in loader]
        self._losses = lambda: learner.averaged_loss(*(draws(step, *one) for step, one in enumerate(encoded)))

    def __call__(self) -> dict[str, float]:
        """What the log is told: the loss, and that of picture and sound. Called by all processes."""
        names = ("held_out_loss", "held_out_loss_video", "held_out_loss_audio")
        return dict(zip(names, self._losses().tolist()))

"""What a run logs, summed on the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

from diffusion.flow import FlowLoss

BINS = 10  # of flow time, in which the loss is logged


class Meter:
    """Sums of what is logged, kept on the device: reading them, once per --log-every, is the only synchronisation.

    Args:
        images, flops: frames, and operations of the model without recomputing, in a step of one process.
        peaks: FLOP/s of its device by what they are called, of which the log tells the share that is used (MFU).
    """

    def __init__(self, device: torch.device, images: int = 0, flops: float = 0, peaks: dict[str, float] | None = None):
        self.images, self.flops, self.peaks = images, flops, peaks or {}
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)  # steps, loss, video, audio, gradient norm
        self.bins = torch.zeros(2, 2, BINS, dtype=torch.float64, device=device)  # of video and audio: frames, error
        self.skipped = torch.zeros(2, dtype=torch.float64, device=device)  # steps in all, and in a row until now
        self.waited = 0.0  # seconds for data

    def add(
        self,
        loss: FlowLoss,
        times: tuple[Tensor, Tensor],
        norm: Tensor,
        shares: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take in a step at these times of video and audio; one whose gradient norm is not finite counts as skipped.

        shares: as of `flow_loss`; frames that are given are not counted by their times.
        """
        bad = ~norm.isfinite()
        row = torch.stack([torch.ones_like(norm), loss.total, loss.video, loss.audio, norm]).detach().double()
        self.sums += torch.where(bad, 0, row)
        self.skipped[0] += bad
        self.skipped[1] = (self.skipped[1] + 1) * bad
        for bins, t, error, share in zip(self.bins, times, (loss.error_v, loss.error_a), shares or (None, None)):
            t = t[:, -error.shape[1] :] if t.ndim == 2 else t.unsqueeze(1).expand_as(error)  # of whole clips
            counted = torch.ones_like(error) if share is None else (share > 0).to(error).unsqueeze(1).expand_as(error)
            frames = torch.stack([counted, error]).flatten(1).double()
            bins.index_add_(1, (t * BINS).long().clamp(max=BINS - 1).flatten(), torch.where(bad, 0, frames))

    def read(
        self, accelerator: Accelerator, seconds: float, last: FlowLoss | None = None, of_average: Tensor | None = None
    ) -> dict:
        """Means over all processes since the last reading; the sums start again.

        Args:
            last, of_average: loss of the last batch, by the weights before its step and by their average.
        """
        steps, *means = accelerator.reduce(self.sums).tolist()
        loss, video, audio, norm = (x / steps if steps else None for x in means)
        video_at, audio_at = ([e / n if n else None for n, e in zip(*bins)] for bins in
                              accelerator.reduce(self.bins).tolist())  # fmt: skip
        skipped, in_a_row = self.skipped.tolist()
        own = None if last is None else accelerator.reduce(last.total, "mean")
        pair = {"batch_loss": own, "batch_loss_ema": of_average}
        record = {
            "loss": loss,
            "loss_video": video,
            "loss_audio": audio,
            **{name: x.item() if x.isfinite() else None for name, x in pair.items() if x is not None},
            "grad_norm": norm,
            "video_at": video_at,
            "audio_at": audio_at,
            "images_per_s": self.images * steps / seconds,
            "data_wait": self.waited / seconds,
            **{
                f"mfu_of_{name}": self.flops * steps / seconds / peak / accelerator.num_processes
                for name, peak in self.peaks.items()
            },
            "skipped_steps": int(skipped),
            "skipped_in_a_row": int(in_a_row),
        }
        self.sums.zero_()
        self.bins.zero_()
        self.waited = 0.0
        return record

"""Mini-batch optimal transport (Tong et al., 2023, arXiv 2302.00482): which noise of a batch leads to which clip."""

import torch
from torch import Tensor


def transport_costs(noise: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    """(B,B) float64 on the CPU: cost of leading noise j to clip i, the mean squared distance of picture plus sound.

    Args:
        noise, data: (picture, sound), each (B,...); one permutation serves both.
    """
    parts = [(eps.flatten(1).double(), x.flatten(1).double()) for eps, x in zip(noise, data)]
    return sum(torch.cdist(x, eps).square() / x.shape[1] for eps, x in parts).cpu()


def paired(noise: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor], group: int) -> Tensor:
    """Permutation (B,) of the noise that costs least, within each `group` clips that follow each other.

    A group lies in one process, so any number of processes whose batches are multiples of it pair the same.

    Raises:
        ValueError: the batch is no multiple of the group.
    """
    from scipy.optimize import linear_sum_assignment

    B = len(data[0])
    if B % group:
        raise ValueError(
            f"a batch of {B} clips is no multiple of the {group} that are paired; choose another batch size"
        )
    order = []
    for first in range(0, B, group):
        rows = slice(first, first + group)
        costs = transport_costs(tuple(x[rows] for x in noise), tuple(x[rows] for x in data))
        order.append(first + torch.from_numpy(linear_sum_assignment(costs.numpy())[1]))
    return torch.cat(order)

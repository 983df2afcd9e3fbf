"""When float32 tensors are the same but for rounding, on any processor."""

import torch
from torch import Tensor


def assert_close_by_size(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """No number is further off than `share` of the largest magnitude that is expected.

    Sums are rounded otherwise by other instruction sets and in batches of another size, and what cancels out keeps
    the error of its terms: so the size of the tensor is the measure, neither a fixed number nor that of each element.
    """
    torch.testing.assert_close(found, expected, rtol=0, atol=share * expected.abs().max().item())

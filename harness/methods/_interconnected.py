"""Low-rank updates whose factors several layers share, each token mixing the outer ones for itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.methods._adapters import Added


def factors(width: int, rows: int, zero: bool) -> nn.Linear:
    """Stack low-rank factors in one linear map.

    Args:
        width: Features that go in.
        rows: Ranks of all factors together, the features that come out.
        zero: Whether the factors start at zero, else as LoRA's inner factor.
    """
    stacked = nn.Linear(width, rows, bias=False)
    if zero:
        nn.init.zeros_(stacked.weight)
    else:
        nn.init.kaiming_uniform_(stacked.weight, a=math.sqrt(5))
    return stacked


class Interconnected(Added):
    """`scale sum_e softmax(R A x)_e B_e A x`; A and all B may belong to other layers, too.

    Args:
        down: A, shape (rank, in-features).
        up: All B one under the other, shape (experts * rank, out-features).
        scale: What the sum is multiplied with.
    """

    def __init__(self, down: nn.Linear, up: nn.Linear, scale: float) -> None:
        super().__init__()
        rank = down.out_features
        self.down, self.up, self.router = down, up, factors(rank, up.out_features // rank, zero=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Rows of inputs to what is added to the layer's outputs."""
        inner = self.down(x)
        # Mixing the inner numbers first makes one product of all outer factors.
        weighed = self.router(inner).softmax(-1).unsqueeze(-1) * inner.unsqueeze(-2)
        return torch.matmul(weighed.flatten(-2), self.up.weight) * self.scale

"""Changes of a weight matrix that few numbers stand for; each is zero before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

LOWER, UPPER = -1.5, 1.5
"""To where a hard-concrete variable is stretched before it is cut to [0, 1]."""
START = 5.0
"""Where its logit starts: at 0.99 of it being open."""
FACTOR_BITS = 8
"""A Walsh-Hadamard transform is done for so many bits of the index at once."""


class Change(nn.Module):
    """Something of a weight's shape that is added to it."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.on = True

    def value(self) -> Tensor:
        """What is added, in the weight's shape."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return weight + self.value().to(weight.dtype) if self.on else weight


class SparseChange(Change):
    """Numbers at fixed places.

    Args:
        shape: The weight's.
        places: Where the numbers stand in the flattened weight, shape (numbers,).
    """

    places: Tensor

    def __init__(self, shape: Sequence[int], places: Tensor) -> None:
        super().__init__(shape)
        self.register_buffer("places", places)
        self.values = nn.Parameter(torch.zeros(len(places)))

    def value(self) -> Tensor:
        """Zero elsewhere."""
        return self.values.new_zeros(self.shape.numel()).scatter(0, self.places, self.values).view(self.shape)


class GatedLowRank(Change):
    """`B diag(g) A` for a weight of shape (out, in), its transpose for one of shape (in, out); B starts at zero."""

    def __init__(self, shape: Sequence[int], rank: int, transposed: bool) -> None:
        super().__init__(shape)
        self.transposed = transposed
        rows, columns = reversed(self.shape) if transposed else self.shape
        self.down = nn.Parameter(torch.empty(rank, columns))
        # As LoRA's inner factor starts.
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.gate = nn.Parameter(torch.randn(rank))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def value(self) -> Tensor:
        """The product."""
        product = (self.up * self.gate) @ self.down
        return product.T if self.transposed else product


class MaskedChange(Change):
    """`z w`, where z is a hard-concrete variable for each weight times one for the whole matrix.

    While training, z is drawn by the uniform numbers that `draw` leaves; else it is what its logit says without noise.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.difference = nn.Parameter(torch.zeros(self.shape))
        self.logits = nn.Parameter(torch.full(self.shape, START))
        self.logit = nn.Parameter(torch.tensor([START]))
        self.noise: tuple[Tensor, Tensor] | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Random numbers for the passes of one step."""
        # The logit of 0 or 1 is infinite.
        uniform = torch.rand(self.shape.numel() + 1, generator=generator).clamp(1e-4, 1 - 1e-4)
        noise = uniform.logit().to(self.logits.device)
        self.noise = noise[:-1].view(self.shape), noise[-1:]

    def gates(self) -> Tensor:
        """z, in the weight's shape."""
        each, whole = self.noise if self.noise is not None and self.training else (0.0, 0.0)
        return _stretched(self.logits + each) * _stretched(self.logit + whole)

    def open(self) -> Tensor:
        """Expected number of z that are not 0, each factor counted by itself (scalar)."""
        shift = math.log(-LOWER / UPPER)
        return torch.sigmoid(self.logits - shift).sum() + torch.sigmoid(self.logit - shift).sum()

    def value(self) -> Tensor:
        """What is left of the difference."""
        return self.gates() * self.difference


def _stretched(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (UPPER - LOWER) + LOWER).clamp(0.0, 1.0)


class FastfoodChange(Change):
    """A random projection of a few numbers that all layers share, times a factor of the layer's own.

    The projection is Fastfood: sign flips, a Walsh-Hadamard transform, a permutation, Gaussian factors, another
    transform. It takes as much memory as the weight and never stands as a matrix.

    Args:
        shape: The weight's.
        shared: The numbers, shape (d,), a parameter of the model.
        factors: One for each layer, shape (layers,), likewise.
        index: Which of them is this layer's.
        generator: Draws the projection.
    """

    signs: Tensor
    order: Tensor
    gaussian: Tensor

    def __init__(
        self, shape: Sequence[int], shared: nn.Parameter, factors: nn.Parameter, index: int, generator: torch.Generator
    ) -> None:
        super().__init__(shape)
        self.held, self.index = [shared, factors], index  # in a list: they are the model's, and named there
        # The transform needs a power of two.
        size = 1 << (max(self.shape.numel(), len(shared)) - 1).bit_length()
        self.register_buffer("signs", torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1.0)
        self.register_buffer("order", torch.randperm(size, generator=generator))
        gaussian = torch.randn(size, generator=generator)
        # So that a unit vector becomes a matrix of norm 1, whatever the shape, in the mean over projections.
        self.register_buffer("gaussian", gaussian / (gaussian.norm() * math.sqrt(self.shape.numel())))

    def value(self) -> Tensor:
        """The projected numbers in the weight's shape."""
        shared, factors = self.held
        padded = torch.nn.functional.pad(shared, (0, len(self.signs) - len(shared)))
        mixed = walsh_hadamard(padded * self.signs)[self.order] * self.gaussian
        return factors[self.index] * walsh_hadamard(mixed)[: self.shape.numel()].view(self.shape)


def walsh_hadamard(x: Tensor) -> Tensor:
    """The unnormalised Walsh-Hadamard transform of a vector whose length is a power of two, in natural order.

    Done by products with small Hadamard matrices, one for every eight bits of the index: a matrix product takes less
    time than eight rounds of sums.
    """
    size, width = len(x), 1
    while width < size:
        bits = min(FACTOR_BITS, (size // width).bit_length() - 1)
        matrix = _hadamard(bits).to(x)
        x = x.reshape(-1, 1 << bits) @ matrix if width == 1 else matrix @ x.reshape(-1, 1 << bits, width)
        width <<= bits
    return x.reshape(size)


@cache
def _hadamard(bits: int) -> Tensor:
    matrix = torch.ones(1, 1)
    for _ in range(bits):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix

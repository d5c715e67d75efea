"""Fusion: the trained changes and those of other models, for example of a safe one, are added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.retention._merging import Merging
from harness.space import Float, Text

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Fusion(Merging):
    """`own_weight` times the trained task vector, plus those of the models in `merge_with` times their weights."""

    summary = "adds the changes of other models, for example of a safe one"
    paper = "Gudipudi et al. 2024, arXiv 2501.06208; task vectors: Ilharco et al. 2022, arXiv 2212.04089"
    requires = "other models tuned from the same base"
    needs_others = True
    space = {"merge_with": Text(names="models"), "own_weight": Float(0.0, 2.0, default=0.7)}

    def merged(self, vectors: Sequence[Tensor], weights: Sequence[float], setup: StageSetup, draw: Generator) -> Tensor:
        """The linear combination."""
        import torch

        factors = [setup.params.number("own_weight"), *weights[1:]]
        return torch.stack([factor * vector for factor, vector in zip(factors, vectors, strict=True)]).sum(0)

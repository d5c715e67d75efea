"""FISH mask: the few weights with the largest Fisher information move."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._delta import DeltaMethod
from harness.methods._linear import linear_layers
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.methods._changes import Change


class FishMask(DeltaMethod):
    """Trains a fixed share of the blocks' linear weights: those whose squared gradient is largest in the mean over rows.

    The gradient is that of a row's own answer (the empirical Fisher information), at the base, row by row.
    """

    summary = "trains the few weights with the largest Fisher information"
    paper = "Sung et al. 2021, arXiv 2111.09839"
    limits = (
        "On the testbed's 1M model, 200 steps reached 31% of full tuning's gain: "
        "likely because the few weights that move are chosen before training."
    )
    alone = "each trial's mask is its own"
    trains = r".*\.parametrizations\.weight\.0\.values"
    space = {
        "learning_rate": Float(1e-5, 3e-2, default=2e-4, log=True),
        "mask_share": Float(5e-4, 0.5, default=0.005, log=True),
        "fisher_rows": Integer(8, 4096, default=1024, log=True, searched=False),
    }

    def changes(self, model: PreTrainedModel, setup: StageSetup) -> Mapping[str, Change]:
        """A sparse change on each layer that has weights among the chosen."""
        from harness.methods._changes import SparseChange

        names = linear_layers(model, "all")
        # Over all layers together: some layers get many weights and some none.
        places = largest(self.information(model, names, setup), setup.params.number("mask_share"))
        shapes = [model.get_submodule(name).weight.shape for name in names]
        layers = zip(names, shapes, places, strict=True)
        return {name: SparseChange(shape, chosen) for name, shape, chosen in layers if len(chosen)}

    def information(self, model: PreTrainedModel, names: list[str], setup: StageSetup) -> list[Tensor]:
        """Sum squared gradients over calibration rows, one row at a time.

        Args:
            model: The base.
            names: Linear layers.
            setup: The stage's rows; `fisher_rows` of them are drawn.

        Returns:
            For each layer, a tensor in its weight's shape.
        """
        import torch

        from harness.methods._calibration import drawn
        from harness.methods._gradients import gradients

        weights = [model.get_submodule(name).weight for name in names]
        sums = [torch.zeros_like(weight) for weight in weights]
        rows = drawn(setup.rows(), setup.params.integer("fisher_rows"), setup)
        for slopes in gradients(model, weights, rows):
            for total, slope in zip(sums, slopes, strict=True):
                total.addcmul_(slope, slope)
        return sums


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Of several tensors' entries together, the largest: where they stand in each tensor, flattened."""
    import torch

    sizes = [value.numel() for value in values]
    chosen = (
        torch.cat([value.flatten() for value in values]).topk(max(1, round(share * sum(sizes)))).indices.sort().values
    )
    ends = itertools.pairwise([0, *itertools.accumulate(sizes)])
    return [chosen[(chosen >= start) & (chosen < end)] - start for start, end in ends]

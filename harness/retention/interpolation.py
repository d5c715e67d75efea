"""Interpolation between base and tuned weights (WiSE-FT), with the whole way between them scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.retention._merging import parameters
from harness.retention.base import Retention
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Interpolation(Retention):
    """Leaves the weights at `tuned_weight` of the way from the base to the tuned model.

    In the same trial it scores `path_points` places on that way, both ends included: the trade of new for old knowledge,
    for no further training. They stand under `path` in the record.
    """

    summary = "interpolates between base and tuned weights, and scores the whole way"
    paper = "Wortsman et al. 2021, arXiv 2109.01903"
    space = {
        "tuned_weight": Float(0.0, 1.0, default=0.5),
        "path_points": Integer(2, 101, default=11, searched=False),
    }

    def __init__(self) -> None:
        self._ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {})

    def skip(self, situation: Situation) -> str | None:
        """Weights that no step has moved leave nothing to interpolate."""
        method = situation.beside.get("method")
        trains = getattr(method, "needs_training", True)
        return None if trains else "its retention interpolates trained weights, but its method trains none"

    def finish(self, model: PreTrainedModel, setup: StageSetup) -> None:
        """Interpolate, and keep both ends for `path`."""
        tuned = {name: value.clone() for name, value in parameters(model).items()}
        self._ends = parameters(setup.load_base()), tuned
        self._place(model, setup.params.number("tuned_weight"))

    def path(self, model: PreTrainedModel, setup: StageSetup) -> Iterator[float]:
        """Every place from the base to the tuned model, then back to `tuned_weight`."""
        last = setup.params.integer("path_points") - 1
        try:
            for number in range(last + 1):
                self._place(model, number / last)
                yield number / last
        finally:
            self._place(model, setup.params.number("tuned_weight"))

    def _place(self, model: PreTrainedModel, weight: float) -> None:
        import torch

        base, tuned = self._ends
        with torch.no_grad():
            for name, value in model.named_parameters():
                # From the ends every time: steps from place to place would add up rounding.
                value.copy_(torch.lerp(base[name].to(value), tuned[name].to(value), weight))

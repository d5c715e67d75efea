"""The author's contract for retention: how old knowledge is kept.

One file per choice; its stem is its name in study files. A choice may change the rows, add a penalty to the loss,
or change the weights at the end; each is a no-op unless overridden.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from harness.axes.contract import Plugin, StageSetup
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.methods.base import Method


class Retention(Plugin, ABC):
    """Decides how a stage keeps what the model knew before it."""

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The rows to train on, for example with old ones mixed in."""
        return rows

    def penalty(self, model: PreTrainedModel, method: Method, setup: StageSetup) -> Callable[[], Tensor] | None:
        """A function that gives the term to add to the loss (scalar), built before the first step; None for no term.

        Args:
            model: The attached model; it has done no step yet.
            method: What trains it; `method.deltas` says how far its weights are from the base's.
            setup: The stage's.
        """
        return None

    def before_step(self, step: int) -> None:
        """Called before the first forward pass of every step, `step` counting from 1, where there is a penalty."""

    def finish(self, model: PreTrainedModel, setup: StageSetup) -> None:
        """Change the trained weights in place, for example by interpolating towards the base.

        The model is plain: where this is overridden, the method's parameters were merged into it before. It needs a
        method that is mergeable.
        """

    def path(self, model: PreTrainedModel, setup: StageSetup) -> Iterator[float]:
        """Walk through other weights than those that `finish` left, to be scored as well.

        Yields:
            Where it is, while the model has the weights of that place; in the end the model is as `finish` left it.
        """
        return iter(())

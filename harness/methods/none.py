"""No tuning: the base model as it is, which is how base scores are obtained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Untouched(Method):
    """Freezes everything."""

    summary = "the base model as it is; nothing is trained"
    # Matches nothing.
    trains = r"(?!)"
    covers = ()
    needs_training = False

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze every parameter."""
        return model.requires_grad_(False)

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model itself, which is the base."""
        yield model

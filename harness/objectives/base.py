"""The author's contract for an objective: what is minimised, and on which rows.

One file per objective; its stem is its name in study files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.plugins import Plugin, Row, StageSetup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


@dataclass(frozen=True)
class TrainerParts:
    """What `train.py` has prepared and an objective's trainer is built from."""

    model: PreTrainedModel
    rows: list[Row]
    arguments: Mapping[str, Any]
    """Keyword arguments of `transformers.TrainingArguments`, complete apart from what belongs to the objective."""
    setup: StageSetup


class Objective(Plugin, ABC):
    """Decides the loss, and how rows are shown to it."""

    needs: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    """Columns that every row must have."""

    packs: ClassVar[bool] = False
    """Whether rows are joined into sequences of `max_length` tokens, so that a sequence is not a row."""

    fuses: ClassVar[bool] = False
    """Whether it trains in the harness's own loop, where trials can train together."""

    @abstractmethod
    def trainer(self, parts: TrainerParts) -> Trainer:
        """A TRL or transformers trainer, ready to train; `train.py` adds callbacks and the retention penalty."""

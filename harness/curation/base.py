"""The author's contract for curation: what happens to the training rows before they are trained on.

One file per choice; its stem is its name in study files.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Plugin, StageSetup
from harness.models.tokens import Encoder
from harness.space import Params
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from harness.nn.sequences import Example


class Curation(Plugin, ABC):
    """Decides what the training rows look like, or which of their tokens carry loss; unless overridden, as they were."""

    gives: ClassVar[tuple[str, ...]] = ()
    """Columns of the rows that it makes, which the task's own rows need not have (`rejected`)."""
    writes: ClassVar[bool] = False
    """Whether it writes prompts. It asks through a row (`Row.asking`, `another`, `after`), so that a chat template renders them."""

    def check(self, rows: Sequence[Row], encoder: Encoder, params: Params, generates: bool) -> None:
        """Refuse, before anything is spent, rows of its own making that a stage cannot take.

        Args:
            rows: The task's.
            encoder: Of the base's tokenizer.
            params: The stage's; `max_length` is cut to the model's context.
            generates: Whether the task is scored on generated text.

        Raises:
            SpecError: When they do not fit.
        """
        return

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The rows to train on; must not change those it was given, nor write around the prompts of a chat template."""
        return rows

    def tokens(self, examples: list[Example], setup: StageSetup) -> list[Example]:
        """The same rows as tokens, with labels taken off (`IGNORED`) where nothing is to be learned.

        Only beside objectives with `supervises_tokens`, whose examples are single sequences. An example that is left
        without any label must be left out.
        """
        return examples

"""The author's contract for an objective: what is minimised, and on which rows.

One file per objective; its stem is its name in study files. An objective whose loss is a function of the
log-probabilities of given tokens sets `fuses` and names the tokens: the harness's own loop does the rest. Any
other brings a trainer of TRL's.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.axes.contract import Plugin, Situation, StageSetup
from harness.axes.encoding import Cuts, EncodedRows
from harness.nn.sequences import IGNORED, Example, TokenLosses
from harness.space import Params, Text
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, Trainer


PREFERENCE = "metadata.preference"
"""Where a task says which of its columns are a chosen and a rejected answer."""


@dataclass(frozen=True)
class TrainerParts:
    """What an objective's trainer is built from."""

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
    """Whether it trains in the harness's own loop (`examples`, `loss`, `items`), where trials can train together."""

    needs_reference: ClassVar[bool] = False
    """Whether its loss compares with the base's own log-probabilities; they are computed once, before training."""

    samples: ClassVar[bool] = False
    """Whether it samples answers to prompts. TRL then multiplies hidden states by the output layer's weights itself, so what a
    method puts around that layer has no effect."""

    supervises_tokens: ClassVar[bool] = False
    """Whether its loss is a sum over tokens that carry loss, so that a curation may take the loss off some of them."""

    leaves_policy: ClassVar[bool] = True
    """Whether the model that it trains is the next stage's base. If not, as with a reward model, `leave` writes the model to a
    folder, later stages find the folder in `StageSetup.left` under the objective's name, and they start from this stage's base."""

    compares: ClassVar[bool] = False
    """Whether its loss of one example depends on the others of a forward pass, which must then not be cut into pieces."""

    same: ClassVar[tuple[str, ...]] = ()
    """Its parameters that must be equal among trials that train together; others may differ from trial to trial."""

    learning_rate_scale: ClassVar[float] = 1.0
    """Factor on the learning rates that methods search, which are those of supervised fine-tuning."""

    def skip(self, situation: Situation) -> str | None:
        """Every row must have the columns that the objective needs."""
        columns, curation = situation.task.columns, situation.beside.get("curation")
        given = getattr(curation, "gives", ())
        missing = [name for name in self.needs if columns is not None and name not in (*columns, *given)]
        if missing:
            return f"its objective needs {' and '.join(missing)} answers, which the task does not name in {PREFERENCE}"
        for task in tasks_beside(situation):
            known = situation.facts_of(task).columns
            if missing := [column for column in self.needs if known is not None and column not in known]:
                return (
                    f"its objective needs {' and '.join(missing)} answers, which {task} does not name in {PREFERENCE}"
                )
        return None

    def examples(self, rows: Sequence[Row], setup: StageSetup) -> list[Example]:
        """Rows as token sequences for the harness's own loop; all examples have equally many sequences.

        Raises:
            SpecError: When a row lacks what the objective needs.
        """
        raise NotImplementedError

    def cuts(self, rows: EncodedRows, params: Params) -> Cuts | None:
        """What rows will lose because they are longer than a stage takes; None where nothing is cut.

        Args:
            rows: As the task gives them.
            params: The stage's; `max_length` is cut to the model's context.
        """
        return None if self.packs else Cuts.of(rows.sequences, params.integer("max_length"))

    def apart(self, examples: Sequence[Example], setup: StageSetup) -> list[Example]:
        """Further examples whose log-probabilities the loss needs, without gradient.

        Args:
            examples: Those of one forward pass.
            setup: The stage's.
        """
        return []

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over what `items` counts; by default over all tokens.

        Args:
            losses: Log-probabilities of the batch's tokens under K trials' models.
            setups: The K trials' own, for their parameters.

        Returns:
            Shape (K,).
        """
        return losses.nats.sum(1)

    def items(self, examples: Sequence[Example]) -> int:
        """What the loss is a mean over in one optimiser step; by default its supervised tokens."""
        return sum(label != IGNORED for example in examples for s in example for label in s.labels[1:])

    def leave(self, model: PreTrainedModel, setup: StageSetup, folder: Path) -> None:
        """Write what was trained to a folder, for later stages; only where `leaves_policy` is False.

        Args:
            model: The trained model, merged into a plain one.
            setup: The stage's.
            folder: Does not exist yet.
        """
        raise NotImplementedError

    def observed(self, trainer: Trainer, setup: StageSetup) -> dict[str, float]:
        """What a trainer of TRL's has measured beside losses, for the record; called once, after the last step."""
        return {}

    def trainer(self, parts: TrainerParts) -> Trainer:
        """A TRL or transformers trainer: the engine where `fuses` is False, else the reference that tests compare with."""
        raise NotImplementedError


def tasks_beside(situation: Situation) -> list[str]:
    """Tasks whose rows a stage's curation and retention mix into its own."""
    beside = [situation.beside[axis] for axis in ("curation", "retention") if axis in situation.beside]
    named = [n for plugin in beside for n, d in plugin.space.items() if isinstance(d, Text) and d.names == "tasks"]
    return [task.name for name in named for task in situation.params.names(name, "")]

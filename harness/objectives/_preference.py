"""What the preference objectives share: a row's chosen and rejected answers as token ids, and TRL's trainers on them."""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import Cuts, EncodedRows, learnable, reached, tokenised
from harness.errors import SpecError
from harness.nn.batches import padding_id
from harness.nn.sequences import IGNORED, Example, TokenLosses, TokenSequence
from harness.objectives.base import Objective, TrainerParts
from harness.space import Params, Scalar
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import Trainer, TrainingArguments


class PreferenceObjective(Objective, ABC):
    """An example is a pair: the chosen answer, then the rejected one, each tokenised as supervised fine-tuning does it.

    A batch therefore has chosen sequences at its even places and rejected ones at its odd places.
    """

    needs = ("prompt", "completion", "rejected")
    fuses = True

    def unfit(self, params: Params) -> str | None:
        """Why there is no loss with these parameters of a stage, or None; a parameter that is not known fits."""
        return None

    def skip(self, situation: Situation) -> str | None:
        """The parameters must fit, and rows have a rejected answer."""
        return self.unfit(situation.params) or super().skip(situation)

    def examples(self, rows: Sequence[Row], setup: StageSetup) -> list[Example]:
        """One pair per row; pairs that a stage shorter than a pass will not reach are left out.

        Raises:
            SpecError: When the parameters do not fit, or a row has no rejected answer.
        """
        if reason := self.unfit(setup.params):
            raise SpecError(reason)
        for number, row in enumerate(rows, 1):
            if row.rejected is None:
                raise SpecError(
                    f"every row must have a rejected answer to learn from preferences, but row {number} of {len(rows)} "
                    f"({row.prompt[:40]!r}) has none: train on a task with metadata.preference, without replayed texts"
                )
        rows = reached(rows, setup)
        encoded = tokenised(_answers(rows), setup, "answers")
        pairs = list(zip(encoded[::2], encoded[1::2], strict=True))
        # A pair of which one answer was cut away would compare with nothing.
        examples = [self.prepared(*pair) for pair in pairs if all(map(learnable, pair))]
        if len(examples) < len(pairs):
            setup.note(
                f"{len(pairs) - len(examples)} of {len(pairs)} training rows had nothing to learn and were dropped"
            )
        return examples

    def cuts(self, rows: EncodedRows, params: Params) -> Cuts | None:
        """What chosen and rejected answers lose."""
        return super().cuts(replace(rows, rows=_answers(rows.rows)), params)

    def prepared(self, chosen: TokenSequence, rejected: TokenSequence) -> Example:
        """A pair as it goes through the model; by default with loss on the answers alone."""
        return (chosen, rejected)

    def items(self, examples: Sequence[Example]) -> int:
        """The loss is a mean over pairs."""
        return len(examples)


def _answers(rows: Sequence[Row]) -> list[Row]:
    """Every row with its chosen answer, then with its rejected one if it has one; a chat's earlier answers are of no pair."""
    return [
        replace(row, completion=text, learned=())
        for row in rows
        for text in (row.completion, row.rejected)
        if text is not None
    ]


def each(setups: Sequence[StageSetup], name: str, like: Tensor) -> Tensor:
    """A parameter of each trial.

    Args:
        setups: The K trials' own.
        name: The parameter's.
        like: A tensor whose type and device the result takes.

    Returns:
        Shape (K, 1).
    """
    return like.new_tensor([[setup.params.number(name)] for setup in setups])


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values of sequences, shape (K, 2 pairs), as those of chosen and of rejected answers."""
    return values[:, ::2], values[:, 1::2]


def imitation(losses: TokenLosses) -> Tensor:
    """Mean next-token loss of the chosen sequences' supervised tokens, shape (K,)."""
    chosen = (losses.sequence % 2 == 0) & (losses.sequence < losses.sequences)
    return (losses.nats * chosen).sum(1) / chosen.sum(1)


def padded(sequences: Sequence[TokenSequence], setup: StageSetup, prefix: str = "") -> dict[str, Tensor]:
    """Sequences as one batch, padded on the right, by the names that TRL gives its parts.

    Args:
        sequences: Prompts with their answers.
        setup: The stage's.
        prefix: Begins every name.

    Returns:
        `input_ids`, `attention_mask`, `labels` (`IGNORED` outside of answers) and `completion_mask` (1 on answers), each of
        shape (sequences, tokens).
    """
    import torch

    padding, width = padding_id(setup.tokenizer), max(len(s.input_ids) for s in sequences)
    ids, seen, answers = (torch.full((len(sequences), width), fill) for fill in (padding, 0, IGNORED))
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        ids[row, :length], seen[row, :length] = torch.tensor(sequence.input_ids), 1
        answers[row, sequence.prompt : length] = torch.tensor(sequence.input_ids[sequence.prompt :])
    return {
        f"{prefix}input_ids": ids,
        f"{prefix}attention_mask": seen,
        f"{prefix}labels": answers,
        f"{prefix}completion_mask": (answers != IGNORED).long(),
    }


def answers_of(examples: Sequence[Example]) -> list[TokenSequence]:
    """All chosen answers, then all rejected ones: the order of TRL's batches."""
    return [*(chosen for chosen, _ in examples), *(rejected for _, rejected in examples)]


def preference_trainer(
    kind: type[Trainer],
    arguments: TrainingArguments,
    parts: TrainerParts,
    examples: Sequence[Example],
    batch: Callable[[Sequence[Example]], dict[str, Tensor]],
    **options: object,
) -> Trainer:
    """A trainer of TRL's on pairs that are ready as they are.

    Args:
        kind: TRL's class.
        arguments: Its configuration.
        parts: The model and what else belongs to the stage.
        examples: The pairs.
        batch: Makes a batch of some of them, in TRL's own names.
        options: What else the class takes.

    Raises:
        SpecError: When there is nothing to learn.
    """
    from datasets import Dataset

    if not examples:
        raise SpecError("training needs at least one row with something to learn, but there is none: check the task")

    class Ready(kind):  # type: ignore[misc]
        """TRL's trainer without its own tokenising, and without its report to the hub."""

        def _prepare_dataset(self, dataset: Dataset, *rest: object) -> Dataset:
            return dataset

        def tokenize_row(self, feature: object, *rest: object) -> object:
            return feature

        def _send_telemetry(self) -> None:
            pass

    return Ready(
        model=parts.model,
        args=arguments,
        train_dataset=Dataset.from_dict({"pair": list(range(len(examples)))}),
        data_collator=lambda items: batch([examples[item["pair"]] for item in items]),
        processing_class=parts.setup.tokenizer,
        **options,
    )


def cpo_trainer(parts: TrainerParts, examples: Sequence[Example], options: Mapping[str, Scalar]) -> Trainer:
    """TRL's CPO trainer, which knows several losses without a reference, on pairs.

    Args:
        parts: The model and what else belongs to the stage.
        examples: The pairs.
        options: Further fields of TRL's configuration.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL warns that this trainer is experimental
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    setup = parts.setup
    arguments = CPOConfig(
        **parts.arguments,
        **options,
        max_length=setup.params.integer("max_length"),
        gradient_checkpointing=False,
        remove_unused_columns=False,
    )

    return preference_trainer(CPOTrainer, arguments, parts, examples, partial(side_by_side, setup=setup))


def side_by_side(pairs: Sequence[Example], setup: StageSetup) -> dict[str, Tensor]:
    """Chosen and rejected answers as two batches, by the names that TRL's older trainers give them."""
    chosen, rejected = zip(*pairs, strict=True)
    return padded(chosen, setup, "chosen_") | padded(rejected, setup, "rejected_")


def dpo_trainer(parts: TrainerParts, examples: Sequence[Example], **own: Scalar) -> Trainer:
    """TRL's DPO trainer on pairs, with the base as its reference.

    Args:
        parts: The model and what else belongs to the stage.
        examples: The pairs.
        own: Further fields of TRL's configuration.
    """
    from trl import DPOConfig, DPOTrainer

    setup = parts.setup
    arguments = DPOConfig(**parts.arguments, **own, gradient_checkpointing=False, remove_unused_columns=False)

    def batch(examples: Sequence[Example]) -> dict[str, Tensor]:
        columns = padded(answers_of(examples), setup)
        del columns["labels"]  # TRL makes them itself, and the model would get them twice
        return columns

    return preference_trainer(DPOTrainer, arguments, parts, examples, batch, ref_model=setup.load_base())

"""Makes a stage ready to train: curates its rows, mixes old knowledge in, and turns them into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from harness.axes.contract import StageSetup
from harness.errors import SpecError
from harness.nn.batches import step_order
from harness.nn.copies import train_in_float32
from harness.plugins import overrides
from harness.space import Params
from harness.tasks.training_rows import Row
from harness.training.choices import Choices
from harness.training.learner import Learner, Watch
from harness.training.precision import try_ways
from harness.training.reference import ReferenceSums, reference_of
from harness.training.trl import trainer_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRIED = 8
"""Rows that a curation is given when a study is planned."""


def make_learner(
    model: PreTrainedModel, rows: list[Row], chosen: Choices, setup: StageSetup, watch: Watch, sums: ReferenceSums
) -> Learner:
    """A stage ready to train: rows curated, old knowledge mixed in, and tokenised.

    Args:
        model: The base with the stage's method attached.
        rows: The task's training rows; they are not changed.
        chosen: The stage's plug-ins.
        setup: What the plug-ins may use.
        watch: Where the stage pauses and ends.
        sums: What this process knows of the base's log-probabilities.

    Raises:
        SpecError: When there is nothing to learn.
    """
    if overrides(chosen.curation, "tokens") and not chosen.objective.supervises_tokens:
        raise SpecError(
            "a curation that chooses tokens must be beside an objective with loss on single tokens, but the stage's "
            "has none: use objective sft or continued_pretraining"
        )
    train_in_float32(model)
    rows = chosen.retention.rows(_curated(rows, chosen, setup), setup)
    learner = Learner(model=model, choices=chosen, setup=setup, watch=watch, rows=rows)
    if not chosen.objective.fuses:
        learner.trainer = trainer_for(learner)
        return learner
    learner.examples = chosen.curation.tokens(chosen.objective.examples(rows, setup), setup)
    if not learner.examples:
        raise SpecError(
            f"training needs at least one row with something to learn within {setup.params.integer('max_length')} tokens, but none "
            f"of {len(rows)} has: check the task, and what else takes tokens of the context"
        )
    lengths = tuple(max(len(s.input_ids) for s in example) for example in learner.examples)
    size, passes = learner.batch
    learner.order = step_order(lengths, size * passes, setup.steps, setup.seed)
    try_ways(learner)
    if chosen.objective.needs_reference:
        learner.reference = reference_of(learner, sums)
    return learner


class WroteAround(SpecError):
    """A curation wrote around what a chat template had rendered."""


def try_curation(chosen: Choices, rows: Sequence[Row], params: Params, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a stage's curation make a few rows when it is planned; one that needs more than rows is only seen in its trial.

    Args:
        chosen: The stage's plug-ins.
        rows: The task's.
        params: The stage's.
        tokenizer: The base's.

    Raises:
        WroteAround: When it writes around what a chat template rendered.
    """
    if not any(row.turns for row in rows) or not overrides(chosen.curation, "rows"):
        return
    setup = StageSetup(
        params=params, tokenizer=tokenizer, device="cpu", seed=0, steps=1, load_base=_not_planned, corpus=_not_planned
    )
    try:
        _curated(list(rows[:TRIED]), chosen, setup)
    except WroteAround:
        raise
    except Exception:  # it may need a model, or more rows
        return


def _not_planned() -> NoReturn:
    raise SpecError("a plan has no models and no rows of others")


def _curated(rows: list[Row], chosen: Choices, setup: StageSetup) -> list[Row]:
    """The rows that a curation makes, none of whose prompts was written around what a chat template rendered.

    Raises:
        WroteAround: When one was: the model would be trained on what it is never asked.
    """
    rendered, made = {id(row.turns): row.prompt for row in rows if row.turns}, chosen.curation.rows(rows, setup)
    if any(
        row.prompt and rendered and rendered.get(id(row.turns), row.prompt if row.turns else "") != row.prompt
        for row in made
    ):
        raise WroteAround(
            f"curation {type(chosen.curation).__name__} must leave prompts to the base's chat template, but writes around them: "
            "let it write with Row.asking, Row.another or Row.after"
        )
    return made

"""A task proves itself: what its training rows teach must score its best, under each base model's tokenizer.

Each training row's answer is encoded as in training, cut and decoded as generation would, and goes through the task's own
filter and metric. The choices of an item must differ in the tokens that they are scored by, or the first would always win.
Where a task of the user's cannot be right it is refused with the first such row. lm-eval's own tasks, whose scores stay
lm-eval's, are refused only where no answer at all is right; otherwise a note says how many are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import HarnessError, SpecError, describe
from harness.metrics.base import measure
from harness.models.tokens import Encoder
from harness.tasks.lm_eval_task import answer_of, lm_eval_task
from harness.tasks.own_answers import (
    aggregated,
    answer_scores,
    check_scored,
    choice_scores,
    text_scores,
    usual_results,
)
from harness.tasks.splits import Doc
from harness.tasks.training_rows import Row, training_rows

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from harness.models.chat import ChatTemplate
    from harness.tasks.task import Task

T = TypeVar("T")
MOST_ROWS = 100_000
"""Generated answers that are tried: all of them, up to so many, else every second, third, ... row's."""
MOST_CHOICES = 10_000
"""Rows of multiple choice that are tried: their labels are right by construction, and their choices mostly the same."""
MOST_PROGRAMS = 20
"""Rows that are tried where an answer is a program that has to run."""
MOST_SCORED = 1_000
"""Items that are tried whether a task's own functions can score them."""
NEAR = 64
"""Characters at the end of a prompt beside which choices are told apart: what stands further away changes none of their tokens."""
DECIDING = 8
"""Characters at the end of a prompt that choices may merge with: of items that are alike in these, one is tried."""


@dataclass(frozen=True)
class _Said:
    """What a model that learned its row generates."""

    text: str
    why: str
    """How it differs from the row's completion, and the remedy; empty where it does not."""


def prove_answers(task: Task, template: ChatTemplate | None, encoder: Encoder, model: str) -> Iterator[str]:
    """Try what a task's training rows teach.

    Args:
        task: With a training split; not a group.
        template: The chat template that its prompts are rendered in; None for plain text.
        encoder: Of a base model's tokenizer.
        model: The base model's name.

    Yields:
        Notes, where there is something to say.

    Raises:
        SpecError: For the first training row whose own answer does not score the metric's best.
    """
    rows = training_rows(task, template)
    if task.output_type == "multiple_choice":
        _prove_labels(task, template)
        items = [[(row.prompt, choice) for choice in (row.completion, *(row.wrong or ()))] for row in rows]
        yield from _told_apart(task, "train split", items, encoder, model)
    elif task.output_type == "generate_until":
        yield from _prove_texts(task, template, encoder, model)
    if task.output_type in ("multiple_choice", "generate_until") and len(rows) > _most(task):
        yield f"{task.name}: of {len(rows)} training rows, {len(_sample(rows, _most(task)))} were tried whether they score the best"


def prove_choices(task: Task, split: str, built: ConfigurableTask, encoder: Encoder, model: str) -> Iterator[str]:
    """Check that the choices of each item differ in the tokens that they are scored by.

    Args:
        task: Not a group.
        split: Which is scored.
        built: The task as it is scored there, with its requests.
        encoder: Of a base model's tokenizer.
        model: The base model's name.

    Yields:
        A note, where lm-eval's own task has such items.

    Raises:
        SpecError: For the first item of a user's task two of whose choices are the same tokens.
    """
    if task.output_type != "multiple_choice":
        return
    items: dict[int, list[tuple[str, str]]] = {}
    for instance in built.instances:
        # What comes after the choices asks how likely they are without the prompt.
        if instance.idx < len(built.doc_to_choice(instance.doc)):
            items.setdefault(instance.doc_id, []).append(instance.args)
    yield from _told_apart(task, f"{split} split", list(items.values()), encoder, model)


def prove_scored(task: Task, split: str, built: ConfigurableTask) -> None:
    """Have a task's filter and metric score what any model might answer: what is missing for that is known before a trial.

    Args:
        task: Not a group.
        split: Which is scored.
        built: The task as it is scored there.

    Raises:
        SpecError: When an item cannot be scored, or not by the task's metric.
    """
    if task.definition.unsafe_code:
        return  # programs may be shut in where trials run, and not where they are planned
    brings_code = callable(built.config.process_results) or callable(built.config.metric_list[0]["metric"])
    for number, doc in _sample([doc for _, doc in built.doc_iterator()], MOST_SCORED if brings_code else 1):
        try:
            results = usual_results(built, doc)
        except HarnessError:
            raise
        except Exception as error:  # a task's own functions may raise anything
            raise SpecError(
                f"task {task.name} must be able to score any answer, but cannot in item {number} of its {split} split "
                f"({describe(error)}): install what it needs, or correct its filter_list, process_results or metric"
            ) from error
        check_scored(task.name, task.metric, results)


def _prove_texts(task: Task, template: ChatTemplate | None, encoder: Encoder, model: str) -> Iterator[str]:
    built = lm_eval_task(task, "train", template=template)
    tried = _sample(training_rows(task, template), _most(task))
    said = _generated(built, [row for _, row in tried], encoder)
    docs = [row.doc for _, row in tried]
    try:
        values = text_scores(built, docs, [one.text for one in said])
        total = aggregated(built, values) if task.built_in else math.nan
    except Exception as error:  # a task's own functions may raise anything
        if isinstance(error, HarnessError):
            raise
        raise SpecError(
            f"task {task.name} must be able to score its own answers, but cannot ({type(error).__name__}: {error}): "
            "correct its filter_list, process_results or metric"
        ) from error
    wrong = [place for place, value in enumerate(values) if not _is_best(task, built, docs[place], value)]
    if not wrong:
        return
    number, first, value = tried[wrong[0]][0], said[wrong[0]], values[wrong[0]]
    if task.built_in and len(wrong) < len(tried):
        yield (
            f"{task.name} on {model}: {len(wrong)} of {len(tried)} training rows teach an answer that does not score the best "
            f"{task.metric}, first row {number}; all of them together score {total:.4g}"
        )
        return
    remedy = f"let filter_list and metric take it for the answer {_short(answer_of(built, docs[wrong[0]]))}"
    if task.built_in:
        remedy = "write a task of your own that includes lm-eval's, with a doc_to_target that it scores as right"
    best = task.scale.best(task.higher_is_better)
    scores = (
        f"scores {value:g} instead of {best:g}" if _is_number(value) and best is not None else "is not scored as right"
    )
    raise SpecError(
        f"task {task.name}: what training row {number} teaches must score the best {task.metric}, but {model} would say "
        f"{_short(first.text)}, which {scores}: {first.why or remedy}"
    )


def _is_best(task: Task, built: ConfigurableTask, doc: Doc, value: Any) -> bool:
    """Whether a text scores the best of its metric, or as much as the right answer itself, where that is more than nothing.

    Some metrics give a short text less than their best, however right it is (METEOR a half for one word).
    """
    best, worst = (task.scale.best(higher) for higher in (task.higher_is_better, not task.higher_is_better))
    if _same(value, best):
        return True
    if worst is None and task.higher_is_better:
        worst = 0.0  # where nobody says what is worst, nothing is
    try:
        (right,) = answer_scores(built, [doc])
    except Exception:  # a task's own function may want what its filter makes of a text
        return False
    return _same(value, right) and not _same(right, worst)


def _generated(built: ConfigurableTask, rows: Sequence[Row], encoder: Encoder) -> list[_Said]:
    """What a model that learned these rows generates: completions, cut and decoded as lm-eval does it."""
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

    options, tokenizer = normalize_gen_kwargs(built.config.generation_kwargs), encoder.tokenizer
    end = tokenizer.decode(encoder.end) if encoder.end else None
    stops = handle_stop_sequences(list(options.get("until") or []), end)
    most, said = int(options["max_gen_toks"]), []
    pairs = encoder.pairs([(row.prompt, row.completion + row.end) for row in rows], generates=True)
    # The scores of lm-eval's own tasks are lm-eval's, and so is how their answers are decoded.
    decoded = encoder.said if built.exact else partial(tokenizer.batch_decode, skip_special_tokens=True)
    whole = decoded([ids for _, ids in pairs])
    longest = max(len(ids) for _, ids in pairs)
    for row, (_, ids), text in zip(rows, pairs, whole, strict=True):
        cut = text if len(ids) <= most else str(decoded([ids[:most]])[0])
        kept = postprocess_generated_text(cut, stops, None)
        why = ""
        if kept != cut and row.completion.strip() not in kept:
            stop = next(stop for stop in stops if stop and stop in cut)
            why = f"generation stops at {stop!r}, which its answer holds: take that out of generation_kwargs.until, or out of the data"
        elif cut != text:
            why = (
                f"generation stops after {most} tokens, and its answer has {len(ids)}: raise generation_kwargs.max_gen_toks to "
                f"{longest}, as the longest has, or leave such rows out"
            )
        elif row.end and kept.endswith(row.end):
            why = (
                f"after an answer the chat template writes {row.end!r}, which no generation stops at: add it to "
                "generation_kwargs.until"
            )
        elif text.strip() != row.completion.strip():
            why = f"its answer is {_short(row.completion)}, which the tokenizer cannot write: write it otherwise"
        said.append(_Said(kept, why))
    return said


@lru_cache(maxsize=256)
def _prove_labels(task: Task, template: ChatTemplate | None) -> None:
    """Check that lm-eval scores the choice that is trained as right."""
    best, built = task.scale.best(task.higher_is_better), lm_eval_task(task, "train", template=template)
    tried = _sample(training_rows(task, template), MOST_CHOICES)
    values = choice_scores(built, [row.doc for _, row in tried])
    wrong = [
        place for place, value in enumerate(values) if best is not None and _is_number(value) and not _same(value, best)
    ]
    if wrong and not (task.built_in and len(wrong) < len(tried)):
        number, row = tried[wrong[0]]
        raise SpecError(
            f"task {task.name}: what training row {number} teaches must score the best {task.metric}, but {row.completion!r} "
            f"scores {values[wrong[0]]:g} instead of {best:g}: correct its label, or the task's metric"
        )


def _told_apart(
    task: Task, split: str, items: Sequence[Sequence[tuple[str, str]]], encoder: Encoder, model: str
) -> Iterator[str]:
    """Check that each item's requests differ in their tokens."""
    chosen, alike = _sample(items, MOST_CHOICES), dict[object, list[int]]()
    for number, item in chosen:
        alike.setdefault(tuple((prompt[-DECIDING:], choice) for prompt, choice in item), []).append(number)
    tried = [(numbers, _near(items[numbers[0] - 1])) for numbers in alike.values()]
    encoded = iter(encoder.pairs([request for _, item in tried for request in item]))
    wrong: list[tuple[int, str, str]] = []
    for numbers, item in tried:
        ids = [next(encoded) for _ in item]
        known: dict[object, str] = {}
        for own, (_, choice) in zip(ids, item, strict=True):
            if own in known:
                wrong += [(number, known[own], choice) for number in numbers]
                break
            known[own] = choice
    if not wrong:
        return
    number, one, other = min(wrong)
    if task.built_in and len(wrong) < len(chosen):
        yield (
            f"{task.name} on {model}: in {len(wrong)} of {len(chosen)} items of its {split} two choices are the same tokens, first "
            f"in item {number}; the first of them counts as the answer"
        )
        return
    raise SpecError(
        f"task {task.name}: the choices of an item must differ in the tokens that they are scored by, but in item {number} of "
        f"its {split} {model} reads {_short(one)} and {_short(other)} as the same tokens: write them otherwise"
    )


def _near(item: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """An item's requests with the end of their prompt, where they have the same: it is encoded much sooner."""
    prompts = {prompt for prompt, _ in item}
    return [(prompt[-NEAR:], choice) for prompt, choice in item] if len(prompts) == 1 else item


def _most(task: Task) -> int:
    """Rows that are tried at most."""
    metric = measure(task.metric)
    if task.output_type == "multiple_choice":
        return MOST_CHOICES
    return MOST_PROGRAMS if metric and metric.runs_code else MOST_ROWS


def _sample(items: Sequence[T], most: int) -> list[tuple[int, T]]:
    """Items with their numbers, counted from 1; spread evenly where there are more than `most`."""
    step = max(1, math.ceil(len(items) / most))
    return [(place + 1, items[place]) for place in range(0, len(items), step)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0


def _same(value: Any, wanted: Any) -> bool:
    if _is_number(value) and _is_number(wanted):
        return math.isclose(float(value), float(wanted), rel_tol=1e-6, abs_tol=1e-6)
    return bool(value == wanted)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}")

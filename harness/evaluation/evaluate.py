"""Scores a live model, or several side by side, on a task of lm-eval's, in this process and item by item.

Requests, filters and metrics are lm-eval's; the responses come from `responses`, at once for all models. A model is
scored as it stands, adapters included; its modules' training modes and the random state are left as they were.
Beginning-of-text: prompts get what the tokenizer adds to any text, as in training; plain text is scored after one
beginning-of-text token (end-of-text where there is none), never two. A prompt that does not fit the model's context loses
its beginning; a long text is scored in windows of the context, each token once.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, SupportsFloat, cast
from weakref import WeakKeyDictionary

from harness.errors import SpecError
from harness.evaluation.groups import group_score, part_scores
from harness.evaluation.loglikelihood import StackedModels
from harness.evaluation.pseudo_values import pseudo_values
from harness.evaluation.responses import Responder, Response
from harness.metrics.base import guessing, majority, measure
from harness.models.chat import ChatTemplate
from harness.models.tokens import TokenCache, TokenizerFacts, affixes
from harness.records.codec import fingerprint
from harness.records.trial import Ended, PartScore, Score, TrialStatus
from harness.tasks.chat_rows import template_for
from harness.tasks.lm_eval_task import gold_index, lm_eval_task
from harness.tasks.own_answers import check_scored
from harness.tasks.task import Task

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ItemOutcome:
    """What happened on one item."""

    doc_hash: str
    """lm-eval's SHA-256 of the row."""
    value: float
    """The metric of this item alone; NaN where it has none (an F1 score, for example)."""
    prediction: str | None
    """The choice or text that the model gave; None where it only scored a text."""
    answer_bits: float | None = field(default=None, compare=False)
    """Bits per byte of the right answer, or of the text that is scored; None where the model only generated."""
    pseudo_value: float | None = field(default=None, compare=False)
    """Of a metric of all items at once what stands for the item, see `pseudo_values`; None where `value` does."""


@dataclass(frozen=True)
class Evaluated:
    """A score and the items that it comes from."""

    score: Score
    items: tuple[ItemOutcome, ...]
    latency_s: float | None = field(default=None, compare=False)
    """Wall seconds of generating an item's answers, in batches; where models are side by side, a model's share. None for
    tasks that generate nothing."""
    parts: tuple[PartScore, ...] = ()
    """Of a group: scores of what it is made of."""
    tasks: tuple[Evaluated, ...] = ()
    """Of a group: its tasks, each once; they have the items."""


ScoreOutcome = Evaluated | Ended
"""A score, or how the trial ends whose score is not finite."""


@dataclass(frozen=True)
class _Item:
    """What lm-eval's results of an item need and no model changes."""

    doc: Mapping[str, object]
    """The row of the task's data."""
    doc_hash: str
    instances: tuple[Instance, ...]
    """Its requests, one for each choice."""
    choices: tuple[str, ...]
    """Of multiple choice; else empty."""
    gold: int
    """Which of the requests has the right answer; 0 where there is one."""


class Evaluator:
    """Scores live models on tasks, and keeps what no model changes: items, and requests that are laid out.

    Args:
        tokens: Texts that were encoded.
        batch_size: Sequences per forward pass; None for as many as memory and speed allow.
    """

    def __init__(self, tokens: TokenCache, batch_size: int | None = None) -> None:
        self._tokens, self._batch_size = tokens, batch_size
        self._responder = Responder()
        self._items: WeakKeyDictionary[ConfigurableTask, list[_Item]] = WeakKeyDictionary()

    def evaluate(
        self,
        models: StackedModels,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        split: str,
        limit: int | None,
        template: ChatTemplate | None = None,
    ) -> list[ScoreOutcome]:
        """Score models that compute side by side, in one pass over a split of a task.

        Args:
            models: PEFT models count with their active adapters.
            tokenizer: Theirs.
            task: What to score.
            split: `validation` or `test` (`train` works too).
            limit: Only this many items, the first in the order of their hashes, of each of a group's tasks; None for all.
            template: The chat template that the models are scored in; None for plain text.

        Returns:
            For each model its score and items, or how its trial ends where a score is not finite.

        Raises:
            SpecError: When the task's data is wrong, or does not fit the models' context.
        """
        if task.group is not None:
            tasks = tuple(dict.fromkeys(task.leaves))
            by_task = [self.evaluate(models, tokenizer, leaf, split, limit, template) for leaf in tasks]
            return [_combined(task, tasks, own) for own in zip(*by_task, strict=True)]
        template = template_for(task, template, "the model")
        built = lm_eval_task(task, split, limit, template)
        built.build_all_requests()
        start = time.perf_counter()
        with scoring_mode(models.model):
            responses = self._responder.respond(models, tokenizer, built, self._batch_size)
        seconds = time.perf_counter() - start
        departs = self._responder.departs(models, tokenizer, built)
        comparable = comparability(task, tokenizer, self._tokens.facts(tokenizer), departs, models.held, template)
        items = self._items_of(built)
        outcomes = [_outcome(built, items, task, (split, comparable), own) for own in responses]
        if built.OUTPUT_TYPE != "generate_until":
            return outcomes
        latency_s = seconds / (models.count * len(items))
        return [
            outcome if isinstance(outcome, Ended) else replace(outcome, latency_s=latency_s) for outcome in outcomes
        ]

    def _items_of(self, built: ConfigurableTask) -> list[_Item]:
        """A task's items in their order, each with its requests."""
        if built not in self._items:
            self._items[built] = _items(built)
        return self._items[built]


def _combined(task: Task, tasks: Sequence[Task], outcomes: Sequence[ScoreOutcome]) -> ScoreOutcome:
    """What a group makes of one model's outcomes on its tasks."""
    evaluated: list[Evaluated] = []
    for outcome in outcomes:
        if isinstance(outcome, Ended):
            return outcome
        evaluated.append(outcome)
    scores = {leaf: own.score for leaf, own in zip(tasks, evaluated, strict=True)}
    return Evaluated(group_score(task, scores), (), parts=part_scores(task, scores), tasks=tuple(evaluated))


def _items(built: ConfigurableTask) -> list[_Item]:
    from lm_eval.utils import handle_non_serializable, hash_string

    instances = defaultdict(list)
    for instance in built.instances:
        instances[instance.doc_id].append(instance)
    return [
        _Item(
            doc=doc,
            # The hash that lm-eval writes into its own samples, so that items can be looked up there.
            doc_hash=hash_string(json.dumps(own[0].doc, indent=2, default=handle_non_serializable, ensure_ascii=False)),
            instances=tuple(sorted(own, key=lambda instance: instance.idx)),
            choices=tuple(map(str, built.doc_to_choice(doc))) if built.OUTPUT_TYPE == "multiple_choice" else (),
            gold=gold_index(built, doc) if built.OUTPUT_TYPE == "multiple_choice" else 0,
        )
        for number, doc in built.doc_iterator()
        if (own := instances[number])
    ]


@contextmanager
def scoring_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own training mode is restored."""
    import torch

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _outcome(
    built: ConfigurableTask,
    items: Sequence[_Item],
    task: Task,
    labels: tuple[str, str],
    responses: Sequence[Response] | None,
) -> ScoreOutcome:
    """Score and items from one model's responses, by lm-eval's filter and metric.

    Args:
        built: The task as lm-eval's object.
        items: Its items.
        task: The task.
        labels: Split and comparability key.
        responses: To the task's requests, in their order; None where the model's logits were not finite.
    """
    reason = f"the score of task {task.name} must be finite, but is not: lower the learning rate"
    diverged = Ended(TrialStatus.DIVERGED, reason)
    if responses is None:
        return diverged
    for instance, response in zip(built.instances, responses, strict=True):
        instance.resps, instance.filtered_resps = response if isinstance(response, list) else [response], {}
    built.apply_filters()
    name = next(iter(built.instances[0].filtered_resps))  # of several filters, the first counts
    filtered = [[instance.filtered_resps[name] for instance in item.instances] for item in items]
    results = [built.process_results(dict(item.doc), own) for item, own in zip(items, filtered, strict=True)]
    metric, aggregate = task.metric, _aggregation(built, task.metric)
    for result in results:
        check_scored(task.name, metric, result)
    value = aggregate([result[metric] for result in results])
    if isinstance(value, float) and not math.isfinite(value):
        return diverged
    if not task.scale.holds(float(value)):
        raise SpecError(
            f"task {task.name}: {metric} must lie within its declared bounds [{task.scale.low}, {task.scale.high}], but is "
            f"{float(value):.6g}: correct metadata.metrics.{metric}.bounds in the task file"
        )
    values = [_item_value(metric, aggregate, result[metric]) for result in results]
    is_mean = math.isclose(statistics.fmean(values), float(value), rel_tol=1e-6, abs_tol=1e-6)
    stand_ins: Sequence[float | None] = [None] * len(values)
    if labels[0] == "test" and not is_mean:  # verdicts are from the test split alone
        stand_ins = pseudo_values(aggregate, [result[metric] for result in results], float(value)) or stand_ins
    outcomes = tuple(
        ItemOutcome(item.doc_hash, value, _prediction(built, item, own), _answer_bits(built, item, own), stand_in)
        for item, value, own, stand_in in zip(items, values, filtered, stand_ins, strict=True)
    )
    score = Score(
        task=task.name,
        split=labels[0],
        metric=metric,
        value=float(value),
        stderr=_stderr(aggregate, outcomes),
        n=len(outcomes),
        higher_is_better=task.higher_is_better,
        comparability=labels[1],
        chance=guessing(values, [len(item.choices) for item in items]) if task.chance is None else task.chance,
        scale=task.scale,
        majority=majority(values, [_right_answer(built, item) for item in items]) if task.higher_is_better else None,
    )
    return Evaluated(score, outcomes)


def _aggregation(built: ConfigurableTask, metric: str) -> Callable[[Sequence[object]], SupportsFloat]:
    """What makes one value of a metric's items."""
    from lm_eval.api.metrics import mean

    aggregate: Callable[[Sequence[object]], SupportsFloat] = built.aggregation().get(metric, mean)
    return aggregate


def _item_value(metric: str, aggregate: Callable[[Sequence[object]], SupportsFloat], value: object) -> float:
    """The metric of one item alone; NaN where it has none."""
    from lm_eval.api.metrics import bits_per_byte, perplexity, weighted_perplexity

    if ours := measure(metric):
        return ours.value(value)
    if aggregate in (bits_per_byte, perplexity, weighted_perplexity):  # of log-likelihoods, with or without a count
        if isinstance(value, tuple) and not value[1]:
            return math.nan
        try:
            return float(aggregate([value]))
        except OverflowError:
            return math.inf
    is_number = isinstance(value, int | float) or getattr(value, "ndim", None) == 0
    return float(cast("SupportsFloat", value)) if is_number else math.nan


def _prediction(built: ConfigurableTask, item: _Item, filtered: Sequence[Response | str]) -> str | None:
    """The choice of the highest log-likelihood, or the generated text after the task's filter."""
    if built.OUTPUT_TYPE == "multiple_choice":
        pairs = cast("Sequence[tuple[float, bool]]", filtered[: len(item.choices)])
        scores = [log_likelihood for log_likelihood, _ in pairs]
        return item.choices[scores.index(max(scores))]
    return str(filtered[0]) if built.OUTPUT_TYPE == "generate_until" else None


def _right_answer(built: ConfigurableTask, item: _Item) -> str | None:
    """The choice, continuation or generated text that is right; None where there is not one."""
    if built.OUTPUT_TYPE == "generate_until":
        target = built.doc_to_target(dict(item.doc))
        return target if isinstance(target, str) else None
    return str(item.choices[item.gold] if item.choices else item.instances[0].args[-1])


def _answer_bits(built: ConfigurableTask, item: _Item, filtered: Sequence[Response | str]) -> float | None:
    """How unlikely the right answer is, whatever its length; white space around it does not count as length.

    An accuracy that stands at chance cannot fall, while this can rise: it costs nothing, since the model was asked already.
    """
    if built.OUTPUT_TYPE == "generate_until":
        return None
    response, text = cast("Response", filtered[item.gold]), str(item.instances[item.gold].args[-1]).strip()
    nats = cast("float", response[0] if isinstance(response, tuple) else response)
    return -nats / math.log(2) / max(1, len(text.encode()))


def _stderr(aggregate: Callable[[Sequence[object]], SupportsFloat], items: Sequence[ItemOutcome]) -> float | None:
    """Sample standard deviation / sqrt(n) of a metric that is the mean of its items; None for others."""
    from lm_eval.api.metrics import mean

    if aggregate is not mean or len(items) < 2:
        return None
    deviation = statistics.stdev(item.value for item in items)
    return deviation / math.sqrt(len(items)) if math.isfinite(deviation) else None


def comparability(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    facts: TokenizerFacts,
    departs: bool = False,
    held: str = "",
    template: ChatTemplate | None = None,
) -> str:
    """Hash of what must be equal for scores to be ranked: tokenizer, chat template, BOS policy, lm-eval, task, metric, drawing.

    Args:
        task: What was scored.
        tokenizer: The model's.
        facts: What decides its tokens, see `TokenCache.facts`.
        departs: Whether the task's texts have other tokens than in records of before, see `Responder.departs`.
        held: Type that the base is held in, where that is another than float32.
        template: The chat template that prompts were rendered in; None for plain text.
    """
    from lm_eval import __version__

    # Plain scores of a tokenizer with a template have had the template there since before it was used.
    has = getattr(tokenizer, "chat_template", None)
    identity = [
        facts,
        ["rendered in", template.identity] if template else has,
        bos_policy(tokenizer),
        __version__,
        task.ref.fingerprint,
        task.metric,
    ]
    if task.definition.samples:  # before answers were drawn, such tasks were scored on the likeliest ones
        identity.append([task.definition.generation_kwargs, task.definition.repeats])
    if departs:
        identity.append("prompt and answer apart, begun once, never ended by the tokenizer")
    if held:  # such bases were once held in float32
        identity.append(held)
    return fingerprint(identity)


def bos_policy(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer puts around any text: tokens before and after, as JSON."""
    return json.dumps(affixes(tokenizer))

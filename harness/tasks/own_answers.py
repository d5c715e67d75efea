"""What a task's own answers score: texts go through the task's filter and metric as a model's answers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

from harness.errors import SpecError
from harness.metrics.base import measure_of
from harness.tasks.lm_eval_task import answer_of, border, gold_index
from harness.tasks.splits import Doc

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SAID = " A."
"""A text that a model might generate."""
_SURE = 1000.0
"""Nats between the right choice and any other: so many that its probability is 1."""


def text_scores(built: ConfigurableTask, docs: Sequence[Doc], texts: Sequence[str]) -> list[Any]:
    """What each row's metric makes of a generated text.

    Args:
        built: A task of generated answers.
        docs: The rows.
        texts: What a model says for each row, however often it is asked.
    """
    from lm_eval.api.instance import Instance

    repeats = int(built.config.repeats or 1)
    said = [
        Instance(request_type="generate_until", doc=dict(doc), arguments=("", {}), idx=0, resps=[text] * repeats)
        for doc, text in zip(docs, texts, strict=True)
    ]
    first = built._filters[0]  # of several filters, the first counts
    first.apply(said)
    return [_value(built, one.doc, [one.filtered_resps[first.name]]) for one in said]


def answer_scores(built: ConfigurableTask, docs: Sequence[Doc]) -> list[Any]:
    """What each row's metric makes of the right answer itself, as if a filter had found it in a text."""
    return [_value(built, doc, [answer_of(built, doc)]) for doc in docs]


def choice_scores(built: ConfigurableTask, docs: Sequence[Doc]) -> list[Any]:
    """What each row's metric makes of a model that is sure of the choice that is trained."""
    # lm-eval's own metrics of choices look at nothing else of a row.
    alike = not callable(built.config.process_results) and measure_of(built.config.metric_list[0]) is None
    known: dict[tuple[object, ...], Any] = {}
    scores = []
    for number, doc in enumerate(docs):
        gold, choices = gold_index(built, doc), built.doc_to_choice(doc)
        key = (_gold(built, doc), *choices) if alike else (number,)
        if key not in known:
            answers = [(0.0 if place == gold else -_SURE, place == gold) for place in range(len(choices))]
            if "acc_mutual_info" in built.aggregation():
                answers += [(-_SURE, False)] * len(choices)
            known[key] = _value(built, doc, answers)
        scores.append(known[key])
    return scores


def _gold(built: ConfigurableTask, doc: Doc) -> str:
    """What a row says is right, of one or of several choices."""
    return repr(built.doc_to_text(doc) if built.multiple_input else built.doc_to_target(doc))


def usual_results(built: ConfigurableTask, doc: Doc) -> Mapping[str, Any]:
    """What a task's filter and metric make of an answer that is no better than any other, by metric."""
    from lm_eval.api.instance import Instance

    kind = built.OUTPUT_TYPE
    if kind == "generate_until":
        said = Instance(
            request_type=kind, doc=dict(doc), arguments=("", {}), idx=0, resps=[SAID] * (built.config.repeats or 1)
        )
        built._filters[0].apply([said])
        results: list[Any] = list(said.filtered_resps.values())
    else:
        count = len(built.doc_to_choice(doc)) if kind == "multiple_choice" else 1
        pairs = [(-1.0 - place, False) for place in range(count * (1 + ("acc_mutual_info" in built.aggregation())))]
        results = [likelihood for likelihood, _ in pairs] if kind == "loglikelihood_rolling" else list(pairs)
    scores: Mapping[str, Any] = built.process_results(dict(doc), results)
    return scores


def check_scored(name: str, metric: str, results: Mapping[str, object]) -> None:
    """Refuse a task whose items do not get its metric: another one's value must not stand in its place."""
    if metric not in results:
        raise SpecError(
            f"task {name}: every item must be scored by {metric}, but one has only "
            f"{', '.join(map(str, results)) or 'nothing'}: name a metric that the task computes"
        )


def aggregated(built: ConfigurableTask, values: Sequence[Any]) -> float:
    """The task's metric of what `text_scores` and its like give."""
    from lm_eval.api.metrics import mean

    aggregation = next(iter(built.aggregation().values()), mean)
    value: SupportsFloat = aggregation(list(values))
    return float(value)


def takes_delimiter(built: ConfigurableTask, docs: Sequence[Doc]) -> bool:
    """Whether answers are better scored with the delimiter that examples show before them than without.

    lm-eval's own exact matches count it as part of an answer, unless a filter takes it away.

    Args:
        built: One of lm-eval's own tasks, of generated answers.
        docs: Some of its rows.
    """
    if built.template or built.config.gen_prefix or not built.config.target_delimiter:
        return True
    answers = [(border(built, doc, answer), answer) for doc in docs for answer in [answer_of(built, doc)]]
    try:
        with_it, without = (
            aggregated(built, text_scores(built, docs, texts))
            for texts in ([before + answer for before, answer in answers], [answer for _, answer in answers])
        )
    except Exception:
        return True  # what is wrong with a metric is said where the task is proven
    better = without > with_it if next(iter(built.higher_is_better().values()), True) else without < with_it
    return not better


def _value(built: ConfigurableTask, doc: Doc, results: Sequence[Any]) -> Any:
    """Of the metric that counts: the first, or the first that the task's own function returns."""
    scores = built.process_results(dict(doc), list(results))
    wanted = next(iter(built.aggregation()), None)
    return scores[wanted] if wanted in scores else next(iter(scores.values()))

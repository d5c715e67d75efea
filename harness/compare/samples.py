"""Reads what `lm_eval --log_samples` left: `samples_TASK_DATE.jsonl` beside `results_DATE.json`, the newest of each task.

Of several filters the first counts, and of several metrics the task's first, as where the harness scores a model. lm-eval writes
all responses as texts. Which choice is right it writes as a number or as a text; that reading is taken which agrees with `acc`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.compare.answers import Answer, Model, Skill, told_apart
from harness.errors import SpecError
from harness.files import parse_json
from harness.metrics.base import LM_EVAL_SCALES, LM_EVAL_SURPRISES, Surprise
from harness.records.scale import Scale

DATE = r"\d{4}-\d\d-\d\dT[\d.-]+"
SAMPLES = re.compile(rf"samples_(.+)_({DATE})\.jsonl")
RESULTS = re.compile(rf"(?:results|.+)_({DATE})\.json")

Json = Mapping[str, Any]


def has_samples(folder: Path) -> bool:
    """Whether a folder, or one below it, holds what lm-eval logged."""
    return folder.is_dir() and any(SAMPLES.fullmatch(path.name) for path in folder.rglob("samples_*.jsonl"))


def read_samples(folder: Path, tasks: Sequence[str] = (), limit: int | None = None) -> Model:
    """A model's answers from lm-eval's files.

    Args:
        folder: With the files of one model, or with one folder that has them.
        tasks: Only these; all for none.
        limit: Only this many items of each task, the first in the order of their hashes; None for all.

    Raises:
        SpecError: When files of several models are there, files are missing or broken, or a task was not scored.
    """
    newest: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        if match := SAMPLES.fullmatch(path.name):
            newest[match[1]] = max(newest.get(match[1], ("", path)), (match[2], path))
    places = sorted({str(path.parent) for _, path in newest.values()})
    if len(places) > 1:
        raise SpecError(f"{folder} must hold the samples of one model, but holds {', '.join(places)}: name one of them")
    for task in tasks:
        if task not in newest:
            known = ", ".join(sorted(newest))
            raise SpecError(f"{folder} must hold samples of task {task}, but holds those of {known}: correct --tasks")
    chosen = tasks or sorted(newest)
    return Model(name=str(folder), skills={task: _skill(task, *newest[task], limit) for task in chosen})


def _skill(task: str, date: str, path: Path, limit: int | None) -> Skill:
    rows = _rows(path)
    results = _results(path.parent, date)
    try:
        return _read(task, rows, results, limit)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SpecError(
            f"{path} must be what lm_eval --log_samples writes, but is not ({error!r}): run lm_eval again"
        ) from error


def _rows(path: Path) -> list[Json]:
    rows: list[Json] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise SpecError(f"{path}, line {number}, must be JSON, but is not ({error}): run lm_eval again") from error
        if not isinstance(row, dict):
            raise SpecError(f"{path}, line {number}, must be an object, but is {line[:40]!r}: run lm_eval again")
        rows.append(row)
    if not rows:
        raise SpecError(f"{path} must hold samples, but is empty: run lm_eval again")
    return rows


def _results(folder: Path, date: str) -> Json:
    """The results file of a run of lm-eval's, by its date."""
    for path in sorted(folder.glob("*.json")):
        if (match := RESULTS.fullmatch(path.name)) and match[1] == date:
            try:
                data = parse_json(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise SpecError(f"{path} must be JSON, but is not ({error}): run lm_eval again") from error
            if isinstance(data, dict):
                return data
    raise SpecError(f"{folder} must hold results_{date}.json beside its samples, but does not: run lm_eval again")


def _read(task: str, rows: Sequence[Json], results: Json, limit: int | None) -> Skill:
    config = results["configs"][task]
    first = rows[0]["filter"]
    rows = [row for row in rows if row["filter"] == first]
    listed = [entry["metric"] for entry in config.get("metric_list") or ()]
    metric = next((name for name in (*listed, *rows[0]["metrics"]) if name in rows[0]), None)
    if metric is None:
        raise ValueError(f"no item has one of the metrics {', '.join(map(str, listed))}")
    higher = results.get("higher_is_better", {}).get(task, {}).get(metric, True)
    kind = str(config.get("output_type", ""))
    gold = _gold(rows) if kind == "multiple_choice" else None
    answers = [
        _answer(item, row, metric, (kind, gold))
        for item, row in zip(told_apart(str(row["doc_hash"]) for row in rows), rows, strict=True)
    ]
    if limit is not None and limit < len(answers):
        answers = sorted(answers, key=lambda answer: answer.item)[:limit]
        value = math.fsum(answer.value for answer in answers) / limit
    else:
        value = float(results["results"][task][f"{metric},{first}"])
    return Skill(
        metric=str(metric),
        higher_is_better=bool(higher),
        scale=LM_EVAL_SCALES.get(metric, Scale()),
        chance=None,
        value=value,
        answers=tuple(answers),
    )


def _answer(item: str, row: Json, metric: str, how: tuple[str, Callable[[Json], int] | None]) -> Answer:
    kind, gold = how
    requests = list(row["arguments"].values()) if isinstance(row["arguments"], dict) else row["arguments"]
    texts = [list(request.values()) if isinstance(request, dict) else request for request in requests]
    responses, right, given, bits = row["filtered_resps"], str(row["target"]), None, None
    if kind == "multiple_choice":
        choices = [str(text[1]) for text in texts]
        nats = list(_nats(responses))
        given = choices[nats.index(max(nats))]
        if gold is not None:
            right = choices[gold(row)]
            bits = _bits(nats[gold(row)], right)
    elif kind == "loglikelihood":
        right = str(texts[0][1])
        bits = _bits(next(_nats(responses)), right)
    elif kind == "generate_until":
        given = str(responses[0])
    return Answer(
        item=item,
        value=_value(metric, row[metric]),
        prompt=str(texts[0][0]),
        right=right,
        given=given,
        bits=bits,
        choices=len(texts) if kind == "multiple_choice" else 0,
    )


def _nats(responses: Sequence[Any]) -> Iterator[float]:
    """Log-likelihoods, each with whether its text is the likeliest or alone."""
    return (float(own[0] if isinstance(own, list | tuple) else own) for own in responses)


def _bits(nats: float, text: str) -> float:
    return -nats / math.log(2) / max(1, len(text.strip().encode()))


def _gold(rows: Sequence[Json]) -> Callable[[Json], int] | None:
    """How a row's target names the right choice: by its number or by its text; None where neither agrees with `acc`."""

    def by_number(row: Json) -> int:
        return int(row["target"])

    def by_text(row: Json) -> int:
        choices = [list(request.values())[1].strip() for request in row["arguments"].values()]
        return choices.index(str(row["target"]).strip())

    for reading in (by_number, by_text):
        try:
            if all(_agrees(row, reading(row)) for row in rows):
                return reading
        except (ValueError, IndexError, AttributeError):
            continue
    return None


def _agrees(row: Json, gold: int) -> bool:
    nats = list(_nats(row["filtered_resps"]))
    if not 0 <= gold < len(nats):
        return False
    return "acc" not in row or float(row["acc"]) == float(nats.index(max(nats)) == gold)


def _value(metric: str, value: Any) -> float:
    """The metric of one item; a pair is a log-likelihood in nats and the words or bytes that it is of."""
    if isinstance(value, list | tuple) and len(value) == 2 and metric in LM_EVAL_SURPRISES:
        nats = -float(value[0]) / max(float(value[1]), 1.0)
        is_bits = LM_EVAL_SURPRISES[metric] is Surprise.BITS
        return nats / math.log(2) if is_bits else math.exp(min(nats, 700.0))
    if isinstance(value, int | float):
        return math.exp(min(-float(value), 700.0)) if metric == "perplexity" else float(value)
    return math.nan

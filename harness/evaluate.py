"""Scores a live model on a task with lm-eval, in this process and item by item.

The model is scored as it stands, adapters included; its modules' training modes and the random state are left as they
were. Beginning-of-text: prompts get what the tokenizer adds to any text, as in training; plain text is scored after one
beginning-of-text token (end-of-text where there is none), never two. A prompt that does not fit the model's context loses
its beginning; a long text is scored in windows of the context, each token once.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from harness.errors import Diverged, SpecError
from harness.layout import write_atomically
from harness.records import Score, fingerprint
from harness.tasks import Task
from harness.templates import hide_bars, lm_eval_task

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PER_BYTE = {"bits_per_byte": 1 / math.log(2), "byte_perplexity": 1.0, "word_perplexity": 1.0}
"""Metrics whose items are (log-likelihood in nats, count); factor from nats per unit to the metric or its logarithm."""

LOGITS = 1 << 28
"""Logits held at once while scoring (1 GiB in float32): vocabulary x tokens x sequences."""
LARGEST_BATCH = 64
ROLLING_WINDOW = 2048
"""Longest window in which whole texts are scored, whatever a model's context is."""
ROOM = 64
"""Tokens that an answer may add to a prompt when a batch is sized."""
_CACHED_TEXTS = 200_000
"""Encoded texts kept per tokenizer; learning curves and packs of trials score the same items again and again."""


@dataclass(frozen=True)
class ItemOutcome:
    """What happened on one item."""

    doc_hash: str
    """lm-eval's SHA-256 of the row."""
    value: float
    """The metric of this item alone; NaN where it has none (an F1 score, for example)."""
    prediction: str | None
    """The choice or text that the model gave; None where it only scored a text."""


@dataclass(frozen=True)
class Evaluated:
    """A score and the items that it comes from."""

    score: Score
    items: tuple[ItemOutcome, ...]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: str,
    limit: int | None,
    batch_size: int | None = None,
) -> Evaluated:
    """Score a model on one split of a task.

    Args:
        model: The live model; a PEFT model counts with its active adapters.
        tokenizer: Its tokenizer.
        task: What to score.
        split: `validation` or `test` (`train` works too).
        limit: Only this many items, the first in the order of their hashes; None for all.
        batch_size: Sequences per forward pass; None for as many, up to 64, as `LOGITS` allows.

    Raises:
        SpecError: When the task's data is wrong, or does not fit the model's context.
        Diverged: When a score is not finite.
    """
    import lm_eval

    built = lm_eval_task(task, split, limit)
    comparable = comparability(task, tokenizer)
    with scoring_mode(model):
        lm = _language_model(model, tokenizer, task)
        lm.batch_size_per_gpu = batch_size or _batch_size(lm, built, len(tokenizer))
        if task.output_type == "generate_until":
            _require_finite_logits(lm, built, task)
        try:
            results = lm_eval.evaluate(
                lm, {"tasks": {task.name: built}}, bootstrap_iters=0, log_samples=True, confirm_run_unsafe_code=True
            )
        except AssertionError as error:
            raise SpecError(
                f"task {task.name} must fit the model's context of {lm.max_length} tokens, but does not ({error}): "
                "shorten its texts or generation_kwargs.max_gen_toks"
            ) from error
    return _evaluated(results, built, task, split, comparable)


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


def _batch_size(lm: Any, built: ConfigurableTask, vocabulary: int) -> int:
    """Sequences at a time so that their logits stay below `LOGITS`, judged by the task's longest text."""
    rolling = built.OUTPUT_TYPE == "loglikelihood_rolling"
    texts = [str((built.doc_to_target if rolling else built.doc_to_text)(doc)) for doc in built.test_docs()]
    longest = min(lm.max_length, len(lm.tok_encode(max(texts, key=len))) + ROOM)
    return int(max(1, min(LARGEST_BATCH, LOGITS // (longest * vocabulary))))


def _language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> LM:
    import torch
    from lm_eval.models.utils import resolve_max_length

    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise SpecError(
            "a tokenizer must have a beginning- or end-of-text token to be scored, but has neither: add one"
        )
    adapters = getattr(model, "peft_config", None) or {}
    virtual = max((getattr(config, "num_virtual_tokens", None) or 0 for config in adapters.values()), default=0)
    rolling, device = task.output_type == "loglikelihood_rolling", model.device.type
    longest = resolve_max_length(model.config, tokenizer) - virtual
    return _model_class()(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=1,
        max_length=min(longest, ROLLING_WINDOW) if rolling else longest,
        # lm-eval would switch the caller's autocast off.
        mixed_precision_dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        softmax_dtype=torch.float32,
        # A rolling text starts with HFLM's prefix token already; the tokenizer must not add another.
        add_bos_token=False if rolling else None,
        # Sharing logits serves choices; of windows with equal tokens and other bounds it would score the wrong ones.
        logits_cache=not rolling,
    )


@cache
def _model_class() -> type[LM]:
    """lm-eval's wrapper of a live model, which encodes a text once per process and pads like with like."""
    import lm_eval.api.model
    import lm_eval.models.huggingface
    from lm_eval.models.huggingface import HFLM

    hide_bars(lm_eval.api.model, lm_eval.models.huggingface)
    encoded: WeakKeyDictionary[Any, dict[Any, list[int]]] = WeakKeyDictionary()

    class LiveModel(HFLM):  # type: ignore[misc]
        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
            known = encoded.setdefault(self.tokenizer, {})
            key = (string, add_special_tokens, self.add_bos_token, *options.values())
            if key not in known:
                if len(known) > _CACHED_TEXTS:
                    known.clear()
                known[key] = super().tok_encode(string, add_special_tokens, **options)
            return known[key]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            order = sorted(range(len(requests)), key=lambda index: len(requests[index].args[0]))
            scored = super().loglikelihood_rolling([requests[index] for index in order], disable_tqdm)
            found = dict(zip(order, scored, strict=True))
            return [found[index] for index in range(len(requests))]

    return LiveModel


def _require_finite_logits(lm: Any, built: ConfigurableTask, task: Task) -> None:
    """A model of NaNs generates text like any other: look at its logits for one prompt."""
    import torch

    tokens = lm.tok_encode(str(built.doc_to_text(built.test_docs()[0]))) or [lm.prefix_token_id]
    if not torch.isfinite(lm._model_call(torch.tensor([tokens[-lm.max_length :]], device=lm.device))).all():
        raise Diverged(f"the model's logits on task {task.name} must be finite, but are not: lower the learning rate")


def _evaluated(
    results: Mapping[str, Any], built: ConfigurableTask, task: Task, split: str, comparable: str
) -> Evaluated:
    samples = results["samples"][task.name]
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    metric = task.metric if task.metric in kept[0] else str(kept[0]["metrics"][0])
    value = results["results"][task.name][f"{metric},{kept[0]['filter']}"]
    if not _is_finite(value) or not all(_is_finite(response) for sample in kept for response in sample["resps"]):
        raise Diverged(f"the score of task {task.name} must be finite, but is not: lower the learning rate")
    items = tuple(
        ItemOutcome(sample["doc_hash"], _item_value(metric, sample[metric]), _prediction(built, sample))
        for sample in kept
    )
    score = Score(
        task=task.name,
        split=split,
        metric=metric,
        value=float(value),
        stderr=_stderr(built, metric, items),
        n=len(items),
        higher_is_better=task.higher_is_better,
        comparability=comparable,
        chance=task.chance,
    )
    return Evaluated(score, items)


def _is_finite(value: Any) -> bool:
    """Whether every number in a nested list is finite; other values are not numbers."""
    if isinstance(value, list | tuple):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _item_value(metric: str, value: Any) -> float:
    if metric in _PER_BYTE:
        log_likelihood, count = value
        if not count:
            return math.nan
        per_unit = -log_likelihood / count * _PER_BYTE[metric]
        return per_unit if metric == "bits_per_byte" else math.exp(min(per_unit, 700.0))
    return float(value) if isinstance(value, int | float) or getattr(value, "ndim", None) == 0 else math.nan


def _prediction(built: ConfigurableTask, sample: Mapping[str, Any]) -> str | None:
    """The choice of the highest log-likelihood, or the generated text after the task's filter."""
    if built.OUTPUT_TYPE == "multiple_choice":
        scores = [response[0] for response in sample["filtered_resps"]]
        choices = built.doc_to_choice(sample["doc"])
        return str(choices[scores.index(max(scores[: len(choices)]))])
    return str(sample["filtered_resps"][0]) if built.OUTPUT_TYPE == "generate_until" else None


def _stderr(built: ConfigurableTask, metric: str, items: Sequence[ItemOutcome]) -> float | None:
    """Sample standard deviation / sqrt(n) of a metric that is the mean of its items; None for others."""
    from lm_eval.api.metrics import mean

    if built.aggregation().get(metric) is not mean or len(items) < 2:
        return None
    deviation = statistics.stdev(item.value for item in items)
    return deviation / math.sqrt(len(items)) if math.isfinite(deviation) else None


def comparability(task: Task, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what must be equal for scores to be ranked: tokenizer, chat template, BOS policy, lm-eval, task, metric."""
    from lm_eval import __version__

    template = getattr(tokenizer, "chat_template", None)
    identity = [
        _tokenizer_facts(tokenizer),
        template,
        bos_policy(tokenizer),
        __version__,
        task.ref.fingerprint,
        task.metric,
    ]
    return fingerprint(identity)


_SEEN: WeakKeyDictionary[Any, tuple[int, list[Any]]] = WeakKeyDictionary()


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What decides a text's tokens; padding and truncation, which trainers set for themselves, do not.

    Kept per tokenizer until it grows: a vocabulary of 50,000 takes a fifth of a second.
    """
    size, facts = _SEEN.get(tokenizer, (-1, []))
    if size != len(tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
        kept = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
        facts = [digest, tokenizer.eos_token, tokenizer.bos_token]
        _SEEN[tokenizer] = (len(tokenizer), facts)
    return facts


def bos_policy(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer puts around any text, found by encoding one: tokens before and after, as JSON."""
    with_special = tokenizer.encode("a")
    plain = tokenizer.encode("a", add_special_tokens=False)
    start = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
    return json.dumps([with_special[:start], with_special[start + len(plain) :]])


def write_items(path: Path, outcomes: Sequence[Evaluated]) -> None:
    """Write item-level outcomes as Parquet, whole or not at all: task, split, metric, doc_hash, value, prediction.

    Raises:
        StorageError: When the file system refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet

    rows = [
        {
            "task": outcome.score.task,
            "split": outcome.score.split,
            "metric": outcome.score.metric,
            "doc_hash": item.doc_hash,
            "value": None if math.isnan(item.value) else item.value,
            "prediction": item.prediction,
        }
        for outcome in outcomes
        for item in outcome.items
    ]
    kinds = {name: pa.string() for name in ("task", "split", "metric", "doc_hash", "prediction")} | {
        "value": pa.float64()
    }
    columns = ("task", "split", "metric", "doc_hash", "value", "prediction")
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([(name, kinds[name]) for name in columns])), buffer
    )
    write_atomically(path, buffer.getvalue().to_pybytes())

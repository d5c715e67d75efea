"""What models respond to lm-eval's requests, encoded as lm-eval encodes them; for one model or several side by side.

Requests are encoded and laid out once for each task and tokenizer. Log-likelihoods come from `loglikelihood`, generated
texts from `generation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from harness.errors import SpecError
from harness.evaluation.generation import generated_texts
from harness.evaluation.loglikelihood import LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Request, RowPlan
from harness.models.tokens import Encoder, Ids, TokenCache, affixes, encoder

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedTokenizerBase

ROLLING_WINDOW = 2048
"""Longest window in which whole texts are scored, whatever a model's context is."""
LINE_BY_LINE = 10_000
"""Characters above which training once took texts line by line."""
_DEFAULT_HIDDEN_SIZE = 1024
"""Where a config names none."""

Response = tuple[float, bool] | float | list[str]
"""Of a continuation its log-likelihood in nats, and whether the model would have said it; of a whole text its
log-likelihood; of a prompt the generated texts, as many as the task asks for (`repeats`)."""
PlanKey = tuple[int, tuple[Ids, Ids], Ids, int, int | None]
"""Size of the vocabulary, what is put around texts, start token, tokens of the context, hidden size."""


@dataclass(frozen=True)
class _Layout:
    """A task's requests as rows."""

    plan: RowPlan
    owners: tuple[int, ...]
    """The request that each part of a whole text belongs to."""
    departs: bool
    """See `_departs`."""


class Responder:
    """Has models respond to lm-eval's requests, and keeps how the requests of a task are laid out."""

    def __init__(self) -> None:
        self._scorer = LikelihoodScorer()
        # Weak keys: what belongs to a task or a tokenizer goes with it.
        self._plans: WeakKeyDictionary[
            ConfigurableTask, WeakKeyDictionary[PreTrainedTokenizerBase, dict[PlanKey, _Layout]]
        ] = WeakKeyDictionary()

    def respond(
        self,
        models: StackedModels,
        tokenizer: PreTrainedTokenizerBase,
        built: ConfigurableTask,
        batch_size: int | None = None,
    ) -> list[Sequence[Response] | None]:
        """Each model's responses to a task's requests, in their order; None for a model whose logits are not finite.

        Args:
            models: In evaluation mode, without gradients.
            tokenizer: Theirs.
            built: The task, with its requests.
            batch_size: Rows of a model in a forward pass; None for as many as memory and speed allow.

        Raises:
            SpecError: When a request does not fit the models' context, or has nothing to score.
        """
        _refuse_bare_texts(encoder(tokenizer), built)
        if built.OUTPUT_TYPE == "generate_until":
            return self._generated(models, tokenizer, built, batch_size)
        layout = self._layout(models, tokenizer, built)
        scores = self._scorer.score(models, layout.plan, batch_size)
        responses: list[Sequence[Response] | None] = []
        for values, greedy, finite in zip(
            scores.values.tolist(), scores.greedy.tolist(), scores.finite.tolist(), strict=True
        ):
            if not finite:
                responses.append(None)
            elif built.OUTPUT_TYPE == "loglikelihood_rolling":
                responses.append(_totals(values, layout.owners, len(built.instances)))
            else:
                responses.append(list(zip(values, greedy, strict=True)))
        return responses

    def departs(self, models: StackedModels, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask) -> bool:
        """Whether a task's texts have other tokens than in records of before, see `_departs`; arguments as of `respond`."""
        if built.OUTPUT_TYPE != "generate_until":
            return self._layout(models, tokenizer, built).departs
        return _departs(encoder(tokenizer), built)

    def _layout(self, models: StackedModels, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask) -> _Layout:
        rolling = built.OUTPUT_TYPE == "loglikelihood_rolling"
        length = context_length(models, tokenizer)
        length = min(length, ROLLING_WINDOW) if rolling else length
        config = models.model.config
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        hidden_size = getattr(text_config, "hidden_size", None)
        plans = self._plans.setdefault(built, WeakKeyDictionary()).setdefault(tokenizer, {})
        key = (len(tokenizer), affixes(tokenizer), encoder(tokenizer).start, length, hidden_size)
        if key not in plans:
            texts, once = [instance.args for instance in built.instances], TokenCache().encoder(tokenizer)
            owned = list(_windows(once, texts, length) if rolling else enumerate(_pairs(once, texts)))
            requests = [request for _, request in owned]
            for request in requests:
                _check(request, length, str(built.config.task))
            plan = RowPlan(requests, length, hidden_size or _DEFAULT_HIDDEN_SIZE, shares_rows=not rolling)
            plans[key] = _Layout(plan, tuple(owner for owner, _ in owned), _departs(once, built))
        return plans[key]

    def _generated(
        self,
        models: StackedModels,
        tokenizer: PreTrainedTokenizerBase,
        built: ConfigurableTask,
        batch_size: int | None,
    ) -> list[Sequence[Response] | None]:
        length = context_length(models, tokenizer)
        # A model of NaNs generates text like any other: look at its logits after one prompt.
        (prompt,) = encoder(tokenizer).prompts([str(built.instances[0].args[0])])
        probe = RowPlan([Request(prompt, (0,))], length, _DEFAULT_HIDDEN_SIZE, shares_rows=False)
        finite = self._scorer.score(models, probe).finite.tolist()
        prompts_cut(encoder(tokenizer), built, length)  # raises where an answer leaves no room
        return list(generated_texts(models, tokenizer, built, length, finite, batch_size))


def _departs(encoder: Encoder, built: ConfigurableTask) -> bool:
    """Whether a task's texts have other tokens than in records of before, where these were not right.

    There, a tokenizer's automatic end token ended prompts, a prompt that writes the begin token was trained after two, a text
    that writes it was scored after two, an answer lacked what a token shares with its prompt, training took long texts line
    by line, and generated answers lacked the space before their first word where a tokenizer drops it.
    """
    texts, (before, after) = [instance.args for instance in built.instances], affixes(encoder.tokenizer)
    if built.OUTPUT_TYPE == "loglikelihood_rolling":
        whole = [text for (text,) in texts]
        return any(
            ids[:1] == [*encoder.start]
            or (len(text) > LINE_BY_LINE and [i for part in encoder.encode(text.splitlines(True)) for i in part] != ids)
            for text, ids in zip(whole, encoder.encode(whole), strict=True)
        )
    begin = encoder.tokenizer.decode(before[:1])
    if after or (begin and any(context.startswith(begin) for context, _ in texts)):
        return True
    if built.OUTPUT_TYPE == "generate_until":
        return built.exact and encoder.drops_space
    return encoder.spanning(texts) > 0


def prompts_cut(encoder: Encoder, built: ConfigurableTask, length: int) -> int:
    """How many prompts of a task's requests lose their beginning when they are scored.

    Args:
        encoder: Of the model's tokenizer.
        built: The task, with its requests.
        length: Tokens of the model's context.

    Raises:
        SpecError: When a request does not fit the context, or has nothing to score.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    requests, name = [instance.args for instance in built.instances], str(built.config.task)
    _refuse_bare_texts(encoder, built)
    if built.OUTPUT_TYPE == "loglikelihood_rolling":
        return 0  # scored in windows
    if built.OUTPUT_TYPE == "generate_until":
        room = length - max(int(normalize_gen_kwargs(options)["max_gen_toks"]) for _, options in requests)
        if room < 1:
            raise SpecError(
                f"task {name} must fit the model's context of {length} tokens, but asks for answers of {length - room}: "
                "lower generation_kwargs.max_gen_toks"
            )
        return sum(len(prompt) > room for prompt in encoder.prompts([prompt for prompt, _ in requests]))
    pairs = _pairs(encoder, requests)
    for request in pairs:
        _check(request, length, name)
    return sum(len(request.context) + len(request.continuation) > length + 1 for request in pairs)


def _totals(values: Sequence[float], owners: Sequence[int], size: int) -> list[float]:
    """Sums of the values of each owner."""
    totals = [0.0] * size
    for owner, value in zip(owners, values, strict=True):
        totals[owner] += value
    return totals


def context_length(models: StackedModels, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the models' context has for a text."""
    adapters = getattr(models.model, "peft_config", None) or {}
    virtual = max((getattr(config, "num_virtual_tokens", None) or 0 for config in adapters.values()), default=0)
    return scored_length(models.model.config, tokenizer) - virtual


def scored_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that lm-eval takes a model's context to have."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(config, tokenizer))


def _refuse_bare_texts(encoder: Encoder, built: ConfigurableTask) -> None:
    """Texts that are scored, or generated, after nothing need a token to start from."""
    rolling = built.OUTPUT_TYPE == "loglikelihood_rolling"
    if not encoder.start and (rolling or any(not str(instance.args[0]).strip() for instance in built.instances)):
        raise SpecError(
            "a tokenizer must have a beginning- or end-of-text token, after which texts without context are scored, but "
            "has neither: add one"
        )


def _check(request: Request, length: int, task: str) -> None:
    if not request.context or not request.continuation:
        raise SpecError(
            f"task {task}: what is scored must have a token, but one of its texts has none: correct the data"
        )
    if len(request.continuation) > length:
        raise SpecError(
            f"task {task} must fit the model's context of {length} tokens, but an answer has "
            f"{len(request.continuation)}: shorten its texts"
        )


def _pairs(encoder: Encoder, texts: Sequence[tuple[str, str]]) -> list[Request]:
    """Contexts and continuations as lm-eval splits them, see `Encoder.pairs`."""
    return [Request(context, continuation) for context, continuation in encoder.pairs(texts)]


def _windows(encoder: Encoder, texts: Sequence[tuple[str]], length: int) -> Iterator[tuple[int, Request]]:
    """Whole texts in windows of `length` tokens, each token scored once, the first after the start token."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    (start,) = encoder.start
    for owner, ids in enumerate(encoder.encode([text for (text,) in texts])):
        # A text that writes the start token itself does not have it twice.
        own = ids[1:] if ids[:1] == [start] else ids
        for window in get_rolling_token_windows(own, start, length, context_len=1):
            context, rest = make_disjoint_window(window)
            yield owner, Request(tuple(context), tuple(rest))

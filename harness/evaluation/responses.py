"""What models respond to lm-eval's requests, encoded as lm-eval encodes them; for one model or several side by side.

Requests are encoded and laid out once for each task and tokenizer. Log-likelihoods come from `loglikelihood`, generated
texts from `generation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from harness.errors import SpecError
from harness.evaluation.generation import generated_texts
from harness.evaluation.loglikelihood import LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Request, RowPlan

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedTokenizerBase

ROLLING_WINDOW = 2048
"""Longest window in which whole texts are scored, whatever a model's context is."""
_DEFAULT_HIDDEN_SIZE = 1024
"""Where a config names none."""

Response = tuple[float, bool] | float | list[str]
"""Of a continuation its log-likelihood in nats, and whether the model would have said it; of a whole text its
log-likelihood; of a prompt the generated texts, as many as the task asks for (`repeats`)."""
PlanKey = tuple[int, tuple[int, ...], int | None, int, int | None]
"""Size of the vocabulary, how a letter is encoded, prefix token, tokens of the context, hidden size."""


class Responder:
    """Has models respond to lm-eval's requests, and keeps how the requests of a task are laid out."""

    def __init__(self) -> None:
        self._scorer = LikelihoodScorer()
        # Weak keys: what belongs to a task or a tokenizer goes with it.
        self._plans: WeakKeyDictionary[
            ConfigurableTask, WeakKeyDictionary[PreTrainedTokenizerBase, dict[PlanKey, tuple[RowPlan, list[int]]]]
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
        if prefix_token(tokenizer) is None:
            raise SpecError(
                "a tokenizer must have a beginning- or end-of-text token to be scored, but has neither: add one"
            )
        if built.OUTPUT_TYPE == "generate_until":
            return self._generated(models, tokenizer, built, batch_size)
        plan, owners = self._planned(models, tokenizer, built)
        scores = self._scorer.score(models, plan, batch_size)
        responses: list[Sequence[Response] | None] = []
        for values, greedy, finite in zip(
            scores.values.tolist(), scores.greedy.tolist(), scores.finite.tolist(), strict=True
        ):
            if not finite:
                responses.append(None)
            elif built.OUTPUT_TYPE == "loglikelihood_rolling":
                responses.append(_totals(values, owners, len(built.instances)))
            else:
                responses.append(list(zip(values, greedy, strict=True)))
        return responses

    def _planned(
        self, models: StackedModels, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask
    ) -> tuple[RowPlan, list[int]]:
        """A task's requests as rows, and the request that each part of a whole text belongs to."""
        rolling = built.OUTPUT_TYPE == "loglikelihood_rolling"
        length = context_length(models, tokenizer)
        length = min(length, ROLLING_WINDOW) if rolling else length
        config = models.model.config
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        hidden_size = getattr(text_config, "hidden_size", None)
        plans = self._plans.setdefault(built, WeakKeyDictionary()).setdefault(tokenizer, {})
        key = (len(tokenizer), tuple(tokenizer.encode("a")), prefix_token(tokenizer), length, hidden_size)
        if key not in plans:
            texts = [instance.args for instance in built.instances]
            owned = list(_windows(tokenizer, texts, length) if rolling else enumerate(_pairs(tokenizer, texts)))
            requests = [request for _, request in owned]
            for request in requests:
                _check(request, length, str(built.config.task))
            plan = RowPlan(requests, length, hidden_size or _DEFAULT_HIDDEN_SIZE, shares_rows=not rolling)
            plans[key] = plan, [owner for owner, _ in owned]
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
        prompt = tokenizer.encode(str(built.instances[0].args[0])) or [prefix_token(tokenizer)]
        probe = RowPlan([Request(tuple(prompt), (0,))], length, _DEFAULT_HIDDEN_SIZE, shares_rows=False)
        finite = self._scorer.score(models, probe).finite.tolist()
        try:
            return list(generated_texts(models, tokenizer, built, length, finite, batch_size))
        except AssertionError as error:  # how lm-eval says that a prompt leaves no room
            raise SpecError(
                f"task {built.config.task} must fit the model's context of {length} tokens, but does not ({error}): "
                "shorten its texts or generation_kwargs.max_gen_toks"
            ) from error


def _totals(values: Sequence[float], owners: Sequence[int], size: int) -> list[float]:
    """Sums of the values of each owner."""
    totals = [0.0] * size
    for owner, value in zip(owners, values, strict=True):
        totals[owner] += value
    return totals


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What a text without context starts with: the beginning-of-text token, else the end-of-text token."""
    start: int | None = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return start


def context_length(models: StackedModels, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the models' context has for a text."""
    from lm_eval.models.utils import resolve_max_length

    adapters = getattr(models.model, "peft_config", None) or {}
    virtual = max((getattr(config, "num_virtual_tokens", None) or 0 for config in adapters.values()), default=0)
    return int(resolve_max_length(models.model.config, tokenizer)) - virtual


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


def _pairs(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> Iterator[Request]:
    """Contexts and continuations as lm-eval splits them.

    A context's trailing space belongs to the continuation; both are encoded as one text, of which the context's own
    tokens are taken away; an empty context is the prefix token.
    """
    start = prefix_token(tokenizer)
    split = [(context[: len(context.rstrip())], context[len(context.rstrip()) :] + rest) for context, rest in texts]
    bare = [context == "" for context, _ in texts]
    whole = [context + rest for (context, rest), is_bare in zip(split, bare, strict=True) if not is_bare]
    contexts = [context for (context, _), is_bare in zip(split, bare, strict=True) if not is_bare]
    encoded = _encoded(tokenizer, [*whole, *contexts])
    alone = _encoded(
        tokenizer, [rest for (_, rest), is_bare in zip(split, bare, strict=True) if is_bare], special=False
    )
    for (context, rest), is_bare in zip(split, bare, strict=True):
        if not is_bare:
            before = encoded[context]
            yield Request(before, encoded[context + rest][len(before) :])
        elif alone[rest][:1] == (start,):
            yield Request(alone[rest][:1], alone[rest][1:])
        else:
            yield Request((start,) if start is not None else (), alone[rest])


def _windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str]], length: int
) -> Iterator[tuple[int, Request]]:
    """Whole texts in windows of `length` tokens, each token scored once, the first after the prefix token."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for owner, (text,) in enumerate(texts):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        for window in get_rolling_token_windows(tokens, prefix_token(tokenizer), length, context_len=1):
            context, rest = make_disjoint_window(window)
            yield owner, Request(tuple(context), tuple(rest))


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], special: bool = True
) -> dict[str, tuple[int, ...]]:
    """Token ids of each text, with the special tokens that the tokenizer adds, unless the text starts with them."""
    start = tokenizer.decode(prefix_token(tokenizer))
    ids: dict[str, tuple[int, ...]] = {}
    # At most two calls for all texts: a call takes longer than encoding a short text.
    for adds in (True, False):
        part = list(dict.fromkeys(text for text in texts if (special and not text.startswith(start)) is adds))
        options = {} if adds else {"add_special_tokens": False}
        if part:
            ids |= dict(zip(part, map(tuple, tokenizer(part, **options)["input_ids"]), strict=True))
    return ids

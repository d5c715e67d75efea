"""What models answer to lm-eval's requests: encoded as lm-eval encodes them, for one model or several side by side.

Log-likelihoods come from `scoring`; generated text from lm-eval's own wrapper, whose one call of `generate` serves all
members. Requests are encoded and laid out once per process for each task and tokenizer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from harness.errors import SpecError
from harness.evaluation.loglikelihood import LOGITS, TOKENS, LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Ask, Plan
from harness.records.trial import derive_seed
from harness.tasks.definition import SAMPLING
from harness.tasks.lm_eval_task import hide_bars

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LARGEST_BATCH = 64
"""Prompts of a member that are continued at once."""
ROLLING_WINDOW = 2048
"""Longest window in which whole texts are scored, whatever a model's context is."""
_DEFAULT_WIDTH = 1024
"""Hidden size where a config names none."""


PlanKey = tuple[int, tuple[int, ...], int | None, int, int | None]
"""Size of the vocabulary, how a letter is encoded, prefix token, tokens of the context, hidden size."""


class Responder:
    """Answers lm-eval's requests; they are encoded and laid out once for each task and tokenizer."""

    def __init__(self) -> None:
        self._scorer = LikelihoodScorer()
        # By task and tokenizer, both of which may be collected; then by what else decides the rows.
        self._plans: WeakKeyDictionary[
            ConfigurableTask, WeakKeyDictionary[PreTrainedTokenizerBase, dict[PlanKey, tuple[Plan, list[int]]]]
        ] = WeakKeyDictionary()

    def respond(
        self,
        members: StackedModels,
        tokenizer: PreTrainedTokenizerBase,
        built: ConfigurableTask,
        batch_size: int | None = None,
    ) -> list[list[Any] | None]:
        """What each member answers to a task's requests, in their order; None for a member whose logits are not finite.

        Args:
            members: The models, in evaluation mode and without gradients.
            tokenizer: Their tokenizer.
            built: The task, with its requests.
            batch_size: Rows of a member in a forward pass; None for as many as memory and speed allow.

        Returns:
            A pair (log-likelihood in nats, whether the model would have said it) for each continuation, a log-likelihood for
            each whole text, or a list of generated texts, as many as the task asks for (`repeats`).

        Raises:
            SpecError: When a request does not fit the models' context, or has nothing to score.
        """
        if prefix_token(tokenizer) is None:
            raise SpecError(
                "a tokenizer must have a beginning- or end-of-text token to be scored, but has neither: add one"
            )
        if built.OUTPUT_TYPE == "generate_until":
            return self._generated(members, tokenizer, built, batch_size)
        plan, owners = self._planned(members, tokenizer, built)
        scores = self._scorer.score(members, plan, batch_size)
        rolling = built.OUTPUT_TYPE == "loglikelihood_rolling"
        given: Iterable[tuple[list[float], list[bool]]] = zip(
            scores.values.tolist(), scores.greedy.tolist(), strict=True
        )
        found = [
            _totals(values, owners, len(built.instances)) if rolling else list(zip(values, greedy, strict=True))
            for values, greedy in given
        ]
        finite = scores.finite.tolist()
        return [own if is_finite else None for own, is_finite in zip(found, finite, strict=True)]

    def _planned(
        self, members: StackedModels, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask
    ) -> tuple[Plan, list[int]]:
        """A task's requests as rows, and the request that each part of a whole text belongs to."""
        rolling = built.OUTPUT_TYPE == "loglikelihood_rolling"
        longest = _longest(members, tokenizer)
        longest = min(longest, ROLLING_WINDOW) if rolling else longest
        config = members.model.config
        width = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "hidden_size", None)
        known = self._plans.setdefault(built, WeakKeyDictionary()).setdefault(tokenizer, {})
        key = (len(tokenizer), tuple(tokenizer.encode("a")), prefix_token(tokenizer), longest, width)
        if key not in known:
            texts = [instance.args for instance in built.instances]
            pairs = list(_windows(tokenizer, texts, longest) if rolling else enumerate(_pairs(tokenizer, texts)))
            asks = [ask for _, ask in pairs]
            for ask in asks:
                _check(ask, longest, str(built.config.task))
            known[key] = (
                Plan(asks, longest, width or _DEFAULT_WIDTH, shares=not rolling),
                [owner for owner, _ in pairs],
            )
        return known[key]

    def _generated(
        self,
        members: StackedModels,
        tokenizer: PreTrainedTokenizerBase,
        built: ConfigurableTask,
        batch_size: int | None,
    ) -> list[list[Any] | None]:
        longest = _longest(members, tokenizer)
        # A model of NaNs generates text like any other: look at its logits after one prompt.
        prompt = tokenizer.encode(str(built.instances[0].args[0])) or [prefix_token(tokenizer)]
        finite = self._scorer.score(
            members, Plan([Ask(tuple(prompt), (0,))], longest, _DEFAULT_WIDTH, shares=False)
        ).finite.tolist()
        lm = _generator_class()(
            pretrained=members.model,
            tokenizer=tokenizer,
            batch_size=batch_size or _prompts_at_once(members, tokenizer, built, longest),
            max_length=longest,
        )
        lm.count = members.count
        repeats = int(built.config.repeats or 1)
        try:
            return [
                lm.texts_of(member, built.instances, repeats) if is_finite else None
                for member, is_finite in enumerate(finite)
            ]
        except AssertionError as error:
            raise SpecError(
                f"task {built.config.task} must fit the model's context of {longest} tokens, but does not ({error}): "
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


def _longest(members: StackedModels, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the models' context has for a text."""
    from lm_eval.models.utils import resolve_max_length

    adapters = getattr(members.model, "peft_config", None) or {}
    virtual = max((getattr(config, "num_virtual_tokens", None) or 0 for config in adapters.values()), default=0)
    return int(resolve_max_length(members.model.config, tokenizer)) - virtual


def _check(ask: Ask, longest: int, task: str) -> None:
    if not ask.context or not ask.continuation:
        raise SpecError(
            f"task {task}: what is scored must have a token, but one of its texts has none: correct the data"
        )
    if len(ask.continuation) > longest:
        raise SpecError(
            f"task {task} must fit the model's context of {longest} tokens, but an answer has {len(ask.continuation)}: "
            "shorten its texts"
        )


def _pairs(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> Iterator[Ask]:
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
            yield Ask(before, encoded[context + rest][len(before) :])
        elif alone[rest][:1] == (start,):
            yield Ask(alone[rest][:1], alone[rest][1:])
        else:
            yield Ask((start,) if start is not None else (), alone[rest])


def _windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str]], longest: int
) -> Iterator[tuple[int, Ask]]:
    """Whole texts in windows of the context, each token scored once, the first after the prefix token."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for owner, (text,) in enumerate(texts):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        for window in get_rolling_token_windows(tokens, prefix_token(tokenizer), longest, context_len=1):
            context, rest = make_disjoint_window(window)
            yield owner, Ask(tuple(context), tuple(rest))


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], special: bool = True
) -> dict[str, tuple[int, ...]]:
    """Token ids of each text, with the special tokens that the tokenizer adds, unless the text starts with them."""
    start = tokenizer.decode(prefix_token(tokenizer))
    found: dict[str, tuple[int, ...]] = {}
    for adds in (True, False):
        part = list(dict.fromkeys(text for text in texts if (special and not text.startswith(start)) is adds))
        options = {} if adds else {"add_special_tokens": False}
        if part:
            found |= dict(zip(part, map(tuple, tokenizer(part, **options)["input_ids"]), strict=True))
    return found


def _prompts_at_once(
    members: StackedModels, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask, longest: int
) -> int:
    """Prompts of a member whose cache, and logits where a model computes them at every position, fit."""
    from lm_eval.models.utils import normalize_gen_kwargs

    if recurrent(members.model):
        return 1
    prompt, options = max((instance.args for instance in built.instances), key=lambda args: len(args[0]))
    size = min(longest, len(tokenizer.encode(prompt)) + int(normalize_gen_kwargs(options)["max_gen_toks"]))
    most = TOKENS // (members.count * size)
    model = members.model.get_base_model() if hasattr(members.model, "get_base_model") else members.model
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        most = min(most, LOGITS // (members.count * size * members.vocabulary))
    return max(1, min(LARGEST_BATCH, most))


@cache
def _generator_class() -> type[LM]:
    """lm-eval's wrapper of a live model, which continues prompts for all members at once and hands out one's texts."""
    import lm_eval.models.huggingface
    from lm_eval.models.huggingface import HFLM

    hide_bars(lm_eval.models.huggingface)

    class Generator(HFLM):  # type: ignore[misc]
        count = 1

        def texts_of(self, member: int, requests: Sequence[Any], repeats: int) -> list[list[str]]:
            """A member's texts of each request; batches are continued when the first member asks, for all of them."""
            if not hasattr(self, "batches"):
                self.batches: list[Tensor] = []
                self.known: dict[str, list[int]] = {}
            self.member, self.turn = member, 0
            drawn: list[list[str]] = []
            for self.repeat in range(repeats):
                drawn.append(self.generate_until(requests, disable_tqdm=True))
            return [list(texts) for texts in zip(*drawn, strict=True)]

        def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
            if arguments or options:
                return list(super().tok_encode(string, *arguments, **options))
            if string not in self.known:
                self.known[string] = super().tok_encode(string)
            return self.known[string]

        def _model_generate(
            self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **options: Any
        ) -> Tensor:
            if self.turn == len(self.batches):
                prompts = [
                    ids[own.bool()].tolist() for ids, own in zip(context.cpu(), attention_mask.cpu(), strict=True)
                ]
                seeds = [derive_seed("answer", self.repeat, *ids) for ids in prompts] * self.count
                produced = self.model.generate(
                    input_ids=context.repeat(self.count, 1),
                    attention_mask=attention_mask.repeat(self.count, 1),
                    max_length=max_length,
                    stopping_criteria=_stops(self.tokenizer, stop, context.shape[1]),
                    pad_token_id=self.tokenizer.pad_token_id,
                    use_cache=self.count == 1 or not recurrent(self.model),
                    **_drawn(options, seeds, context.shape[1]),
                )
                self.batches.append(produced.view(self.count, len(context), -1))
            self.turn += 1
            return self.batches[self.turn - 1][self.member]

    return Generator


def recurrent(model: Any) -> bool:
    """Whether a model keeps a state rather than what it read.

    Such a model reads padding as text, and transformers' RWKV mixes up the states of a batch's rows.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(plain, "_is_stateful", False))


def _drawn(options: Mapping[str, Any], seeds: Sequence[int], prompt: int) -> dict[str, Any]:
    """Options of a generation that draws nothing by itself, see `seeded`."""
    kept = {key: value for key, value in options.items() if key not in SAMPLING} | {"do_sample": False}
    return kept | ({"logits_processor": seeded(options, seeds, prompt)} if options.get("do_sample") else {})


def seeded(options: Mapping[str, Any], seeds: Sequence[int], prompt: int) -> Any:
    """Sampling as a logits processor for greedy generation: noise makes the likeliest token a drawn one.

    The largest of logits plus standard Gumbel noise is a draw from their softmax. A row's noise is a function of its seed
    and the position, so a text is the same whatever else is in its batch, and models are compared on the same draws.

    Args:
        options: `temperature`, and `top_k`, `top_p`, `min_p`, `typical_p` where they are wanted.
        seeds: Of each row.
        prompt: Tokens before the first new one.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList
    from transformers.generation import logits_process

    class Noise(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            draw, uniform = torch.Generator(), torch.empty(scores.shape)
            for row, seed in zip(uniform, seeds, strict=True):
                draw.manual_seed(derive_seed("token", seed, input_ids.shape[1] - prompt))
                row.uniform_(1e-20, 1.0, generator=draw)
            return scores.float() - (-uniform.log()).log().to(scores.device)

    warpers = [("top_k", "TopKLogitsWarper"), ("top_p", "TopPLogitsWarper")]
    warpers += [("min_p", "MinPLogitsWarper"), ("typical_p", "TypicalLogitsWarper")]
    chain = [logits_process.TemperatureLogitsWarper(float(options.get("temperature", 1.0)))]
    chain += [getattr(logits_process, kind)(options[name]) for name, kind in warpers if options.get(name)]
    return LogitsProcessorList([*chain, Noise()])


def _stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt: int) -> Any:
    """Ends each row at its first stop string, so that a batch ends with its last row.

    lm-eval's own criteria wait until every row has met the same string.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    texts = [text for text in stop if text]
    # A stop string may come in other tokens than its own encoding: lm-eval looks two further back as well.
    back = max((len(tokenizer.encode(text, add_special_tokens=False)) for text in texts), default=0) + 2

    class Stops(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.done: Tensor | None = None

        def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
            if self.done is None:
                self.done = torch.zeros(len(input_ids), dtype=torch.bool)
            going = (~self.done).nonzero()[:, 0].tolist()
            rows = input_ids[going, prompt:].cpu()
            for row, whole, end in zip(going, rows, tokenizer.batch_decode(rows[:, -back:]), strict=True):
                if any(text in end for text in texts):
                    decoded = tokenizer.decode(whole)
                    self.done[row] = any(text in decoded for text in texts)
            return self.done.to(input_ids.device)

    return StoppingCriteriaList([Stops()])

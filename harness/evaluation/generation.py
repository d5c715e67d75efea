"""Texts that models generate for lm-eval's requests: lm-eval's own wrapper asks, and one `generate` serves all models.

Answers are drawn with random numbers of our own (`seeded`), the same for every model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING

from harness.errors import SpecError, one_line
from harness.evaluation.loglikelihood import LOGITS, TOKENS, StackedModels
from harness.models.base_model import BaseModel, own_generation_config
from harness.models.tokens import Encoder, encoder
from harness.nn.batches import padding_id
from harness.records.trial import derive_seed
from harness.tasks.definition import SAMPLING
from harness.tasks.lm_eval_task import hide_bars

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor
    from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

LARGEST_BATCH = 64
"""Prompts of a model that are continued at once."""

Options = Mapping[str, float]
"""Keyword arguments of `generate`: lengths, switches, and settings of sampling."""


def generated_texts(
    models: StackedModels,
    tokenizer: PreTrainedTokenizerBase,
    built: ConfigurableTask,
    length: int,
    finite: Sequence[bool],
    batch_size: int | None,
) -> Iterator[list[list[str]] | None]:
    """Each model's texts for each request of a task, as many as the task asks for (`repeats`).

    Args:
        models: In evaluation mode, without gradients.
        tokenizer: Theirs.
        built: The task, with its requests.
        length: Tokens of the models' context.
        finite: Whether each model's logits are finite; None is yielded for the others.
        batch_size: Prompts of a model at once; None for as many as fit.

    Raises:
        AssertionError: From lm-eval, when a prompt and the longest answer do not fit.
    """
    size = batch_size or _prompts_at_once(models, tokenizer, built, length)
    # To a tokenizer without padding lm-eval would add a token that the model does not have.
    lent = tokenizer if tokenizer.pad_token_id is not None else deepcopy(tokenizer)
    generator = _generator_class()(pretrained=models.model, tokenizer=lent, batch_size=size, max_length=length)
    generator.continuations, generator.encoder = _Continuations(models, tokenizer), encoder(tokenizer)
    generator.padding, generator.known, generator.keeps_space = padding_id(tokenizer), {}, built.exact
    for model, is_finite in enumerate(finite):
        yield _texts_of(generator, model, built.instances, int(built.config.repeats or 1)) if is_finite else None


def check_settings(base: BaseModel, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask) -> None:
    """Refuse settings of generation that a trial would fail with: a tiny model of random weights writes one token by them.

    Args:
        base: Whose folder may bring settings of its own.
        tokenizer: Its.
        built: A task, with its requests.

    Raises:
        SpecError: When `generate` raises anything.
    """
    import torch
    from lm_eval.models.utils import normalize_gen_kwargs
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = normalize_gen_kwargs(built.instances[0].args[1])
    options = {key: value for key, value in settings.items() if key not in ("until", "max_gen_toks")}
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), 2)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), head_dim=2, **sizes)).eval()
    prompts = torch.zeros((1, 2), dtype=torch.long)
    try:
        if own := own_generation_config(base):
            model.generation_config = own
        if (beams := options.get("num_beams") or model.generation_config.num_beams or 1) > LARGEST_BATCH:
            raise ValueError(f"num_beams must be {LARGEST_BATCH} or less, but is {beams}")
        tiny = _Continuations(StackedModels(model), tokenizer)
        tiny.take(prompts, torch.ones_like(prompts), settings["until"], options | {"max_length": 3})
    except Exception as error:  # transformers checks few settings, and what it raises for the others is anything
        raise SpecError(
            f"task {built.config.task} on {base.ref.name}: generation_kwargs and the model's generation_config.json must be "
            f"settings of generation, but no text comes of them ({type(error).__name__}: {one_line(str(error), 200)}): "
            "correct them"
        ) from error


def _prompts_at_once(
    models: StackedModels, tokenizer: PreTrainedTokenizerBase, built: ConfigurableTask, length: int
) -> int:
    """Prompts of a model whose cache, and logits where a model computes them at every position, fit."""
    from lm_eval.models.utils import normalize_gen_kwargs

    if recurrent(models.model):
        return 1
    prompt, options = max((instance.args for instance in built.instances), key=lambda args: len(args[0]))
    (ids,) = encoder(tokenizer).prompts([prompt])
    size = min(length, len(ids) + int(normalize_gen_kwargs(options)["max_gen_toks"]))
    most = TOKENS // (models.count * size)
    model = models.model.get_base_model() if hasattr(models.model, "get_base_model") else models.model
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        most = min(most, LOGITS // (models.count * size * models.vocabulary))
    return max(1, min(LARGEST_BATCH, most))


def recurrent(model: PreTrainedModel) -> bool:
    """Whether a model keeps a state rather than what it read.

    Such a model reads padding as text, and transformers' RWKV mixes up the states of a batch's rows.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(plain, "_is_stateful", False))


class _Continuations:
    """Batches of prompts, continued for all models when the first one asks, and handed out model by model.

    Every model asks for the same batches in the same order.
    """

    def __init__(self, models: StackedModels, tokenizer: PreTrainedTokenizerBase) -> None:
        self.models, self.tokenizer = models, tokenizer
        self.model, self.repeat = 0, 0
        """Whose turn it is, and which of several samples of each prompt is drawn."""
        self._batches: list[Tensor] = []
        self._next = 0

    def start(self, model: int) -> None:
        """Hand out a model's texts from the first batch on."""
        self.model, self._next = model, 0

    def take(self, prompts: Tensor, mask: Tensor, stop: Sequence[str], options: Options) -> Tensor:
        """The model's continuations of the next batch.

        Args:
            prompts: Token ids, padded on the left, shape `(rows, tokens)`; equal for all models.
            mask: Where they are not padding.
            stop: Strings that end a text.
            options: Of `generate`.

        Returns:
            Prompts and what follows them, shape `(rows, tokens and new ones)`.
        """
        if self._next == len(self._batches):
            self._batches.append(self._generated(prompts, mask, stop, options))
        self._next += 1
        return self._batches[self._next - 1][self.model]

    def _generated(self, prompts: Tensor, mask: Tensor, stop: Sequence[str], options: Options) -> Tensor:
        """Of all models, shape `(models, rows, tokens)`."""
        model, count, tokens = self.models.model, self.models.count, prompts.shape[1]
        bare = [ids[own.bool()].tolist() for ids, own in zip(prompts.cpu(), mask.cpu(), strict=True)]
        seeds = [derive_seed("answer", self.repeat, *ids) for ids in bare] * count
        texts: Tensor = model.generate(
            input_ids=prompts.repeat(count, 1),
            attention_mask=mask.repeat(count, 1),
            stopping_criteria=_stops(self.tokenizer, stop, tokens),
            pad_token_id=padding_id(self.tokenizer),
            use_cache=count == 1 or not recurrent(model),
            logits_processor=seeded(options, seeds, tokens) if options.get("do_sample") else None,
            # Said here, so that neither a task nor a model's folder can say otherwise.
            trust_remote_code=False,
            num_return_sequences=1,
            return_dict_in_generate=False,
            # `seeded` draws, so `generate` itself takes the likeliest token.
            **({name: value for name, value in options.items() if name not in SAMPLING} | {"do_sample": False}),
        )
        return texts.view(count, len(prompts), -1)


def _texts_of(generator: HFLM, model: int, instances: Sequence[Instance], repeats: int) -> list[list[str]]:
    """A model's texts for each request."""
    generator.continuations.start(model)
    samples: list[list[str]] = []
    for generator.continuations.repeat in range(repeats):
        samples.append(generator.generate_until(instances, disable_tqdm=True))
    return [list(texts) for texts in zip(*samples, strict=True)]


@cache
def _generator_class() -> type[HFLM]:
    """lm-eval's wrapper of a live model, whose texts come from `_Continuations`; a class made after the late import."""
    import lm_eval.models.huggingface
    import torch
    from lm_eval.models.huggingface import HFLM

    hide_bars(lm_eval.models.huggingface)

    class Generator(HFLM):  # type: ignore[misc]
        continuations: _Continuations
        encoder: Encoder
        padding: int
        keeps_space: bool
        known: dict[str, list[int]]

        def tok_encode(self, string: str, *arguments: object, **options: object) -> list[int]:
            # lm-eval encodes a prompt to sort it and again for its batch, and all of them when the next model asks.
            if string not in self.known:
                self.known[string] = list(self.encoder.prompts([string])[0])
            return self.known[string]

        def tok_batch_encode(
            self, strings: Sequence[str], left_truncate_len: int, **options: object
        ) -> tuple[Tensor, Tensor]:
            # lm-eval's own asks the first prompt of a batch whether all of them begin with the begin token.
            rows = [self.tok_encode(string)[-left_truncate_len:] for string in strings]
            width = max(map(len, rows))
            ids = torch.tensor([[self.padding] * (width - len(row)) + row for row in rows])
            return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

        def tok_decode(self, tokens: Sequence[int] | int | None, **options: object) -> str | None:
            if self.keeps_space and isinstance(tokens, list) and not options:
                return self.encoder.said([tuple(tokens)])[0]
            # A tokenizer without an end token has none that could stop a text.
            return None if tokens is None else str(super().tok_decode(tokens, **options))

        def _model_generate(
            self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **options: float
        ) -> Tensor:
            return self.continuations.take(context, attention_mask, stop, options | {"max_length": max_length})

    return Generator


def seeded(options: Options, seeds: Sequence[int], prompt: int) -> LogitsProcessorList:
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
                row.uniform_(1e-20, 1.0, generator=draw)  # log(0) would be an infinite noise
            return scores.float() - (-uniform.log()).log().to(scores.device)

    warpers = [("top_k", "TopKLogitsWarper"), ("top_p", "TopPLogitsWarper")]
    warpers += [("min_p", "MinPLogitsWarper"), ("typical_p", "TypicalLogitsWarper")]
    chain = [logits_process.TemperatureLogitsWarper(float(options.get("temperature", 1.0)))]
    chain += [getattr(logits_process, warper)(options[name]) for name, warper in warpers if options.get(name)]
    return LogitsProcessorList([*chain, Noise()])


def _stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt: int) -> StoppingCriteriaList:
    """Ends each row at its first stop string, so that a batch ends with its last row.

    lm-eval's own criteria wait until every row has met the same string.

    Args:
        tokenizer: Decodes.
        stop: Strings that end a text.
        prompt: Tokens before the first new one.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    texts = [text for text in stop if text]
    # A stop string may come in other tokens than its own encoding: lm-eval looks two further back as well.
    back = max((len(tokenizer.encode(text, add_special_tokens=False)) for text in texts), default=0) + 2

    class Stops(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.done: Tensor | None = None

        def __call__(self, input_ids: Tensor, scores: Tensor | None, **options: object) -> Tensor:
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

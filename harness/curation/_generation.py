"""Texts that a model writes for the training data: seeded, the same for the same prompts, and kept by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.axes.contract import StageSetup
from harness.errors import SpecError, StorageError
from harness.files import parse_json, write_atomically
from harness.models.base_model import context_length
from harness.models.chat import ChatTemplate, chat_template
from harness.models.tokens import encoder
from harness.nn.batches import padding_id
from harness.nn.determinism import seed_torch
from harness.records.codec import fingerprint
from harness.records.trial import derive_seed
from harness.space import Named
from harness.tasks.chat_rows import Turns
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = 32
"""Prompts that are continued at once."""


@dataclass(frozen=True)
class Sampling:
    """How a model's texts are sampled."""

    tokens: int
    """The most tokens of a text."""
    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these."""

    def of(self, row: Row) -> Sampling:
        """The same for rows like this one: in a chat, a text ends where its template ends a turn."""
        return replace(self, stop=(row.end,) if row.end else ()) if row.turns else self


@dataclass(frozen=True)
class Writer:
    """A model that writes training data, asked as rows are: in its chat template where they are chats."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Empty for the stage's base, which reads rows as they are."""

    @cached_property
    def template(self) -> ChatTemplate | None:
        """Its own chat template."""
        return chat_template(self.tokenizer, self.name)

    def prompt(self, row: Row) -> str:
        """What it is asked with, to answer a row."""
        if row.turns is None or not self.name:
            return row.prompt
        return replace(row.turns, template=self.template).prompt()[0]

    def request(self, text: str, row: Row, beginning: str = "") -> str:
        """What it is asked with, to write something about rows.

        Args:
            text: The request.
            row: One of the rows.
            beginning: Of what it writes.
        """
        if row.turns is None:
            return text + beginning
        template = self.template if self.name else row.turns.template
        message = {"role": "user", "content": text.strip()}
        return Turns(messages=(message,), template=template, beginning=beginning).prompt()[0]

    def texts(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[str]:
        """What it writes after each prompt, see `continuations`."""
        return continuations(self.model, self.tokenizer, prompts, sampling, seed)


def writer(parameter: str, setup: StageSetup) -> Writer:
    """The model that a `Text` parameter names, or the stage's base where it names none.

    Raises:
        SpecError: When it names more than one.
    """
    named = _one_named(parameter, setup)
    return Writer(*one_model(parameter, setup), name=named.name if named else "")


def identity_of(parameter: str, setup: StageSetup) -> str:
    """Name and revision of the model that a `Text` parameter names, or of the stage's base where it names none.

    Raises:
        SpecError: When it names more than one.
    """
    model = _one_named(parameter, setup)
    return model.pinned if model else setup.base


def one_model(parameter: str, setup: StageSetup) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a `Text` parameter names, or the stage's base where it names none, and its tokenizer.

    Raises:
        SpecError: When it names more than one.
    """
    model = _one_named(parameter, setup)
    return setup.model_of(model) if model else (setup.load_base(), setup.tokenizer)


def _one_named(parameter: str, setup: StageSetup) -> Named | None:
    models = setup.params.names(parameter)
    if len(models) > 1:
        raise SpecError(f"{parameter} must name one model, but names {len(models)}: keep one")
    return models[0] if models else None


def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], sampling: Sampling, seed: int
) -> list[str]:
    """What the model writes after each prompt; the random state is left as it was.

    Args:
        model: What continues the prompts; a prompt that does not fit its context loses its beginning.
        tokenizer: The model's.
        prompts: Any texts.
        sampling: How many tokens, and how they are chosen.
        seed: Of the random numbers.
    """
    import torch

    model.eval()
    size = max(1, context_length(model.config, 1 << 20) - sampling.tokens)
    ids = [prompt[-size:] or (padding_id(tokenizer),) for prompt in encoder(tokenizer).prompts(prompts)]
    continued = [""] * len(ids)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for number, places in enumerate(_batches(ids, bool(getattr(model, "_is_stateful", False)))):
            seed_torch(derive_seed("continuations", seed, number))
            texts = _continued(model, tokenizer, [ids[place] for place in places], sampling)
            for place, text in zip(places, texts, strict=True):
                continued[place] = _ended(text, sampling.stop)
    return continued


def remembered(identity: str, question: Sequence[object], setup: StageSetup, make: Callable[[], object]) -> Any:
    """The JSON that `make` returns, kept in a file under `setup.cache` for the next trial that asks the same.

    Args:
        identity: Name and revision of the model that writes; where it is empty, nothing is kept.
        question: All else that the outcome depends on, as JSON.
        setup: The stage's.
        make: Computes it.
    """
    if setup.cache is None or not identity:
        return make()
    path = setup.cache / f"texts_{fingerprint([identity, list(question)])}.json"
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # there is none yet, or a crash left part of one
    outcome = make()
    try:
        write_atomically(path, json.dumps(outcome))
    except StorageError:  # what can be computed again must not stop a trial
        path.unlink(missing_ok=True)
    return outcome


def _batches(ids: Sequence[tuple[int, ...]], one_by_one: bool) -> Iterator[list[int]]:
    """Indices of prompts that are continued at once, in groups of like length."""
    # A recurrent model reads padding as text, and transformers' RWKV mixes up the states of a batch's rows.
    size = 1 if one_by_one else PROMPTS
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[tuple[int, ...]], sampling: Sampling
) -> list[str]:
    """One batch, padded on the left."""
    import torch

    width = max(map(len, ids))
    padding = padding_id(tokenizer)
    padded = torch.tensor([[padding] * (width - len(own)) + list(own) for own in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in ids], device=model.device)
    settings: dict[str, float] = {"do_sample": False}
    if sampling.temperature:
        # Else generate() takes top_k and top_p from the model's own files.
        settings = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    ids_after = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=sampling.tokens,
        pad_token_id=padding,
        eos_token_id=_ends(model, tokenizer, sampling.stop) or None,
        **settings,
    )
    texts: list[str] = tokenizer.batch_decode(ids_after[:, width:], skip_special_tokens=True)
    return texts


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> list[int]:
    """Tokens that end a text: the model's own, and stop strings that a decoded text would not show."""
    own = model.generation_config.eos_token_id
    hidden = set(tokenizer.all_special_tokens)
    shown = [tokenizer.convert_tokens_to_ids(text) for text in stop if text in hidden]
    return [*([own] if isinstance(own, int) else own or []), *shown]


def _ended(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]

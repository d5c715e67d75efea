"""Whether a base model can be loaded as what it says it is, found out before anything is spent on it.

Its weights are laid out without memory (torch's `meta` device), which reads no more of the files than their headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.files import parse_json
from harness.models.base_model import BaseModel, load_tokenizer, open_model, quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_OTHER_SENSES = re.compile(r"vision|audio|image|video|speech")
SHOWN = 3
"""Names of weights in a message."""


def check_model(base: BaseModel) -> list[str]:
    """Check a model's configuration, weights and tokenizer against each other.

    Args:
        base: A resolved model.

    Returns:
        What a reader of its scores must know, in sentences.

    Raises:
        SpecError: With what is wrong and the remedy, in one sentence.
    """
    quiet()
    _no_code(base)
    with _said(base, "a readable config.json", "download or save it again"):
        config = _config(base)
    if config.is_encoder_decoder:
        raise SpecError(
            f"base model {base.ref.name!r} must be a causal language model, but a {config.model_type} has an encoder and "
            "a decoder: name another (see 'harness list left_out')"
        )
    with _said(
        base, "weights that its config.json describes", "download or save it again, config and weights together"
    ):
        model, info = open_model(base, {"device_map": "meta"})
    if reason := _no_writer(model):
        raise SpecError(f"base model {base.ref.name!r} must be a causal language model, but {reason}")
    notes = _weights_fit(base, model, info)
    return notes + _vocabulary_fits(base, model, load_tokenizer(base))


def _no_writer(model: PreTrainedModel) -> str | None:
    """Why a model that transformers loads as a causal one is none, or is more than one; the rest of a sentence."""
    kind = model.config.model_type
    senses = sorted(filter(_OTHER_SENSES.search, model.config.sub_configs))
    if senses:
        return (
            f"a {kind} has more than text ({', '.join(senses)}), which nothing here would train on: save its language model "
            "by itself, or name another"
        )
    # The modules are asked: the config of a GPT-NeoX says `is_decoder: false`, of a decoder.
    said = [getattr(part, name, None) for part in model.modules() for name in ("is_decoder", "causal")]
    if False in said or getattr(model.config, "attn_type", None) == "bi":
        return (
            f"a {kind} sees the tokens that come after, and so what it is to predict: name another (see 'harness list "
            "left_out')"
        )
    return None


def _no_code(base: BaseModel) -> None:
    """Refuse a model that transformers can only load by running the model's own code."""
    for name in ("config.json", "tokenizer_config.json"):
        path = base.folder / name
        try:
            content = parse_json(path.read_text()) if path.exists() else {}
        except (OSError, ValueError):
            continue  # said of it below
        brings = content.get("auto_map") if isinstance(content, dict) else None
        if brings and not _known(base, name):
            raise SpecError(
                f"base model {base.ref.name!r} must load without code of its own, which is never run, but {name} names "
                f"some ({', '.join(sorted(map(str, brings)))}): choose a model that transformers knows"
            )


def _known(base: BaseModel, name: str) -> bool:
    """Whether transformers has a class of its own for what the file describes."""
    from transformers import AutoTokenizer

    try:
        if name == "config.json":
            return _config(base) is not None
        return AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False) is not None
    except Exception:  # whatever it is, transformers cannot load it by itself
        return False


def _config(base: BaseModel) -> PretrainedConfig:
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
    return config


@contextmanager
def _said(base: BaseModel, needed: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises into one sentence.

    Args:
        base: Of which model.
        needed: What it must have.
        remedy: What can be done.
    """
    try:
        yield
    except SpecError:
        raise
    except Exception as error:  # a damaged file makes libraries raise anything, some of their errors only `Exception`
        cause = " ".join(str(error).split())[:200]
        raise SpecError(
            f"base model {base.ref.name!r} must have {needed}, but it has not ({type(error).__name__}: {cause}): {remedy}"
        ) from error


def _weights_fit(base: BaseModel, model: PreTrainedModel, info: dict[str, Any]) -> list[str]:
    """Refuse weights that would be made up or left out silently; other things in the files are noted."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise SpecError(
            f"base model {base.ref.name!r} must have all weights that its config.json describes, but lacks "
            f"{_listed(missing)}: download or save it again, config and weights together"
        )
    places = {_place(name) for name in model.state_dict()}
    more = [name for name in unexpected if _place(name) in places]
    if more:
        raise SpecError(
            f"base model {base.ref.name!r} must have the weights that its config.json describes and no more layers, but "
            f"has {_listed(more)} too: correct config.json, or save config and weights together"
        )
    note = f"{base.ref.name}: weights that a language model of its kind has no place for were left out"
    return [f"{note} ({_listed(unexpected)})"] if unexpected else []


def _place(name: str) -> str:
    """A weight's name without the numbers of its layers."""
    return re.sub(r"\d+", "#", name)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _vocabulary_fits(base: BaseModel, model: PreTrainedModel, tokenizer: Any) -> list[str]:
    """Refuse the tokenizer of another model; texts with an added token that has no embedding are found by the texts."""
    rows = model.get_input_embeddings().weight.shape[0]
    added = set(tokenizer.get_added_vocab())
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if plain := sorted(beyond.keys() - added):
        raise SpecError(
            f"base model {base.ref.name!r} must have an embedding for every token of its tokenizer, but has {rows} and none "
            f"for {_listed(plain)}: use the tokenizer that the model was trained with"
        )
    note = f"{base.ref.name}: the model has no embedding for the tokenizer's {_listed(sorted(beyond))}"
    return [note] if beyond else []

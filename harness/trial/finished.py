"""Opens a finished model of any form: whole, beside its base as `harness train` leaves it, or an adapter of PEFT's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError, one_line
from harness.files import expand, parse_json
from harness.models.base_model import TOKENIZER_FILES, BaseModel, load_model, load_tokenizer, resolve_model
from harness.models.chat import ChatTemplate, chat_template
from harness.records.trial import ModelRef
from harness.trial.model_folder import TUNED, load_tuned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A model that is ready to be scored."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    """Its own chat template; None where it has none."""
    held: str
    """Type that its weights are held in, where that is another than float32."""


def check_finished(name: str) -> None:
    """Refuse a name that no finished model has, before any model is loaded.

    Args:
        name: An embedded model, a folder (whole model, `harness train --keep adapter`, or PEFT adapter), or a hub id.

    Raises:
        SpecError: When there is no such model, or it lacks a part.
    """
    folder = _folder(name)
    if (folder / TUNED).is_file():
        return
    if _is_adapter(folder):
        _adapter_base(folder)
    else:
        resolve_model(name)


def open_finished(name: str, device: str) -> Finished:
    """A finished model with its tokenizer.

    Args:
        name: As of `check_finished`.
        device: `cpu` or `cuda`.

    Raises:
        SpecError: When there is no such model, it lacks a part, or its base is gone.
    """
    folder = _folder(name)
    if (folder / TUNED).is_file():
        base = _beside(name, folder)
        model = load_tuned(folder, device)
    elif _is_adapter(folder):
        base = _adapter_base(folder)
        model = _adapted(base, folder, device)
        if any((folder / file).is_file() for file in TOKENIZER_FILES):
            base = _beside(name, folder)
    else:
        base = resolve_model(name)
        model = load_model(base, {}, device)
    tokenizer = load_tokenizer(base)
    template = chat_template(tokenizer, name)
    return Finished(model=model, tokenizer=tokenizer, template=template, held=base.ref.dtype)


def _folder(name: str) -> Path:
    return Path(expand(name, "model")).expanduser()


def _beside(name: str, folder: Path) -> BaseModel:
    """A folder with a tokenizer, and without the weights of a whole model."""
    return BaseModel(ModelRef(name, ""), str(folder.resolve()))


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _adapter_base(folder: Path) -> BaseModel:
    """The base that a PEFT adapter names."""
    if not (folder / ADAPTER_WEIGHTS).is_file():  # pickled weights could run code
        raise SpecError(f"an adapter folder must hold {ADAPTER_WEIGHTS}, but {folder} does not: save the adapter again")
    try:
        config = parse_json((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{folder / ADAPTER_CONFIG} must name the adapter's base, but does not: {error!r}") from error
    if not isinstance(name, str) or not name:
        raise SpecError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path must name a model, but is {name!r}: add it"
        )
    return resolve_model(name, revision if isinstance(revision, str) and revision else None)


def _adapted(base: BaseModel, folder: Path, device: str) -> PreTrainedModel:
    from peft import PeftModel

    try:
        model: PreTrainedModel = PeftModel.from_pretrained(load_model(base, {}, device), folder).eval()
    except (RuntimeError, ValueError, TypeError, LookupError, OSError) as error:
        raise SpecError(
            f"the adapter in {folder} must fit its base {base.ref.name!r}, but does not ({one_line(str(error), 200)}): "
            "save the adapter again, or correct base_model_name_or_path"
        ) from error
    return model

"""Base models: finds the model of a name, pins it by its content, and loads its weights and its tokenizer.

A name is an embedded model (a folder of `harness/testbed/models/`), a folder, or a Hugging Face id. Only safetensors
are read, and no remote code runs.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_line, one_of
from harness.files import expand, parse_json
from harness.models.headers import check_sizes, headers, held_type
from harness.models.hub import commit_of
from harness.models.parts import part_of
from harness.records.trial import ModelRef

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parents[1] / "testbed" / "models"
EMBEDDED_CORPUS = Path(__file__).parents[1] / "testbed" / "data" / "corpus_sample.jsonl"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
NEEDED = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "additional_chat_templates/*.jinja"]
REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]*")
"""A commit, tag or branch; nothing that could lead out of the hub's cache."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found, pinned to its content."""

    ref: ModelRef
    source: str
    """Local folder or Hugging Face id."""
    corpus: str | None = None
    """What it knows already, for replay: a JSONL file with a `text` in each row, or a task, whose training rows are meant."""
    is_temporary: bool = False
    """Whether an earlier stage of a trial made it, in a folder that is deleted with the trial."""

    @property
    def is_local(self) -> bool:
        """Whether `source` is a folder."""
        return Path(self.source).is_dir()

    @property
    def folder(self) -> Path:
        """Its files on this machine; a hub model is downloaded at its pinned commit if it is not in the cache."""
        if self.is_local:
            return Path(self.source)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.source, revision=self.ref.revision, allow_patterns=NEEDED))


def embedded_models() -> tuple[str, ...]:
    """Names of the base models that come with the harness."""
    return tuple(sorted(path.parent.name for path in EMBEDDED.glob("*/config.json")))


def resolve_model(name: str, revision: str | None = None, corpus: str | None = None) -> BaseModel:
    """Find the model of a name and pin it by its content.

    Args:
        name: An embedded model, a folder (may hold `${VARIABLE}`), or a Hugging Face id.
        revision: Commit, tag or branch of a hub model; ignored for folders, which are pinned by their content.
        corpus: A file or task of what the model knows already; an embedded model brings its own.

    Raises:
        SpecError: When there is no such model, or a folder lacks its config, weights or tokenizer.
    """
    corpus = expand(corpus, f"corpus of {name}") if corpus else corpus
    if name in embedded_models():
        return _typed(BaseModel(_pinned(name, EMBEDDED / name), str(EMBEDDED / name), corpus or str(EMBEDDED_CORPUS)))
    folder = Path(expand(name, "base model")).expanduser()
    if folder.is_dir():
        return _typed(BaseModel(_pinned(name, folder), str(folder.resolve()), corpus))
    if folder.is_absolute() or name.startswith((".", "~", "$")) or name.count("/") != 1:
        raise SpecError(
            f"{folder} is not a folder: check the path; a name without it must be a Hugging Face id (owner/model), or "
            + one_of("base model", name, list(embedded_models()))
        )
    if revision and not REVISION.fullmatch(revision):
        raise SpecError(
            f"revision of {name!r} must be a commit, tag or branch of the hub, but got {revision!r}: correct it"
        )
    return _typed(BaseModel(ModelRef(name, _commit(name, revision)), name, corpus))


def _typed(base: BaseModel) -> BaseModel:
    """The same with what a trial's key tells apart: the type of its weights, if not float32, and whether it has experts.

    Raises:
        SpecError: When its files cannot be had, its weights cannot be read, or its config has sizes that they cannot have.
    """
    try:
        check_sizes(base.ref.name, base.folder)
        held = held_type(base.folder)
        mixture = any(part_of(header.name, header.shape) == "experts" for header in headers(base.folder))
    except ValueError as error:
        raise SpecError(
            f"base model {base.ref.name!r} must have whole safetensors files, but has not ({error}): download or save it "
            "again"
        ) from error
    except OSError as error:  # of the file system, of the network, or that of a hub which refuses
        if base.is_local:
            raise SpecError(
                f"base model {base.ref.name!r} must have readable files, but {error.filename} is not ({error.strerror}): download "
                "or save it again"
            ) from error
        raise SpecError(_unreachable(base.ref.name, error)) from error
    return replace(base, ref=replace(base.ref, dtype="" if held == "float32" else held, mixture=mixture))


def _pinned(name: str, folder: Path) -> ModelRef:
    """A reference to a folder by the content of its files.

    Raises:
        SpecError: When the folder lacks its config, weights or tokenizer.
    """
    again = "save model and tokenizer there with save_pretrained"
    converted = (
        f"run 'harness convert {folder}', which makes them of the *.bin files there, without running code of theirs"
    )
    remedies = {"*.safetensors weights": converted if any(folder.glob("*.bin")) else again}
    for part, exists in (
        ("config.json", (folder / "config.json").exists()),
        ("*.safetensors weights", any(folder.glob("*.safetensors"))),
        ("tokenizer (tokenizer.json)", any((folder / file).exists() for file in TOKENIZER_FILES)),
    ):
        if not exists:
            raise SpecError(
                f"a model folder must hold config.json, *.safetensors and a tokenizer, but {folder} has no {part}: "
                f"{remedies.get(part, again)}"
            )
    digest = hashlib.sha256()
    for path in sorted(path for pattern in NEEDED for path in folder.glob(pattern) if path.is_file()):
        digest.update(path.name.encode())
        for block in _blocks(path):
            digest.update(block)
    return ModelRef(name, digest.hexdigest()[:20])


def _blocks(path: Path) -> Iterator[bytes]:
    """A file's size, and then its content in blocks; of a file above 64 MiB, 64 blocks at even distances."""
    # Reading all of a large model would take minutes at every start, and weights that were trained differ everywhere.
    size = path.stat().st_size
    count = max(1, math.ceil(size / BLOCK))
    starts = range(count) if count <= 64 else [round(i * (count - 1) / 63) for i in range(64)]
    yield str(size).encode()
    with path.open("rb") as file:
        for start in starts:
            file.seek(start * BLOCK)
            yield file.read(BLOCK)


def _commit(name: str, revision: str | None) -> str:
    """The commit that a hub model's revision points to; the first to ask pins it in the hub's cache.

    Raises:
        SpecError: When the model is neither in the cache nor reachable.
    """
    try:
        return commit_of("model", name, revision)
    except (OSError, ValueError) as error:
        raise SpecError(_unreachable(name, error)) from error


def _unreachable(name: str, error: Exception) -> str:
    """What to do where the hub does not give a model."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    where = f"base model {name!r} must be embedded ({', '.join(embedded_models())}), a folder, or a reachable Hugging Face id"
    if isinstance(error, GatedRepoError):
        return f"{where}, but the hub gives it only to those who accepted its terms: accept them on its page and log in"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{where}, but the hub is switched off (HF_HUB_OFFLINE) and it is not in its cache: check the name, the revision "
            "and the network"
        )
    return f"{where}, but it is none ({type(error).__name__}): check the name, the revision and the network"


def context_length(config: Any, max_length: int, reserved: int = 0) -> int:
    """`max_length`, cut to the room that is left in a model's context; a config that states no context has no limit.

    Args:
        config: The model's, of `transformers`.
        max_length: Tokens that are wanted.
        reserved: Positions of the context that virtual tokens take.
    """
    return within_context(stated_context(config), max_length, reserved)


def stated_context(config: Any) -> int | None:
    """Tokens of context that a config of `transformers` states; None where it states none."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or None


def within_context(context: int | None, max_length: int, reserved: int = 0) -> int:
    """`max_length`, cut to the room that is left in a context; see `context_length`."""
    return max(1, min(max_length, context - reserved)) if context else max_length


def load_model(base: BaseModel, options: Mapping[str, Any], device: str) -> PreTrainedModel:
    """The model's weights on `device`, in eval mode, in the type of its checkpoint unless `options` say otherwise.

    Args:
        base: A resolved model.
        options: Further keyword arguments of `from_pretrained`, for example a quantisation config.
        device: `cpu` or `cuda`.

    Raises:
        SpecError: When weights that its config.json describes are not there.
    """
    # Straight to the device, so that a large model never lies in main memory as a whole.
    place = {"device_map": {"": device}} if device != "cpu" or "quantization_config" in options else {}
    model, info = open_model(base, {**place, **options})
    if missing := sorted(info["missing_keys"]):
        raise SpecError(
            f"base model {base.ref.name!r} must have all weights that its config.json describes, but {missing[0]} is "
            "missing: download or save it again, config and weights together"
        )
    if getattr(model.config, "rescale_every", 0):
        # RWKV halves weights in place when it turns to scoring, which float16 needs; adapters on them would not follow.
        model.config.rescale_every = 0
    return _never_repacked(model) if "quantization_config" in options else model


def open_model(base: BaseModel, options: Mapping[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model as transformers loads it, and what it says of missing and unexpected weights.

    Args:
        base: A resolved model.
        options: Keyword arguments of `from_pretrained`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quiet()
    arguments: dict[str, Any] = {"dtype": getattr(torch, held_type(base.folder)), **_revision(base), **options}
    # Only safetensors, and no code of the model's own: a pickled checkpoint can run code when it is loaded, too.
    safe = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        base.source, **arguments, **safe
    )
    return loaded


def _never_repacked(model: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from repacking 4-bit weights in place.

    On a CPU with AVX512-BF16 it does so at a layer's first forward pass in eval mode without gradients. What is merged
    or saved after that is garbage, and scores come from other arithmetic than training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_config(base: BaseModel) -> PretrainedConfig:
    """The model's config, of `transformers`.

    Raises:
        SpecError: When it cannot be read, or is of a kind that transformers does not know.
    """
    from transformers import AutoConfig

    quiet()
    try:
        return AutoConfig.from_pretrained(base.source, **_revision(base), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"base model {base.ref.name!r} must have a config.json that transformers reads, but it says: {error}"
        ) from error


def own_generation_config(base: BaseModel) -> GenerationConfig | None:
    """The settings of generation that a model's folder brings, if it does; a file that cannot be read is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base.source, **_revision(base))
    except OSError:  # so does `from_pretrained` of a model
        return None


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer; batches are filled up with a token that the model has.

    A tokenizer without any special token stays without padding: batches are then filled up with token 0.

    Raises:
        SpecError: When it cannot be read, or begins or ends texts with a token that the model does not have.
    """
    from transformers import AutoTokenizer

    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.source, **_revision(base), trust_remote_code=False)
        tokenizer("a")  # so that what its settings break is found here
    except Exception as error:  # a damaged file makes libraries raise anything, some of their errors only `Exception`
        cause = one_line(str(error), 200)
        raise SpecError(
            f"base model {base.ref.name!r} must have a readable tokenizer, but it has not ({type(error).__name__}: {cause}): "
            "download it again, or save it with save_pretrained"
        ) from error
    rows = embedded_tokens(base)
    for name in ("bos_token", "eos_token"):
        token = getattr(tokenizer, f"{name}_id")
        if token is not None and token >= rows:
            raise SpecError(
                f"{name} of {base.ref.name!r} must be a token of the model's, but {getattr(tokenizer, name)!r} has the id "
                f"{token} and the model embeds {rows:.0f} tokens: name another in its tokenizer_config.json, or resize the "
                "model (resize_token_embeddings) and save it again"
            )
    # Padding is never looked at, so any token will do; a special one, because texts are decoded without it.
    special = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids)
    usable = [token for token in (tokenizer.pad_token_id, *special) if token is not None and token < rows]
    padding = usable[0] if usable else None
    if tokenizer.pad_token_id != padding:
        tokenizer.pad_token = None if padding is None else tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def embedded_tokens(base: BaseModel) -> float:
    """Tokens that the model embeds; infinity where its config does not say."""
    try:
        config = parse_json((base.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return math.inf  # what is wrong with a config is said where the model is loaded


def _revision(base: BaseModel) -> dict[str, Any]:
    return {} if base.is_local else {"revision": base.ref.revision}


def quiet() -> None:
    """Switch off the progress bars and advice of `transformers`: the harness shows its own progress on stderr."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

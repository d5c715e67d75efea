"""What can be known of a base model without loading its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import SpecError
from harness.files import parse_json
from harness.models.base_model import BaseModel
from harness.models.headers import LAYERS, headers, held_type
from harness.models.parts import LOOKUP_TABLES, Part, parts_of

# Configs name the same number differently: GPT-2 says n_head, GPT-Neo num_heads, MPT n_heads; see also LAYERS.
WIDTH = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
"""How many of its experts a token passes."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A base model's config under one spelling, and what the headers of its weights say.

    A field at its default is not known: plug-ins refuse nothing because of it.
    """

    model_type: str = ""
    """`model_type` of the config, for example `llama`."""
    layers: int | None = None
    width: int | None = None
    """Numbers in a token's hidden state."""
    vocabulary: int | None = None
    """Rows of the embedding table."""
    heads: int | None = None
    """Attention heads of a layer; 0 where the model has no attention."""
    ties_embeddings: bool | None = None
    """Whether the output layer's weights are the embedding table, where the config says so."""
    dtype: str = "float32"
    """Type that its weights are held in, see `headers.held_type`."""
    parameters: int = 0
    """Numbers in all weights; tied weights count once."""
    linear_widths: tuple[int, ...] = ()
    """In-features of the linear layers, each once, ascending."""
    linear_features: int = 0
    """In- plus out-features, summed over the linear layers: what one rank beside each of them takes."""
    biases: int | None = None
    """Numbers in all biases."""
    parts: Mapping[Part, int] = field(default_factory=dict)
    """Numbers in its weights by what these are for."""
    active_share: float = 1.0
    """Share of its experts that a token passes; 1 where it has none, or does not say."""

    @property
    def active_parameters(self) -> float:
        """Numbers of the weights that a token passes."""
        return self.parameters - (1 - self.active_share) * self.parts.get("experts", 0)

    def bytes_in(self, dtype: str) -> int:
        """Bytes of all weights in a type.

        Args:
            dtype: `float32`, `bfloat16` or `float16`.
        """
        return self.parameters * (4 if dtype == "float32" else 2)

    @property
    def has_attention(self) -> bool:
        """Whether layers have attention heads; True where that is not known."""
        return self.heads != 0


def model_facts(base: BaseModel) -> ModelFacts:
    """Read a model's facts from its config.json and the headers of its safetensors files.

    Raises:
        SpecError: When the config or a weight file cannot be read.
    """
    try:
        config: dict[str, Any] = parse_json((base.folder / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json holds no table")
        shapes = {header.name: header.shape for header in headers(base.folder)}
    except (OSError, ValueError) as error:
        raise SpecError(
            f"base model {base.ref.name!r} must have a readable config.json and safetensors, but has not ({error}): "
            "download or save it again"
        ) from error
    # A model for pictures and text keeps the sizes of its language model in a config within its config.
    config = (config.get("text_config") or {}) | config
    model_type = str(config.get("model_type", ""))
    return ModelFacts(
        model_type=model_type,
        layers=_first(config, LAYERS),
        width=_first(config, WIDTH),
        vocabulary=_first(config, ("vocab_size",)),
        heads=_first(config, HEADS) or 0,
        ties_embeddings=config.get("tie_word_embeddings"),
        dtype=held_type(base.folder),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        linear_widths=_linear_widths(shapes, model_type),
        linear_features=sum(
            sum(shape)
            for name, shape in shapes.items()
            if len(shape) == 2 and not any(t in name for t in LOOKUP_TABLES)
        ),
        biases=sum(shape[0] for name, shape in shapes.items() if name.split(".")[-1] == "bias" and len(shape) == 1),
        parts=parts_of(shapes, _first(config, ("vocab_size",))),
        active_share=active_share(config),
    )


def active_share(config: Mapping[str, Any]) -> float:
    """Share of the experts that a token passes, by a model's config; 1 where that has none, or does not say."""
    known = {name: value for name, value in config.items() if isinstance(value, int)}  # some have a list, by layer
    experts, chosen = _first(known, EXPERTS), _first(known, CHOSEN)
    return min(1.0, chosen / experts) if experts and chosen else 1.0


def _first(config: Mapping[str, Any], spellings: tuple[str, ...]) -> int | None:
    """The number that the config holds under one of these names; 0 counts as absent."""
    return next((int(config[name]) for name in spellings if config.get(name)), None)


def _linear_widths(shapes: dict[str, list[int]], model_type: str) -> tuple[int, ...]:
    # GPT-2's Conv1D keeps weights as (in, out); every other linear layer as (out, in).
    inputs = 0 if model_type in ("gpt2", "openai-gpt") else 1
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    return tuple(
        sorted({shape[inputs] for name, shape in matrices.items() if not any(t in name for t in LOOKUP_TABLES)})
    )


def model_features(base: BaseModel) -> dict[str, float | str]:
    """What recommendations compare base models by; counts as decadic logarithms, an unknown count as 1."""
    facts = model_facts(base)
    return {
        "log_parameters": math.log10(facts.parameters or 1),
        "layers": float(facts.layers or 1),
        "log_width": math.log10(facts.width or 1),
        "log_vocab": math.log10(facts.vocabulary or 1),
        "type": facts.model_type,
    }

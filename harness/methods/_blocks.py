"""Where a model's blocks are, and what attention and feed-forward part each has, for architectures that were looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.errors import SpecError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

KNOWN = (
    "bloom",
    "codegen",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "rwkv",
    "smollm3",
    "stablelm",
)
"""Architectures whose blocks hold one attention and one feed-forward part, each called once with the hidden states."""
ATTENTION = re.compile(r"(self_)?att(n|ention)")
FEED_FORWARD = re.compile(r"mlp|feed_forward")


@dataclass(frozen=True)
class Block:
    """One layer of a model."""

    name: str
    module: Module
    attention: str
    """Full name of its attention, or of what takes attention's place."""
    feed_forward: tuple[str, str]
    """Full names of the module that its feed-forward part begins with, and of the one that it ends with."""


def unknown_blocks(situation: Situation) -> str | None:
    """Why a method cannot find its places in the situation's model, or None."""
    kind = situation.model.model_type
    return f"nobody has looked where attention and feed-forward are in a {kind}" if kind and kind not in KNOWN else None


def layer_list(model: PreTrainedModel) -> tuple[str, list[Module]]:
    """The name of the model's list of layers, and the layers in their order.

    Raises:
        SpecError: When it has none.
    """
    from torch.nn import ModuleList

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, ModuleList) and len(module)]
    if not lists:
        raise SpecError(f"the model must have a list of layers, but a {model.config.model_type} has none: use lora")
    outer = [(name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    name, layers = max(outer, key=lambda item: len(item[1]))  # a layer's experts may be more than the layers
    return name, list(layers)


def blocks(model: PreTrainedModel) -> list[Block]:
    """The model's blocks in their order.

    Raises:
        SpecError: When one of them has no attention or no feed-forward part under the usual names.
    """
    root, layers = layer_list(model)
    result = []
    for index, layer in enumerate(layers):
        children = dict(layer.named_children())
        attention = next((name for name in children if ATTENTION.fullmatch(name)), None)
        whole = next((name for name in children if FEED_FORWARD.fullmatch(name)), None)
        # OPT has no module for its feed-forward part, only its two linear layers.
        ends = ("fc1", "fc2") if whole is None and {"fc1", "fc2"} <= set(children) else (whole, whole)
        if attention is None or ends[0] is None or ends[1] is None:
            raise SpecError(
                f"a layer must hold an attention and a feed-forward part, but one of a {model.config.model_type} holds "
                f"{', '.join(children)}: use lora"
            )
        name = f"{root}.{index}"
        result.append(Block(name, layer, f"{name}.{attention}", (f"{name}.{ends[0]}", f"{name}.{ends[1]}")))
    return result


def hidden_width(model: PreTrainedModel) -> int:
    """Numbers per token between layers."""
    width: int = model.config.get_text_config().hidden_size
    return width


def exactly(names: Iterable[str]) -> str:
    """A regular expression that matches these names and no other."""
    return "|".join(map(re.escape, names))

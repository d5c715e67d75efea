"""UniPELT: LoRA, prefix and adapter together, each behind a gate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._blocks import blocks, hidden_width
from harness.methods._linear import linear_layers, shape
from harness.methods._prefixed import PrefixedMethod, with_prefix
from harness.methods._stacking import ADAPTER
from harness.space import Choice, Float, Integer, Params

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

QUERY_VALUE = re.compile(r"(.*\.)?(q_proj|v_proj|query_key_value|qkv_proj|c_attn)")
GATES = "prefix_gates"


class Unipelt(PrefixedMethod):
    """Gated LoRA at queries and values, a gated prefix, and a gated adapter behind each feed-forward part.

    The paper's gates are means over a sequence, which in a causal model would look ahead. Here the gates of LoRA and
    adapter are each token's own, and a prefix has one gate per layer that looks at nothing. Gates start at a half.
    """

    summary = "gated LoRA, prefix and adapter together"
    paper = "Mao et al. 2021, arXiv 2110.07577"
    trains = r".*\.adapter\.(down|up|gate)\.(weight|bias)|prompt_encoder\.default\.(embedding\.weight|prefix_gates)"
    space = {
        "learning_rate": Float(1e-4, 5e-2, default=1e-3, log=True),
        "rank": Integer(1, 128, default=8, log=True),
        "alpha": Float(1.0, 512.0, default=16.0, log=True, searched=False),
        "virtual_tokens": Integer(1, 200, default=10, log=True),
        "reduction": Integer(2, 64, default=16, log=True),
        "activation": Choice(("relu", "gelu", "silu"), default="relu", searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """An adapter's gate looks at the input of a feed-forward part, which must be one module."""
        if situation.model.model_type == "opt":
            return "the feed-forward part of an opt is not one module whose input a gate could look at"
        return super().skip(situation)

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """LoRA and adapters in the blocks, then the prefix around."""
        import torch

        from harness.methods._adapters import GatedAdapter, GatedLora, put

        rank, alpha, width = params.integer("rank"), params.number("alpha"), hidden_width(model)
        # As in the paper's LoRA: queries and values, or the one layer that holds both.
        for name in filter(QUERY_VALUE.fullmatch, linear_layers(model, "attention")):
            layer = model.get_submodule(name)
            put(layer, GatedLora(*shape(layer), rank, alpha), parallel=True)
        bottleneck, layers = max(1, width // params.integer("reduction")), blocks(model)
        for block in layers:
            part = model.get_submodule(block.feed_forward[1])
            put(part, GatedAdapter(width, bottleneck, params.text("activation")), parallel=False)
        wrapped = with_prefix(model, params.integer("virtual_tokens"))
        encoder = wrapped.prompt_encoder[ADAPTER]
        gates = torch.nn.Parameter(torch.zeros(len(layers), device=model.device))
        # On PEFT's encoder, so that saving the prefix saves its gates.
        encoder.register_parameter(GATES, gates)
        encoder.register_forward_hook(_gate)
        return wrapped


def _gate(encoder: Module, arguments: tuple[object, ...], output: Tensor) -> Tensor:
    """Each layer's keys and values, shape (rows, tokens, layers * 2 * width), times the layer's gate."""
    gates: Tensor = getattr(encoder, GATES).sigmoid()
    return output * gates.repeat_interleave(output.shape[-1] // len(gates))

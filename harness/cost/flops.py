"""Model sizes, and the FLOPs of training them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.models.facts import active_share
from harness.models.parts import expert_weights

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model's FLOPs depend on."""

    total_params: int = 0
    trainable_params: int = 0
    matmul_params: int = 0
    """Parameters that a token is multiplied by: all but the input embeddings, unless they are the output layer too, and
    of experts only as many as it passes."""
    gradient_params: int = 0
    """Those of them whose gradients are formed."""
    layers: int = 0
    hidden: int = 0
    trainable_bytes: int = 0
    """Bytes of the parameters that move, which is what must be kept of a tuned model beside its base."""


def model_size(model: PreTrainedModel) -> Size:
    """Count a model's parameters; quantised weights count as the numbers that they stand for.

    An adapter on experts changes their weights for a whole pass, so that it needs the gradients of these weights.
    """
    # By identity: tied weights are one parameter under two names.
    counts = {id(p): numbers(p) for p in model.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = table is None or head is None or table.weight is head.weight
    total, config = sum(counts.values()), model.config
    experts, share = expert_weights(model).values(), active_share(config.get_text_config().to_dict())
    adapted = {id(module.get_param()) for module in model.modules() if hasattr(module, "parameter_name")}
    moved = {id(p): numbers(p) for p in experts if p.requires_grad or id(p) in adapted}
    idle = (1 - share) * sum(map(numbers, experts))
    matmul = round((total if tied else total - table.weight.numel()) - idle)
    gradients = sum(p.numel() for p in trainable if id(p) not in moved) + round(share * sum(moved.values()))
    return Size(
        total_params=total,
        trainable_params=sum(p.numel() for p in trainable),
        matmul_params=matmul,
        gradient_params=min(gradients, matmul),
        layers=getattr(config, "num_hidden_layers", 0) or 0,
        hidden=getattr(config, "hidden_size", 0) or 0,
        trainable_bytes=sum(p.numel() * p.element_size() for p in trainable),
    )


def numbers(parameter: Parameter) -> int:
    """How many numbers a weight stands for."""
    # bitsandbytes packs two numbers of four bits into a byte; the state holds the shape that they stand for.
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else int(parameter.numel())


def training_flops(size: Size, tokens: int, squared_lengths: int) -> float:
    """FLOPs of training; a multiplication and an addition count as two.

    Forward: 2 per matmul parameter and token, plus attention, 2 x layers x hidden per query and key pair (half the
    square of the length in a causal model; two products, two FLOPs each). Backward through the activations: the same
    again. Weight gradients: 2 per parameter with a gradient and token. With all parameters trainable this is the 6N per
    token of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) with the attention term of PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B), halved for causality. Recomputation and the optimiser are not counted.

    Args:
        size: Of the model.
        tokens: That were trained on, without padding.
        squared_lengths: Sum over sequences of their length squared.
    """
    forward = 2.0 * size.matmul_params * tokens + 2.0 * size.layers * size.hidden * squared_lengths
    return 2.0 * forward + 2.0 * size.gradient_params * tokens

"""The linear layers and experts that adapters are put on, for any architecture: which, how wide, and how far they moved."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from harness.errors import SpecError
from harness.models.parts import ATTENTION, expert_weights

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel

    from harness.axes.contract import Situation, StageSetup

TRANSPOSED = ("gpt2", "openai-gpt")
"""Model types whose linear layers keep their weights as (in, out)."""


def linear_layers(model: PreTrainedModel, target: str) -> list[str]:
    """Full names of the linear layers inside the blocks: `all` of them, those of the `attention`, or the rest (`mlp`).

    The output layer never counts: on a tied model it is the embedding.

    Raises:
        SpecError: When the model has none there.
    """
    names = _linear_names(model, target)
    if not names:
        raise _nothing(model, target)
    return names


def layers_and_experts(model: PreTrainedModel, target: str) -> tuple[list[str], list[str]]:
    """Full names of the linear layers inside the blocks, and of the parameters that hold a matrix for each expert.

    Args:
        model: The base.
        target: As `linear_layers` has it; experts are `mlp` where attention has none of its own.

    Raises:
        SpecError: When the model has neither there.
    """
    layers = _linear_names(model, target)
    experts = [name for name in expert_weights(model) if _is_in(name, target)]
    if not layers and not experts:
        raise _nothing(model, target)
    return layers, experts


def _linear_names(model: PreTrainedModel, target: str) -> list[str]:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D)
        and module is not head
        and _is_in(name, target)
        and _gives_rows(module)
        and not _is_bypassed(model, name)
    ]


def _is_in(name: str, target: str) -> bool:
    return target == "all" or (target == "attention") == bool(ATTENTION.search(name))


def _gives_rows(layer: Module) -> bool:
    """Whether a layer maps rows to rows; a router may be a linear layer by its class and answer with chosen experts.

    A gate that gives a single number, as that of Qwen2's shared expert, is no matrix with directions to choose from.
    """
    import torch
    from torch.nn import Linear

    if min(shape(layer)) == 1:
        return False
    quantised = isinstance(layer, Linear) and not layer.weight.is_floating_point()
    if type(layer).__module__.startswith(("torch.", "transformers.pytorch_utils")) or quantised:
        return True
    inputs, outputs = shape(layer)
    try:
        with torch.no_grad():
            rows = layer(cast("Linear", layer).weight.new_zeros(2, inputs))
    except RuntimeError:  # it wants another shape
        return False
    return isinstance(rows, torch.Tensor) and rows.shape == (2, outputs)


def _is_bypassed(model: PreTrainedModel, name: str) -> bool:
    """Whether a state space takes this layer's weights and does not call the layer, so that nothing beside it would act.

    Fused kernels do, for one, which a machine may have or lack; what a method moves must not depend on that.
    """
    path, _, leaf = name.rpartition(".")
    holder = model.get_submodule(path)
    return hasattr(holder, "A_log") and f"self.{leaf}.weight" in inspect.getsource(type(holder))


def _nothing(model: PreTrainedModel, target: str) -> SpecError:
    return SpecError(
        f"target must name linear layers of the model, but a {model.config.model_type} has none in {target!r}: use all"
    )


def left_unquantised(situation: Situation) -> str | None:
    """Why a base must not be quantised by bitsandbytes, which packs linear layers only; None where that is its bulk."""
    facts = situation.model
    if not (experts := facts.parts.get("experts")):
        return None
    share = experts / sum(facts.parts.values())
    return (
        f"bitsandbytes quantises linear layers only, so that the experts of a {facts.model_type}, {share:.0%} of its weights, "
        "would stay as they are: use lora"
    )


def holds_experts(layer: Module) -> bool:
    """Whether a layer of PEFT's stands before experts, whose weights it changes, and not in the place of a linear layer."""
    return hasattr(layer, "parameter_name")


def adapted_weight(name: str, layer: Module) -> str:
    """Full name in the base of the weight that a layer of PEFT's changes.

    Args:
        name: The layer's, in the attached model.
        layer: The layer; those on several parameters of one module are nested.
    """
    path = name.removeprefix("base_model.model.")
    while holds_experts(layer) and path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return f"{path}.{getattr(layer, 'parameter_name', 'weight')}"


def uses_conv1d(model: PreTrainedModel) -> bool:
    """Whether linear layers keep their weights transposed, as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def shape(layer: Module) -> tuple[int, int]:
    """In-features and out-features of a linear layer; those in four bits pack their weights."""
    from transformers.pytorch_utils import Conv1D

    linear = cast("Linear", layer)
    if isinstance(layer, Conv1D):
        inputs, outputs = linear.weight.shape
        return inputs, outputs
    return linear.in_features, linear.out_features


def shapes(model: PreTrainedModel, names: Iterable[str]) -> list[tuple[int, int]]:
    """In-features and out-features of each of these layers."""
    return [shape(model.get_submodule(name)) for name in names]


def target_shapes(model: PreTrainedModel, setup: StageSetup) -> list[tuple[int, int]]:
    """In-features and out-features of the linear layers that the stage's parameter `target` chooses."""
    return shapes(model, linear_layers(model, setup.params.text("target")))


def divisor(wanted: int, sizes: Iterable[int], setup: StageSetup, name: str) -> int:
    """Find the largest number up to `wanted` that divides all sizes, and note in the record where it is another.

    Args:
        wanted: The parameter's value, for example a block size.
        sizes: Widths of the layers.
        setup: Takes the note.
        name: The parameter, for the note.
    """
    common = math.gcd(*sizes)
    largest = next(size for size in range(min(wanted, common), 0, -1) if common % size == 0)
    _note(setup, name, wanted, largest, "the widths of the layers divide by no larger one")
    return largest


def capped(wanted: int, most: int, setup: StageSetup, name: str) -> int:
    """Cut a parameter to what the narrowest layer allows, and note in the record where that changes it.

    Args:
        wanted: The parameter's value, for example a rank.
        most: What the narrowest layer allows.
        setup: Takes the note.
        name: The parameter, for the note.
    """
    _note(setup, name, wanted, min(wanted, most), "the narrowest layer allows no more")
    return min(wanted, most)


def _note(setup: StageSetup, name: str, wanted: int, found: int, reason: str) -> None:
    if found != wanted:
        setup.note(f"{name} {wanted} was cut to {found}: {reason}")


def changes(layers: Mapping[str, BaseTunerLayer], biases: bool) -> dict[str, Tensor]:
    """How far each adapted linear layer's weights are from its base's, found by what both make of the unit vectors.

    Differentiable in what the adapter trains, and right for any adapter whose layers are linear in their input.

    Args:
        layers: PEFT's layers by name.
        biases: Whether the adapter may move biases, too.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    deltas = {}
    for name, layer in layers.items():
        base, was = layer.get_base_layer(), layer.training
        # Quantised weights are integers, whose layers still compute in floating point. Small changes are differences of
        # like numbers, of which 16 bits would leave nothing.
        dtype = (
            torch.promote_types(base.weight.dtype, torch.float32) if base.weight.is_floating_point() else torch.float32
        )
        width, device = shape(base)[0], base.weight.device
        # The zero row gives the bias that the adapter adds; without it, the unit vectors give the weight's columns.
        rows = torch.cat(
            [torch.zeros(1, width, dtype=dtype, device=device), torch.eye(width, dtype=dtype, device=device)]
        )
        layer.eval()  # dropout is no part of the weights
        moved = _called(layer, rows) - _called(base, rows)
        layer.train(was)
        path = name.removeprefix("base_model.model.")
        delta = moved[1:] - moved[0]
        deltas[f"{path}.weight"] = delta if isinstance(base, Conv1D) else delta.T
        if biases and base.bias is not None:
            deltas[f"{path}.bias"] = moved[0]
    return deltas


def _called(layer: Module, rows: Tensor) -> Tensor:
    """A layer's output, its frozen weights of 16 bits taken in float32."""
    from torch.func import functional_call

    wide = {name: p.float() for name, p in layer.named_parameters() if p.is_floating_point() and p.dtype.itemsize == 2}
    output: Tensor = functional_call(layer, wide, (rows,)) if wide else layer(rows)
    return output

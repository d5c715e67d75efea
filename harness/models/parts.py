"""What the weights of a base model are for, told by their names and shapes in the headers of its files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

Part = Literal["tables", "attention", "mlp", "experts", "fused", "norms", "biases"]
"""Embeddings and output layer; linear layers inside and outside of attention; stacks of matrices of which each token
passes a few; layers of state spaces whose weights a fused kernel takes without calling the layer; vectors."""
PARTS: tuple[Part, ...] = ("tables", "attention", "mlp", "experts", "fused", "norms", "biases")
LINEAR: tuple[Part, ...] = ("attention", "mlp")
LOOKUP_TABLES = ("embed", "wte", "wpe", "lm_head")
ATTENTION = re.compile(r"(^|[._])(self_)?att(n|ention)([._]|$)", re.IGNORECASE)
_ONE_OF_MANY = re.compile(r"(^|\.)experts\.\d+\.")
"""A checkpoint may hold each expert's matrices by themselves; transformers stacks them when it loads them."""
_FUSED = re.compile(r"(.*\.)(out_proj|x_proj|dt_proj)\.weight")


def part_of(name: str, shape: Sequence[int], vocabulary: int | None = None) -> Part:
    """The part that a tensor of a checkpoint belongs to, as far as it can be told by itself.

    Args:
        name: In the checkpoint.
        shape: Its sides.
        vocabulary: The model's, where it is known: a table has a row for each of its tokens, whatever its name.
    """
    if name.endswith("bias"):  # those of stacked experts, too, which have two dimensions
        return "biases"
    if stacks_matrices(shape) or (len(shape) == 2 and _ONE_OF_MANY.search(name)):
        return "experts"
    if len(shape) != 2 or min(shape) == 1:
        return "norms"
    if shape[0] == vocabulary or any(table in name for table in LOOKUP_TABLES):
        return "tables"
    return "attention" if ATTENTION.search(name) else "mlp"


def stacks_matrices(shape: Sequence[int]) -> bool:
    """Whether a tensor holds several matrices; that of a convolution over single features has a side of 1."""
    return len(shape) > 2 and min(shape[-2:]) > 1


def parts_of(shapes: Mapping[str, Sequence[int]], vocabulary: int | None = None) -> dict[Part, int]:
    """Numbers in each part of a checkpoint; parts that it lacks are left out.

    Args:
        shapes: Of its tensors, by name.
        vocabulary: As in `part_of`.
    """
    counts: Counter[Part] = Counter()
    for name, shape in shapes.items():
        fused = (layer := _FUSED.fullmatch(name)) and f"{layer[1]}A_log" in shapes  # which only state spaces have
        counts["fused" if fused else part_of(name, shape, vocabulary)] += math.prod(shape)
    return {part: counts[part] for part in PARTS if counts[part]}


def expert_weights(model: Module) -> dict[str, Parameter]:
    """By full name, the parameters that hold a matrix for each expert; transformers has them outside of linear layers."""
    from torch.nn import Conv1d, Conv2d, Conv3d

    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if not isinstance(module, Conv1d | Conv2d | Conv3d)
        for name, parameter in module.named_parameters(recurse=False)
        if stacks_matrices(parameter.shape)
    }

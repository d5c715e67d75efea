"""Copies of models."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_in_float32(model: PreTrainedModel) -> None:
    """Hold every parameter that is trained in float32, as its moments will be."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize == 2:
            parameter.data = parameter.data.float()


def float32_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose weights are in float32, so that small updates can be merged into them; packed weights stay packed."""
    import torch
    from torch.nn import Parameter

    halves = (torch.bfloat16, torch.float16)
    # `deepcopy` takes what its memo holds instead of copying it: there is no copy in 16 bits in between.
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        if parameter.dtype in halves:
            memo[id(parameter)] = Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad)
    memo |= {id(buffer): buffer.float() for buffer in model.buffers() if buffer.dtype in halves}
    copy: PreTrainedModel = deepcopy(model, memo)
    return copy

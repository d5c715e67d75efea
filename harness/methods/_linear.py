"""Which linear layers an adapter is put on, for any architecture."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = re.compile(r"(^|[._])(self_)?att(n|ention)([._]|$)", re.IGNORECASE)


def linear_layers(model: PreTrainedModel, target: str) -> list[str]:
    """Full names of the linear layers inside the blocks: `all` of them, those of the `attention`, or the rest (`mlp`).

    The output layer never counts: on a tied model it is the embedding.

    Raises:
        SpecError: When the model has none there.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D)
        and module is not head
        and (target == "all" or (target == "attention") == bool(ATTENTION.search(name)))
    ]
    if not names:
        raise SpecError(
            f"target must name linear layers of the model, but a {model.config.model_type} has none in {target!r}: use all"
        )
    return names


def uses_conv1d(model: PreTrainedModel) -> bool:
    """Whether linear layers keep their weights transposed, as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())

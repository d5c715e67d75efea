"""The precision and the attention that a forward pass runs with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from harness.nn.attention import quick_attention
from harness.nn.batches import Batch
from harness.nn.determinism import resolve_precision
from harness.training.learner import Learner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def precision(learner: Learner, model: PreTrainedModel, batch: Batch | None = None) -> Iterator[None]:
    """bfloat16 where the stage asks for it, and on a CPU what is quicker there.

    Args:
        learner: Whose stage it is.
        model: What will be called.
        batch: With what, if only its supervised positions matter.
    """
    import torch

    setup, method = learner.setup, learner.choices.method
    half = resolve_precision(setup.params.text("precision"), setup.device) == "bfloat16"
    with ExitStack() as stack:
        if setup.device == "cpu" and not method.reserved(setup.params) and not learner.settings.recomputes:
            stack.enter_context(quick_attention(model, batch))
        stack.enter_context(torch.autocast(setup.device, torch.bfloat16, enabled=half))
        yield

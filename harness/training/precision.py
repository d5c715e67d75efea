"""The precision and the attention that a forward pass runs with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from harness.nn.attention import quick_attention
from harness.nn.batches import Batch, collate, padding_id
from harness.nn.determinism import random_state_kept, resolve_precision
from harness.nn.logits import supervised_nats
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


def try_ways(learner: Learner) -> None:
    """Let the quicker ways of a learner's model be tried on its longest example, before its steps are timed."""
    import torch

    longest = max(learner.examples, key=lambda example: max(len(s.input_ids) for s in example))
    batch = collate([[longest]], padding_id(learner.setup.tokenizer), learner.setup.device)
    with torch.no_grad(), random_state_kept(), precision(learner, learner.model, batch):
        supervised_nats(learner.model, batch)

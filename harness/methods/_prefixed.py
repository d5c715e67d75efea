"""What methods share that put a prefix of PEFT's in front of a model that has modules of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._added import ModuleMethod
from harness.methods.prefix_tuning import PrefixTuning, draw_keys
from harness.space import Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrefixedMethod(ModuleMethod):
    """Modules in the blocks, and keys and values of virtual tokens before the text's own, which start as prefix tuning's."""

    identity_at_start = False
    alone = "its virtual tokens are not part of a layer"

    def skip(self, situation: Situation) -> str | None:
        """There must be keys and values."""
        return PrefixTuning().skip(situation) or super().skip(situation)

    def reserved(self, params: Params) -> int:
        """The virtual tokens come before the text."""
        return params.integer("virtual_tokens")

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The same model without prefix and modules."""
        with super().detached(model), model.disable_adapter():
            yield model


def with_prefix(model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """The model wrapped by PEFT's prefix tuning; what trained before still does."""
    from peft import PrefixTuningConfig, get_peft_model

    # PEFT freezes all that the model has, the modules included.
    trained = [p for p in model.parameters() if p.requires_grad]
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": tokens, "init_weights": "zero"}
    wrapped: PreTrainedModel = get_peft_model(model, PrefixTuningConfig(**options))
    # Zero keys would have equal gradients and stay equal for good.
    draw_keys(wrapped)
    for parameter in trained:
        parameter.requires_grad_(True)
    return wrapped

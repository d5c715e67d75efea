"""Prefix tuning: learned keys and values in front of every layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._stacking import ADAPTER
from harness.methods.base import PeftMethod
from harness.space import Float, Integer, Params

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from transformers import PreTrainedModel


class PrefixTuning(PeftMethod):
    """Trains the keys and values of virtual tokens; the model stays as it is.

    Values start at zero, so that nothing random drowns what a small model attends to; keys are drawn, because tokens
    that start alike have the same gradients and stay alike for good. Even values of zero take attention from the text,
    so the logits move before the first step.
    """

    summary = "learned keys and values in front of every layer's own"
    paper = "Li and Liang 2021, arXiv 2101.00190"
    limits = (
        "On the testbed's 1M model, 200 steps reached 30% of full tuning's gain: "
        "keys and values in front of the text only steer what a model can do already."
    )
    mergeable = False
    covers = ()
    shares_base = True
    alone = "its virtual tokens are not part of a layer"
    identity_at_start = False
    trains = r"prompt_encoder\.default\.embedding\.weight"
    space = {
        # Without the paper's reparametrisation, which let it train at 5e-5, steps must be larger.
        "learning_rate": Float(1e-4, 1e-1, default=1e-2, log=True),
        "virtual_tokens": Integer(1, 200, default=20, log=True),
    }

    def skip(self, situation: Situation) -> str | None:
        """A model without attention has no keys and values."""
        if situation.model.has_attention:
            return None
        return f"a {situation.model.model_type} has no attention whose keys and values could be trained"

    def reserved(self, params: Params) -> int:
        """The virtual tokens come before the text."""
        return params.integer("virtual_tokens")

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PrefixTuningConfig:
        """Keys and values of the virtual tokens, trained directly."""
        from peft import PrefixTuningConfig

        tokens = setup.params.integer("virtual_tokens")
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, init_weights="zero")

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model with PEFT, and draw the keys."""
        attached = super().attach(model, setup)
        draw_keys(attached)
        return attached


def draw_keys(model: PreTrainedModel) -> None:
    """Draw the keys of a prefix of PEFT's from the standard normal distribution; values stay at zero."""
    from torch import nn

    config = model.peft_config[ADAPTER]
    # PEFT keeps keys and values of all layers in one embedding: layer, key or value, and width, from the outside in.
    rows = model.prompt_encoder[ADAPTER].embedding.weight.data
    nn.init.normal_(rows.view(config.num_virtual_tokens, config.num_layers, 2, config.token_dim)[:, :, 0])

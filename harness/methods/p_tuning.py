"""P-tuning: embeddings before every text that a small network makes of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._virtual import VirtualTokens
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from peft import PromptEncoderConfig
    from transformers import PreTrainedModel


class PTuning(VirtualTokens):
    """Trains virtual tokens and the network that they pass through."""

    summary = "embeddings before every text, made by a trained network"
    paper = "Liu et al. 2021, arXiv 2103.10385; rate of PEFT's benchmark"
    limits = (
        "On the testbed's 1M model, 200 steps reached 2% of full tuning's gain: "
        "text in front of the question only steers what a model can do already."
    )
    trains = r"prompt_encoder\.default\.(embedding|(mlp|lstm)_head)\..*"
    space = {
        "learning_rate": Float(1e-5, 1e-1, default=1e-3, log=True),
        "virtual_tokens": Integer(1, 200, default=20, log=True),
        "encoder": Choice(("MLP", "LSTM"), default="MLP", searched=False),
        "encoder_width": Integer(8, 4096, default=128, log=True, searched=False),
    }

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PromptEncoderConfig:
        """The virtual tokens and their network."""
        from peft import PromptEncoderConfig

        kind = setup.params.text("encoder")
        width = setup.params.integer("encoder_width")
        options = self.options(model, setup)
        # An LSTM reads the virtual tokens in order; an MLP takes each by itself.
        return PromptEncoderConfig(encoder_reparameterization_type=kind, encoder_hidden_size=width, **options)

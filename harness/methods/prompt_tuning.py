"""Prompt tuning: trained embeddings before every text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._virtual import VirtualTokens
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from peft import PromptTuningConfig
    from transformers import PreTrainedModel


class PromptTuning(VirtualTokens):
    """Trains the embeddings of virtual tokens, which start as those of random words of the vocabulary."""

    summary = "trained embeddings before every text"
    paper = "Lester et al. 2021, arXiv 2104.08691; start and rate of PEFT's benchmark"
    limits = (
        "On the testbed's 1M model, 200 steps reached 0% of full tuning's gain: "
        "text in front of the question only steers what a model can do already."
    )
    trains = r"prompt_encoder\.default\.embedding\.weight"
    space = {
        "learning_rate": Float(1e-4, 0.5, default=1e-3, log=True),
        "virtual_tokens": Integer(1, 200, default=20, log=True),
        "start": Choice(("vocabulary", "random"), default="vocabulary", searched=False),
    }

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PromptTuningConfig:
        """The virtual tokens and where they start."""
        from peft import PromptTuningConfig, PromptTuningInit

        sampled = setup.params.text("start") == "vocabulary"
        start = PromptTuningInit.SAMPLE_VOCAB if sampled else PromptTuningInit.RANDOM
        return PromptTuningConfig(prompt_tuning_init=start, **self.options(model, setup))

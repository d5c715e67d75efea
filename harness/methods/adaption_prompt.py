"""LLaMA-Adapter: trained tokens that the upper layers attend to through a gate that starts closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods.base import PeftMethod
from harness.space import Float, Integer

if TYPE_CHECKING:
    from peft import AdaptionPromptConfig
    from torch.nn import Module
    from transformers import PreTrainedModel


class AdaptionPrompt(PeftMethod):
    """Adds to the attention of each upper layer what a second attention to trained tokens gives, times a gate."""

    summary = "trained tokens behind gates in the attention of the upper layers"
    paper = "Zhang et al. 2023, arXiv 2303.16199; rate of PEFT's benchmark"
    limits = (
        "On the testbed's 1M model, 200 steps reached 11% of full tuning's gain: "
        "gated tokens in front of the text only steer what a model can do already."
    )
    mergeable = False
    covers = ()
    shares_base = True
    needs_float32 = True  # PEFT adds its float32 states to those of the base
    alone = "its tokens are not part of a layer that takes rows"
    trains = r".*\.adaption_(prompt|gate)"
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=5e-3, log=True),
        "prompt_tokens": Integer(1, 200, default=10, log=True),
        "upper_layers": Integer(1, 200, default=30, log=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """PEFT must know the attention of this architecture."""
        from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG as KNOWN

        known = not situation.model.model_type or situation.model.model_type in KNOWN
        return None if known else f"PEFT does not know the attention of a {situation.model.model_type}"

    def config(self, model: PreTrainedModel, setup: StageSetup) -> AdaptionPromptConfig:
        """No more layers than there are."""
        from peft import AdaptionPromptConfig

        wanted, most = setup.params.integer("upper_layers"), int(model.config.get_text_config().num_hidden_layers)
        layers, tokens = min(wanted, most), setup.params.integer("prompt_tokens")
        if layers < wanted:
            setup.note(f"upper_layers {wanted} was cut to {layers}: the model has no more layers")
        return AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=tokens, adapter_layers=layers)

    def layers(self, model: PreTrainedModel) -> dict[str, Module]:
        """None: its prompt acts on whole texts."""
        # The prompt acts on whole texts, so that no layer of it takes rows that do not depend on each other.
        return {}

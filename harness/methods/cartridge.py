"""Cartridge: keys and values of a text, computed once and then trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.axes.encoding import encoder
from harness.methods.prefix_tuning import PrefixTuning
from harness.space import Float, Integer

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


class Cartridge(PrefixTuning):
    """Starts as the keys and values of the first training rows; the first token, on which models rest, stays."""

    summary = "keys and values of training rows, trained in front of every layer's own"
    paper = "Eyuboglu et al. 2025, arXiv 2506.06266"
    limits = (
        "On the testbed's 1M model, 200 steps reached 11% of full tuning's gain: "
        "keys and values in front of the text only steer what a model can do already."
    )
    trains = r"prompt_encoder\.default\.trainable_embedding"
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=5e-3, log=True),
        "virtual_tokens": Integer(2, 200, default=20, log=True),
    }

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PeftConfig:
        """Keys and values, all but the first token's trained."""
        from peft import CartridgeConfig

        return CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=setup.params.integer("virtual_tokens"))

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Compute the base's keys and values of as much text as there are virtual tokens, over again if it is short."""
        import torch
        from peft import get_peft_model, initialize_kv_prefix_from_past_key_values

        tokens = setup.params.integer("virtual_tokens")
        ids: list[int] = []
        for row in setup.rows():
            # Not every row is tokenised, only as many as are needed.
            ids += encoder(setup).prompts([row.text])[0] if len(ids) < tokens else ()
        # There may be fewer tokens than virtual ones in all rows together, or none at all.
        ids = (ids or [0]) * (tokens // len(ids or [0]) + 1)
        with torch.no_grad():
            cache = model(input_ids=torch.tensor([ids[:tokens]], device=setup.device), use_cache=True).past_key_values
        attached: PreTrainedModel = get_peft_model(model, self.config(model, setup))
        initialize_kv_prefix_from_past_key_values(attached, past_key_values=cache)
        return attached

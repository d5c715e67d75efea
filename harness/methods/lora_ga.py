"""LoRA-GA: LoRA whose first step goes where full fine-tuning's would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._calibration import batches, drawn
from harness.methods._peft import unwarned
from harness.methods._residual import ResidualLora, fitting_rank
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraGa(ResidualLora):
    """Starts the factors from the singular vectors of the weights' gradients on calibration rows."""

    summary = "LoRA that starts from the gradients of full fine-tuning"
    paper = "Wang et al. 2024, arXiv 2407.05000"
    space = Lora.space | {"calibration_rows": Integer(1, 4096, default=256, log=True, searched=False)}

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The paper's directions and scale; two singular vectors are used for each rank."""
        from peft import LoraGAConfig

        # LoRA-GA gives `A` and `B` different singular vectors.
        rank = fitting_rank(model, setup, halved=True)
        return {"r": rank, "init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Find gradients, decompose them, and wrap the model."""
        from peft import get_peft_model
        from peft.tuners.lora.loraga import preprocess_loraga

        sequences = drawn(setup.rows(), setup.params.integer("calibration_rows"), setup)

        def run() -> None:
            for batch in batches(sequences, setup):
                model(**batch, use_cache=False).loss.backward()

        config = self.config(model, setup)
        with unwarned("Full backward hook is firing"):  # of the first layers, whose inputs need no gradient
            preprocess_loraga(model, config, run)
        # What the backward passes leave on the base's weights would take as much memory as these.
        model.zero_grad(set_to_none=True)
        return self.remember(get_peft_model(model, config))

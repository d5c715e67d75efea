"""CorDA: LoRA that starts from a decomposition of the weights which weighs directions by what flows through them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._calibration import batches, drawn
from harness.methods._residual import ResidualLora, fitting_rank
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Choice, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Corda(ResidualLora):
    """Decomposes `W C`, where `C` is the covariance of a layer's inputs on calibration rows.

    `ipm` trains the directions that the task's rows use most; `kpm` those that the base's own texts use least.
    """

    summary = "LoRA that starts from a decomposition weighted by its inputs' covariance"
    paper = "Yang et al. 2024, arXiv 2406.05223"
    space = Lora.space | {
        "corda_mode": Choice(("ipm", "kpm"), default="ipm", searched=False),
        # the paper's number
        "calibration_rows": Integer(1, 4096, default=256, log=True, searched=False),
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Which directions are trained."""
        from peft.tuners.lora.config import CordaConfig

        mode = setup.params.text("corda_mode")
        rank = fitting_rank(model, setup)
        return {"r": rank, "init_lora_weights": "corda", "corda_config": CordaConfig(corda_method=mode)}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Find covariances, decompose, and wrap the model."""
        from peft import get_peft_model
        from peft.tuners.lora.corda import preprocess_corda

        rows = setup.rows() if setup.params.text("corda_mode") == "ipm" else setup.corpus()
        sequences = drawn(rows, setup.params.integer("calibration_rows"), setup)
        config = self.config(model, setup)
        preprocess_corda(model, config, run_model=lambda: _run(model, batches(sequences, setup, 1)))
        return self.remember(get_peft_model(model, config))


def _run(model: PreTrainedModel, rows: Iterable[dict[str, Tensor]]) -> None:
    import torch

    with torch.no_grad():
        for row in rows:
            model(input_ids=row["input_ids"], use_cache=False)

"""RandLoRA: an update of full rank from random bases, whose weights are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods._residual import fitting_rank
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RandLora(LayerMethod):
    """Sums as many scaled products of random bases as it takes for full rank: a smaller `rank` trains more."""

    summary = "trained weights of random low-rank bases that add up to full rank"
    paper = "Albert et al. 2025, arXiv 2502.00987"
    kind = "RandLoraConfig"
    trains = r".*\.randlora_(lambda|gamma)\.default"
    # Its product is an autograd function of its own, which torch.func.vmap cannot map.
    maps = False
    space = {
        "learning_rate": Float(1e-6, 1e-2, default=1e-4, log=True),
        "rank": Integer(2, 128, default=32, log=True),
        # of the rank, as the paper scales
        "alpha_ratio": Float(0.1, 40.0, default=20.0, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank, and the scale that goes with it."""
        rank = fitting_rank(model, setup)
        return {"r": rank, "randlora_alpha": setup.params.number("alpha_ratio") * rank}

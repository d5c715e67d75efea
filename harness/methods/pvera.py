"""PVeRA: VeRA whose inner vector is a distribution that training samples from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PVera(LayerMethod):
    """Trains means and variances of VeRA's inner vector; the means are what is merged.

    A divergence of that distribution from a prior is no part of the loss: PEFT does not give it.
    """

    summary = "VeRA that samples its inner vector while it trains"
    paper = "Fillioux et al. 2025, arXiv 2512.07703; rate of PEFT's benchmark"
    limits = (
        "On the testbed's 1M model, 200 steps reached 0% of full tuning's gain: "
        "likely because it draws noise in every pass."
    )
    kind = "PveraConfig"
    trains = r".*\.pvera_lambda_[bd]\.default"
    alone = "it draws random numbers in every pass"
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=3e-3, log=True),
        "rank": Integer(4, 1024, default=256, log=True),
        "start_scale": Float(1e-3, 1.0, default=0.1, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank, and where the inner vector starts."""
        return {"r": setup.params.integer("rank"), "d_initial": setup.params.number("start_scale")}

"""LoHa: an update that is the elementwise product of two low-rank ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoHa(LayerMethod):
    """Adds `(B1 A1) * (B2 A2)`, whose rank is up to the square of each factor's."""

    summary = "elementwise product of two low-rank updates"
    paper = "Hyeon-Woo et al. 2021, arXiv 2108.06098"
    kind = "LoHaConfig"
    trains = r".*\.hada_w[12]_[ab]\.default"
    # Its product is an autograd function of its own, which torch.func.vmap cannot map.
    maps = False
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "rank": Integer(1, 128, default=8, log=True),
        "alpha": Float(1.0, 512.0, default=8.0, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank and scale."""
        return {"r": setup.params.integer("rank"), "alpha": setup.params.number("alpha")}

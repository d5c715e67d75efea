"""DeLoRA: LoRA whose update has a trained length and normalised directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DeLora(LayerMethod):
    """Adds `lambda / rank |W| B D A`, where `D` divides by the lengths of the rank-one parts."""

    summary = "normalised low-rank updates with a trained length"
    paper = "Bini et al. 2025, arXiv 2503.18225; rate of PEFT's benchmark"
    kind = "DeloraConfig"
    trains = r".*\.delora_(A|B|lambda)\.default"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "rank": Integer(1, 256, default=8, log=True),
        "bound": Integer(1, 100, default=15, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank and first length."""
        # The bound is where the trained length starts; PEFT wants a whole number.
        return {"r": setup.params.integer("rank"), "delora_lambda": setup.params.integer("bound")}

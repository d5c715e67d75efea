"""IA3: one learned factor per key, value and inner feed-forward feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._linear import uses_conv1d
from harness.methods.base import PeftMethod
from harness.space import Float

if TYPE_CHECKING:
    from peft import IA3Config
    from transformers import PreTrainedModel


class Ia3(PeftMethod):
    """Rescales activations by vectors that start at one."""

    summary = "learned factors on keys, values and feed-forward features"
    paper = "Liu et al. 2022, arXiv 2205.05638"
    limits = (
        "On the testbed's 1M model, 200 steps reached 24% of full tuning's gain: "
        "it only rescales what is there; rates near the highest of its space did best."
    )
    trains = r".*\.ia3_l\.default"
    shares_base = True
    alone = ""
    moves_biases = True
    space = {"learning_rate": Float(1e-4, 1e-1, default=3e-3, log=True)}

    def skip(self, situation: Situation) -> str | None:
        """PEFT must know where keys, values and the feed-forward layer of this architecture are."""
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        known = not situation.model.model_type or situation.model.model_type in KNOWN
        return None if known else f"PEFT does not say where IA3 goes in a {situation.model.model_type}"

    def config(self, model: PreTrainedModel, setup: StageSetup) -> IA3Config:
        """IA3 where PEFT places it for this architecture."""
        from peft import IA3Config

        return IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=uses_conv1d(model))

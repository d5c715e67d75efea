"""Lily: low-rank updates whose outer factors are shared by all layers and mixed by a router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.methods._peft import TARGET, LayerMethod
from harness.plugins import StageSetup
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lily(LayerMethod):
    """Each layer's inner factor feeds a mixture of a few outer ones; the mixture depends on the input."""

    summary = "low-rank updates with outer factors shared and mixed by a router"
    paper = "Zhong et al. 2024, arXiv 2407.09946"
    kind = "LilyConfig"
    trains = r".*\.lily_(A|B|router)\.default\.weight"
    takes_transposed = False
    mergeable = False
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=1e-4, log=True),
        "rank": Integer(1, 512, default=32, log=True),
        "outer_factors": Integer(1, 16, default=2, searched=False),
        "shared_by": Integer(1, 8, default=1, searched=False),
        "scaling": Float(0.1, 32.0, default=2.0, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> dict[str, Any]:
        """Rank, factors, and how many layers share an inner one."""
        params = setup.params
        return {
            "r": int(params["rank"]),
            "num_B": int(params["outer_factors"]),
            "stride_A": int(params["shared_by"]),
            "scaling": float(params["scaling"]),
        }

"""AdaMSS: low-rank updates inside clusters of the weights' singular directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import capped, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdaMss(LayerMethod):
    """Decomposes the weights, clusters the decomposed space, and trains a small update in each cluster.

    The paper stops training the clusters that matter least as it goes on; here all of them train to the end.
    """

    summary = "small updates inside clusters of the weights' singular directions"
    paper = "Zheng et al. 2025, openreview.net/forum?id=8ZdWmpYxT0"
    kind = "AdamssConfig"
    trains = r".*\.adamss_[AB]\.default\.\d+"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 1e-1, default=1e-3, log=True),
        "decomposed": Integer(2, 1024, default=100, log=True, searched=False),
        "subspaces": Integer(1, 32, default=5, log=True),
        "rank": Integer(1, 16, default=1, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Directions, clusters, and each cluster's rank."""
        params = setup.params
        # A weight has no more singular directions than its narrower side.
        most = min(min(sizes) for sizes in target_shapes(model, setup))
        return {
            "r": capped(params.integer("decomposed"), most, setup, "decomposed"),
            "num_subspaces": params.integer("subspaces"),
            "subspace_rank": params.integer("rank"),
        }

"""EWC: weights are pulled back to where they started, the harder the more the base's corpus depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.records.trial import derive_seed
from harness.retention._corpus import corpus_tokens, diagonal_fisher
from harness.retention._weights import WeightPenalty
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from torch import Tensor


class ElasticWeightConsolidation(WeightPenalty):
    """Squared distances count by the diagonal of the base's Fisher information, estimated on rows of its corpus.

    `ewc_labels` sampled draws the predicted tokens from the base itself, which is the Fisher information; empirical
    takes the texts' own, which is cheaper to explain and biased. The estimate is a mean over tokens.
    """

    summary = "pulls weights back the harder the more the base's corpus depends on them"
    paper = "Kirkpatrick et al. 2017, arXiv 1612.00796; on language models: Šliogeris et al. 2025, arXiv 2505.05946"
    requires = "a corpus of what the base knows, or texts sampled from it"
    space = {
        "ewc_strength": Float(1e-2, 1e6, default=1e3, log=True),
        "ewc_rows": Integer(1, 4096, default=256, log=True, searched=False),
        "ewc_labels": Choice(("sampled", "empirical"), default="sampled", searched=False),
    }

    def importances(self, moved: Mapping[str, Tensor], setup: StageSetup) -> Mapping[str, Tensor]:
        """The base's Fisher information."""
        # In eval mode, since dropout would add its own noise to the gradients.
        texts = corpus_tokens(setup, setup.params.integer("ewc_rows"))
        seed = derive_seed(setup.seed, "fisher") if setup.params.text("ewc_labels") == "sampled" else None
        return diagonal_fisher(setup.load_base().float().eval(), moved.keys(), texts, seed)

    def strength(self, setup: StageSetup) -> float:
        """The parameter `ewc_strength`."""
        return setup.params.number("ewc_strength")

"""LoftQ: LoRA that starts from what quantising the base to few bits loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._residual import fitting_rank
from harness.methods.base import Method, Options
from harness.methods.lora import Lora
from harness.space import Choice, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Loftq(Lora):
    """Alternates between quantising `W - B A` and decomposing what that loses; the base keeps the quantised values.

    They are kept in full precision: what quantisation costs in quality is there, the memory it saves is not.
    """

    summary = "LoRA that starts from what quantising the base to few bits loses"
    paper = "Li et al. 2023, arXiv 2310.08659"
    requires = "a GPU"
    shares_base = False
    unmerged = False  # it belongs to the quantised base
    alone = "what is quantised differs from trial to trial"
    identity_at_start = False
    space = Lora.space | {
        "bits": Choice((4, 8), default=4, searched=False),
        "alternations": Integer(1, 10, default=1, searched=False),
    }
    detached = Method.detached

    def skip(self, situation: Situation) -> str | None:
        """PEFT quantises on a GPU."""
        return None if situation.device == "cuda" else "PEFT computes LoftQ on a GPU only"

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """How often, and to how many bits."""
        bits, alternations = setup.params.integer("bits"), setup.params.integer("alternations")
        config = {"loftq_bits": bits, "loftq_iter": alternations}
        return {"r": fitting_rank(model, setup), "init_lora_weights": "loftq", "loftq_config": config}

    deltas = Method.deltas  # not known: the base's weights are gone

"""KaSA: LoRA with learned singular values, on weights whose smallest singular values were dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._linear import TRANSPOSED, capped, target_shapes
from harness.methods.base import Method, Options
from harness.methods.lora import Lora
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class Kasa(Lora):
    """Trains `B diag(d) A`; penalties keep `d` small and the factors near orthonormal.

    The base loses as many of its smallest singular values as the rank, so that it is not the base any more.
    """

    summary = "LoRA with learned singular values, on a base without its smallest ones"
    paper = "Wang et al. 2024, arXiv 2412.06071"
    trains = r".*\.(lora_[AB]\.default\.weight|lora_diag\.default)"
    shares_base = False
    alone = "it drops singular values of the base"
    identity_at_start = False
    space = Lora.space | {
        # both as in the paper's reference configuration for GLUE
        "singular_decay": Float(0.0, 1.0, default=1e-4, searched=False),
        "orthogonality": Float(0.0, 1.0, default=1e-3, searched=False),
    }
    detached = Method.detached

    def skip(self, situation: Situation) -> str | None:
        """PEFT decomposes plain weights only."""
        refused = situation.model.model_type in TRANSPOSED
        return (
            f"PEFT's KaSA takes no transposed linear layers, as those of a {situation.model.model_type} are"
            if refused
            else None
        )

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """At least one singular value of each weight must stay."""
        from peft import KasaConfig

        # PEFT drops as many singular values as the rank: with all of them nothing would be left of the weight.
        most = min(min(sizes) for sizes in target_shapes(model, setup)) - 1
        config = KasaConfig(
            beta=setup.params.number("singular_decay"),
            gamma=setup.params.number("orthogonality"),
        )
        return {"r": capped(setup.params.integer("rank"), most, setup, "rank"), "kasa_config": config}

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor] | None:
        """What PEFT leaves to the loop: both penalties, summed over layers."""
        # PEFT's own method, with a leading underscore, is what its documentation tells loops to call.
        loss: Callable[[], Tensor] = model.base_model._get_kasa_loss
        return loss

    deltas = Method.deltas  # not known: the base's weights are gone

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Its trials run alone."""
        return None

"""LoRA on a base that computes in eight-bit integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._linear import left_unquantised
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Float, Params

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class QLoraInt8(Lora):
    """Quantises weights by rows and inputs by tokens.

    With a threshold above 0, features in which any token of a batch exceeds it stay in 16 bits, as the paper has it; then
    a row's score depends on the rows beside it.
    No plain weights compute what an eight-bit layer does, since inputs are rounded, too: the adapter stays beside it.
    """

    summary = "LoRA on a base quantised to eight bits"
    paper = "Dettmers et al. 2022, arXiv 2208.07339"
    mergeable = False
    unmerged = False  # it belongs to the quantised base
    alone = "rounding its inputs to integers magnifies differences of the last bit"
    space = Lora.space | {"outlier_threshold": Float(0.0, 100.0, default=0.0, searched=False)}

    def skip(self, situation: Situation) -> str | None:
        """Experts are not quantised."""
        return left_unquantised(situation)

    def load_options(self, params: Params, device: str) -> Options:
        """Quantise while loading; bitsandbytes would say at every layer that it computes in 16 bits."""
        import logging

        from transformers import BitsAndBytesConfig

        # A message at every layer of every pass would bury everything else.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        # Above 0 the score of a row depends on its batch, so the default differs from the paper's 6.
        threshold = params.number("outlier_threshold")
        quantised = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
        return super().load_options(params, device) | {"quantization_config": quantised}

    def weight_bytes(self, params: Params, stored: str) -> float:
        """Eight bits; the scale of a row is shared by many."""
        return 1.0

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """None: what it trains is not merged."""
        return {}

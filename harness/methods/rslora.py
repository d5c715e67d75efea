"""rsLoRA: LoRA whose update is scaled by the square root of its rank, so that higher ranks learn as fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Options
from harness.methods.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RsLora(Lora):
    """Scales by `alpha / sqrt(rank)`. RoRA (Liu et al. 2025, arXiv 2501.04315) proposes the same."""

    summary = "LoRA scaled by alpha / sqrt(rank), which is also what RoRA proposes"
    paper = "Kalajdzievski 2023, arXiv 2312.03732"
    covers = Lora.covers

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Scale by the root of the rank."""
        return {"use_rslora": True}

"""DoRA: LoRA on the direction of each weight column, with its magnitude learned apart."""

from __future__ import annotations

from typing import Any

from harness.methods.lora import Lora


class Dora(Lora):
    """Decomposes each weight into magnitude and direction; the direction gets the low-rank update."""

    summary = "LoRA on the weights' directions, magnitudes trained apart"
    paper = "Liu et al. 2024, arXiv 2402.09353"
    trains = r".*\.(lora_[AB]\.default\.weight|lora_magnitude_vector\.default\.weight)"

    def options(self) -> dict[str, Any]:
        """Weight decomposition on."""
        return {"use_dora": True}

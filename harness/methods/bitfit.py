"""BitFit: only the biases move."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.errors import SpecError
from harness.methods.base import Method
from harness.space import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BitFit(Method):
    """Trains every bias that the base has, those of norms included."""

    summary = "trains the biases and nothing else"
    paper = "Ben Zaken et al. 2021, arXiv 2106.10199"
    requires = "layers with biases"
    trains = r"(.*\.)?bias"
    covers = ("biases",)
    alone = ""
    # The paper searches 1e-4 to 1e-3 on BERT.
    space = {"learning_rate": Float(1e-4, 1e-1, default=1e-3, log=True)}

    def skip(self, situation: Situation) -> str | None:
        """Many newer models have no biases."""
        if situation.model.biases != 0:
            return None
        return f"a {situation.model.model_type} has no biases to train: BEFT adds some"

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze the rest.

        Raises:
            SpecError: When there are no biases.
        """
        biases = {name for name, _ in model.named_parameters() if re.fullmatch(self.trains, name)}
        if not biases:
            raise SpecError(f"bitfit needs biases to train, but a {model.config.model_type} has none: use BEFT")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in biases)
        return model

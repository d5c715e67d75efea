"""PEANuT: an update that a small network makes of the weights themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Peanut(LayerMethod):
    """Adds what a network with one hidden layer of `rank` units gives for each column of the frozen weights."""

    summary = "an update that a small network makes of the frozen weights"
    paper = "Zhong et al. 2024, arXiv 2410.01870"
    kind = "PeanutConfig"
    trains = r".*\.peanut_(A|B|encoders|decoders)\.default.*\.weight"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=1e-4, log=True),
        "rank": Integer(1, 256, default=32, log=True),
        "scaling": Float(0.1, 64.0, default=2.0, log=True, searched=False),
        "depth": Choice((0, 1, 2), default=0, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The network's width and depth, and the update's scale."""
        params = setup.params
        return {"r": params.integer("rank"), "scaling": params.number("scaling"), "depth": params.integer("depth")}

"""WaveFT: an update with few trained wavelet coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import capped, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WaveFt(LayerMethod):
    """Adds the inverse wavelet transform (Haar) of a sparse matrix, whose places are the same in every trial."""

    summary = "trained wavelet coefficients of the update at random places"
    paper = "Bilican et al. 2025, arXiv 2505.12532"
    kind = "WaveFTConfig"
    trains = r".*\.waveft_spectrum\.default"
    # PEFT writes the spectrum into a matrix of zeros, which torch.func.vmap cannot map.
    maps = False
    space = {
        "learning_rate": Float(1e-5, 1e-1, default=1e-4, log=True),
        "frequencies": Integer(10, 20000, default=2592, log=True),
        "scaling": Float(1.0, 1000.0, default=25.0, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """No more coefficients than the smallest layer has weights."""
        most = min(inputs * outputs for inputs, outputs in target_shapes(model, setup))
        count = capped(setup.params.integer("frequencies"), most, setup, "frequencies")
        return {"n_frequency": count, "scaling": setup.params.number("scaling")}

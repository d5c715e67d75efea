"""FourierFT: an update with few trained frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import capped, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FourierFt(LayerMethod):
    """Adds the inverse Fourier transform of a sparse spectrum, whose places are the same in every trial.

    PEFT draws the spectrum at random; it starts at zero here, so that the model starts as the base.
    """

    summary = "trained coefficients at random frequencies of the update"
    paper = "Gao et al. 2024, arXiv 2405.03003"
    kind = "FourierFTConfig"
    trains = r".*\.fourierft_spectrum\.default"
    # PEFT writes the spectrum into a matrix of zeros, which torch.func.vmap cannot map.
    maps = False
    space = {
        "learning_rate": Float(1e-4, 1.0, default=1e-2, log=True),
        "frequencies": Integer(10, 20000, default=1000, log=True),
        "scaling": Float(1.0, 1000.0, default=150.0, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """No more frequencies than the smallest layer has weights."""
        most = min(inputs * outputs for inputs, outputs in target_shapes(model, setup))
        count = capped(setup.params.integer("frequencies"), most, setup, "frequencies")
        # `init_weights` true is zero, PEFT's default false a normal draw.
        return {"n_frequency": count, "scaling": setup.params.number("scaling"), "init_weights": True}

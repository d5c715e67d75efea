"""LN tuning: only the norms' weights and biases move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import unwarned
from harness.methods._stacking import ADAPTER
from harness.methods.base import PeftMethod
from harness.space import Float

if TYPE_CHECKING:
    from peft import LNTuningConfig
    from torch import Tensor
    from transformers import PreTrainedModel


class LnTuning(PeftMethod):
    """Trains copies of every norm of the model."""

    summary = "trains the norms only"
    paper = "Zhao et al. 2023, arXiv 2312.11420"
    limits = (
        "On the testbed's 1M model, 200 steps reached 4% of full tuning's gain: "
        "norms hold few numbers, which only rescale what is there."
    )
    trains = r".*\.ln_tuning_layers\.default\.(weight|bias)"
    covers = ("norms",)
    shares_base = True
    needs_float32 = True  # norms in float32 between layers in bfloat16 fail outside autocast
    alone = ""
    space = {"learning_rate": Float(1e-5, 1e-1, default=1e-3, log=True)}

    def config(self, model: PreTrainedModel, setup: StageSetup) -> LNTuningConfig:
        """All norms, whatever they are called."""
        from peft import LNTuningConfig

        return LNTuningConfig(task_type="CAUSAL_LM", target_modules=_norms(model))

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model; PEFT warns of every norm that it is no linear layer."""
        # PEFT expects linear layers in its target list and warns of each norm.
        with unwarned("Unsupported layer type"):
            return super().attach(model, setup)

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The copies less the norms that they stand for."""
        changes = {}
        for name, layer in self.layers(model).items():
            path, norms = name.removeprefix("base_model.model."), layer.ln_tuning_layers
            # PEFT keeps a whole trained copy of each norm rather than a difference.
            trained = dict(norms[ADAPTER].named_parameters())  # type: ignore[index, union-attr]
            for key, value in layer.get_base_layer().named_parameters():  # type: ignore[operator]
                changes[f"{path}.{key}"] = trained[key] - value
        return changes


def _norms(model: PreTrainedModel) -> list[str]:
    """Full names of the modules that normalise."""
    return [
        name
        for name, module in model.named_modules()
        # By class: LayerNorm, RMSNorm and the architectures' own all have it in their name.
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    ]

"""Poly: a LoRA whose factors are a task's mixture of several skills' factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from harness.axes.contract import Situation, StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods._stacking import ADAPTER
from harness.methods.base import Options
from harness.nn.copies import float32_copy
from harness.space import Float, Integer

if TYPE_CHECKING:
    from peft.tuners.poly.layer import PolyLayer
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


class Poly(LayerMethod):
    """Adds `A B / r` to each layer, A and B being averages of the skills', weighed by the task's trained logits.

    The weights are `w_s / sum w`, w being drawn in training for each row and layer from a relaxed Bernoulli
    distribution of these logits, and their sigmoid afterwards. A trial trains one task, so that no skills are shared:
    what remains is a LoRA of rank r that trains as a random mixture, and that can be merged.
    """

    summary = "LoRA of factors that are a random mixture of several skills' while it trains; one task only"
    paper = "Ponti et al. 2022, arXiv 2202.13914"
    kind = "PolyConfig"
    trains = r".*\.(poly_lora_[AB]\.default|poly_router\.default\.module_logits)"
    unmerged = False  # PEFT asks who calls it for the task of each row
    alone = "it draws random numbers in every pass"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "rank": Integer(1, 128, default=4, log=True),
        "skills": Integer(2, 64, default=8, log=True),
        "target": TARGET,
    }

    def skip(self, situation: Situation) -> str | None:
        """PEFT mixes skills for each row, and experts that all tokens share see tokens without their rows."""
        if "experts" in situation.model.parts and situation.params.text("target", "all") != "attention":
            return "PEFT's Poly takes rows of tokens, which layers beside experts do not get: set target to attention"
        return super().skip(situation)

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """One task; factors of one piece."""
        return super().options(model, setup) | {"n_tasks": 1, "n_skills": setup.params.integer("skills"), "n_splits": 1}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model, and tell its layers with every row that it is of the only task."""
        attached = super().attach(model, setup)
        # PEFT asks for `task_ids` in each forward call; a hook gives them, so that callers need not know.
        for layer in self.layers(attached).values():
            layer.register_forward_pre_hook(_only_task, with_kwargs=True)
        return attached

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """`A B / r` of each layer, with the weights that it has after training."""
        import torch

        deltas = {}
        for name, layer in self.layers(model).items():
            poly = cast("PolyLayer", layer)
            # As PEFT has it outside of training: the sigmoid of the logits, normalised.
            weights = torch.sigmoid(poly.poly_router[ADAPTER].module_logits[0])
            down, up = (
                torch.einsum("s,sij->ij", weights / weights.sum(), factor[ADAPTER][0])
                for factor in (poly.poly_lora_A, poly.poly_lora_B)
            )
            deltas[f"{name.removeprefix('base_model.model.')}.weight"] = (down @ up).T / poly.r[ADAPTER]
        return deltas

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """A copy of the base that the deltas are added to, which PEFT does not offer."""
        import torch

        plain: PreTrainedModel = float32_copy(model).unload()
        with torch.no_grad():
            for name, delta in self.deltas(model).items():
                plain.get_parameter(name).add_(delta)
        return plain


def _only_task(layer: Module, arguments: tuple[Tensor, ...], options: Options) -> tuple[tuple[Tensor, ...], Options]:
    """Number 0 for every row."""
    import torch

    rows = arguments[0]
    return arguments, options | {"task_ids": rows.new_zeros(len(rows), dtype=torch.long)}

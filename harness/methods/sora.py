"""SoRA: LoRA with a gate on each rank, which a proximal step closes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._delta import DeltaMethod, placed
from harness.methods._linear import linear_layers, uses_conv1d
from harness.nn.optimizer import learning_rate
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.methods._changes import Change


class Sora(DeltaMethod):
    """Adds `B diag(g) A`; after every step each gate moves towards zero by the step's rate times `gate_penalty`.

    A gate that reaches zero is exactly zero, and its rank has no effect. How many are left is noted at the end.
    """

    summary = "low-rank updates whose ranks a soft threshold closes one by one"
    paper = "Ding et al. 2023, arXiv 2311.11696"
    trains = r".*\.parametrizations\.weight\.0\.(down|gate|up)"
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=8e-4, log=True),
        "rank": Integer(1, 128, default=8, log=True),
        "gate_penalty": Float(1e-3, 100.0, default=1.0, log=True),
        "target": Choice(("all", "attention", "mlp"), default="all", searched=False),
    }

    def changes(self, model: PreTrainedModel, setup: StageSetup) -> Mapping[str, Change]:
        """A gated low-rank product on every chosen layer."""
        from harness.methods._changes import GatedLowRank

        # A transposed layer takes the product transposed.
        self.setup, rank, transposed = setup, setup.params.integer("rank"), uses_conv1d(model)
        names = linear_layers(model, setup.params.text("target"))
        return {name: GatedLowRank(model.get_submodule(name).weight.shape, rank, transposed) for name in names}

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Soft threshold: the proximal step of `gate_penalty * |g|` at the step's learning rate."""
        import torch

        setup, gates = self.setup, [change.get_parameter("gate") for change in placed(model).values()]
        threshold = learning_rate(setup.params, step - 1, setup.steps) * setup.params.number("gate_penalty")
        with torch.no_grad():
            for gate in gates:
                # The proximal step sets gates to exactly zero, which a gradient of the penalty never does.
                gate.copy_(torch.nn.functional.softshrink(gate, threshold))
        if step == setup.steps:
            left = sum(int((gate != 0).sum()) for gate in gates)
            setup.note(f"{left} of {sum(len(gate) for gate in gates)} ranks are left")

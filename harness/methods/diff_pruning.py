"""Diff pruning: a difference to every weight, most of which is driven to exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._delta import DeltaMethod, placed
from harness.methods._linear import linear_layers
from harness.records.trial import derive_seed
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from harness.methods._changes import Change, MaskedChange


class DiffPruning(DeltaMethod):
    """Trains a difference `z w` for each linear weight, z hard-concrete, with a penalty on how many z are not zero.

    z is the product of a variable for each weight and one for each matrix (structured diff pruning). One draw of z
    serves all passes of a step; scoring uses z without noise, so that most of the difference is exactly zero once the
    penalty has closed it. What share is left is noted at the end of the stage: the paper then keeps only the largest to
    reach a share set before, and trains those on, which is left out here.
    """

    summary = "trains a sparse difference to every linear weight"
    paper = "Guo et al. 2020, arXiv 2012.07463"
    trains = r".*\.parametrizations\.weight\.0\.(difference|logits|logit)"
    space = {
        "learning_rate": Float(1e-5, 1e-2, default=1e-4, log=True),
        "l0_penalty": Float(1e-8, 1e-3, default=1.25e-7, log=True),
        "gate_learning_rate": Float(1e-3, 1.0, default=0.1, log=True, searched=False),
    }

    def changes(self, model: PreTrainedModel, setup: StageSetup) -> Mapping[str, Change]:
        """A masked difference on every linear layer of the blocks."""
        from harness.methods._changes import MaskedChange

        self.setup = setup
        return {name: MaskedChange(model.get_submodule(name).weight.shape) for name in linear_layers(model, "all")}

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW; the variables' logits have a rate of their own and do not decay."""
        import torch

        def group(names: set[str], rate: str, decay: float) -> dict[str, object]:
            members = [p for n, p in model.named_parameters() if p.requires_grad and n.rpartition(".")[2] in names]
            return {"params": members, "lr": setup.params.number(rate), "weight_decay": decay}

        differences = group({"difference"}, "learning_rate", setup.params.number("weight_decay"))
        return torch.optim.AdamW([differences, group({"logits", "logit"}, "gate_learning_rate", 0.0)], fused=True)

    def before_step(self, model: PreTrainedModel, step: int) -> None:
        """Draw the step's noise by seed and step."""
        import torch

        # One draw for all passes of a step, or gradients of the passes would belong to different masks.
        generator = torch.Generator().manual_seed(derive_seed(self.setup.seed, "diff_pruning", step))
        for change in _masked(model).values():
            change.draw(generator)

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor]:
        """`l0_penalty` times the expected number of variables that are not zero."""
        import torch

        changes, weight = _masked(model).values(), setup.params.number("l0_penalty")
        return lambda: weight * torch.stack([change.open() for change in changes]).sum()

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """At the end, note what share of the weights differs from the base's."""
        if step == self.setup.steps:
            # In eval mode there is no noise: these are the gates that scoring uses.
            open_gates = [(change.eval().gates() != 0) for change in _masked(model).values()]
            share = sum(int(gate.sum()) for gate in open_gates) / sum(gate.numel() for gate in open_gates)
            self.setup.note(f"{share:.4f} of the linear weights may differ from the base's")


def _masked(model: PreTrainedModel) -> dict[str, MaskedChange]:
    from harness.methods._changes import MaskedChange

    return {name: change for name, change in placed(model).items() if isinstance(change, MaskedChange)}

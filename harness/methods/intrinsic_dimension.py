"""Intrinsic dimension (SAID): a few numbers, projected at random onto all linear weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._blocks import layer_list
from harness.methods._delta import DeltaMethod
from harness.methods._linear import linear_layers
from harness.records.trial import derive_seed
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.methods._changes import Change


class IntrinsicDimension(DeltaMethod):
    """Trains `dimension` numbers in all: one factor for each layer, and the rest projected onto every linear weight.

    The projection is Fastfood, drawn by the stage's seed; embeddings, norms and biases stay.
    """

    summary = "trains a few numbers that a random projection spreads over all linear weights"
    paper = "Aghajanyan et al. 2020, arXiv 2012.13255; Fastfood: Le et al. 2014, arXiv 1408.3060"
    alone = "its numbers are shared by all layers"
    trains = r"intrinsic_(values|factors)"
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=1e-2, log=True),
        "dimension": Integer(256, 100_000, default=2000, log=True),
    }

    def changes(self, model: PreTrainedModel, setup: StageSetup) -> Mapping[str, Change]:
        """The same numbers on every linear layer of the blocks, each with a projection of its own."""
        import torch

        from harness.methods._changes import FastfoodChange

        root, layers = layer_list(model)
        # The factors count among the `dimension` numbers, as in the paper's SAID.
        values = torch.zeros(setup.params.integer("dimension") - len(layers), device=model.device)
        # On the model, since all layers share them; each layer holds a reference that torch does not register.
        model.register_parameter("intrinsic_values", torch.nn.Parameter(values))
        model.register_parameter("intrinsic_factors", torch.nn.Parameter(torch.ones(len(layers), device=model.device)))
        # On the CPU, so that the projection does not depend on the device.
        generator = torch.Generator().manual_seed(derive_seed(setup.seed, "intrinsic_dimension"))
        changes: dict[str, Change] = {}
        for name in linear_layers(model, "all"):
            if not name.startswith(f"{root}."):  # some OPTs have two more, before and behind the blocks
                continue
            shape, index = model.get_submodule(name).weight.shape, int(name.removeprefix(f"{root}.").partition(".")[0])
            shared = model.get_parameter("intrinsic_values"), model.get_parameter("intrinsic_factors")
            changes[name] = FastfoodChange(shape, *shared, index, generator)
        return changes

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """A copy with the changed weights, without the numbers."""
        merged = super().merge(model, setup)
        del merged.intrinsic_values, merged.intrinsic_factors
        return merged

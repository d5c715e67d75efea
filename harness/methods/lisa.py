"""LISA: full fine-tuning of a few layers at a time, drawn anew every period."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._blocks import layer_list
from harness.methods._partial import PartialMethod
from harness.records.trial import derive_seed
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lisa(PartialMethod):
    """Embeddings, final norm and output layer always train; of the layers, `active_layers` drawn every `period` steps."""

    summary = "trains embeddings, head and a few layers that are drawn anew every period"
    paper = "Pan et al. 2024, arXiv 2403.17919"
    requires = "two layers or more"
    space = {
        # The rates of full fine-tuning; the authors take 1e-5 to 5e-5 on 7B models.
        "learning_rate": Float(1e-6, 3e-3, default=5e-5, log=True),
        "active_layers": Integer(1, 8, default=2),
        "period": Integer(1, 200, default=20, log=True),
    }

    def skip(self, situation: Situation) -> str | None:
        """A single layer leaves nothing to draw."""
        return "a model of one layer has no layers to draw from" if situation.model.layers == 1 else None

    def movable(self, model: PreTrainedModel, setup: StageSetup) -> Iterable[str]:
        """Every parameter; a number of active layers that leaves none at rest is cut, which is noted."""
        root, layers = layer_list(model)
        wanted = setup.params.integer("active_layers")
        # With every layer active nothing would rest, which is full fine-tuning.
        self.active = max(1, min(wanted, len(layers) - 1))
        if self.active < wanted:
            setup.note(f"active_layers was cut from {wanted} to {self.active} of {len(layers)} layers")
        self.names = [
            {f"{root}.{index}.{name}" for name, _ in layer.named_parameters()} for index, layer in enumerate(layers)
        ]
        return {name for name, _ in model.named_parameters()}

    def drawn(self, step: int) -> list[int]:
        """Layers that train in a step: a function of the stage's seed and the period."""
        period = (step - 1) // self.setup.params.integer("period")
        # By period and not by state: a trial that goes on from a checkpoint draws the same layers.
        return random.Random(derive_seed(self.setup.seed, "lisa", period)).sample(range(len(self.names)), self.active)

    def resting(self, model: PreTrainedModel, step: int) -> set[str]:
        """The layers that were not drawn."""
        active = set(self.drawn(step))
        return set().union(*(names for index, names in enumerate(self.names) if index not in active))

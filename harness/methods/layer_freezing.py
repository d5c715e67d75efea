"""Layer freezing: some of the layers move, the rest stays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._blocks import layer_list
from harness.methods._partial import PartialMethod
from harness.models.facts import ModelFacts
from harness.space import Choice, Float, Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LayerFreezing(PartialMethod):
    """Trains the layers at one end of the model; embeddings, output layer and final norm stay.

    With `gradual`, training begins with the layer at that end, and the next one joins after an equal share of the
    steps each, as in gradual unfreezing.
    """

    summary = "trains the last or the first layers, all at once or one after the other"
    paper = "Lee et al. 2019, arXiv 1911.03090; gradual unfreezing: Howard and Ruder 2018, arXiv 1801.06146"
    space = {
        "learning_rate": Float(1e-6, 3e-3, default=2e-5, log=True),
        "trained_share": Float(0.05, 1.0, default=0.25),
        "trained_end": Choice(("last", "first"), default="last"),
        "gradual": Choice((False, True), default=False, searched=False),
    }

    def reach(self, facts: ModelFacts, params: Params) -> float | None:
        """The layers that train, which are taken to be alike."""
        tables, total = facts.parts.get("tables", 0), sum(facts.parts.values())
        if not total or not facts.layers:
            return None
        count = max(1, round(params.number("trained_share") * facts.layers))
        return count / facts.layers * (total - tables) / total

    def movable(self, model: PreTrainedModel, setup: StageSetup) -> Iterable[str]:
        """Those of the layers that train, which is noted."""
        root, layers = layer_list(model)
        count = max(1, round(setup.params.number("trained_share") * len(layers)))
        order = list(range(len(layers)))
        # from the end inwards: the order in which they join
        self.order = (order[::-1] if setup.params.text("trained_end") == "last" else order)[:count]
        setup.note(f"{count} of {len(layers)} layers train")
        self.names = {
            index: {f"{root}.{index}.{name}" for name, _ in layers[index].named_parameters()} for index in self.order
        }
        return set().union(*self.names.values())

    def resting(self, model: PreTrainedModel, step: int) -> set[str]:
        """Layers whose turn has not come."""
        if not self.setup.params.flag("gradual"):
            return set()
        # The last layer joins for an equal share of the steps too, not at the very end.
        joined = 1 + (step - 1) * len(self.order) // self.setup.steps
        return set().union(*(self.names[index] for index in self.order[joined:]))

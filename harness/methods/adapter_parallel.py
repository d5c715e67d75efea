"""Parallel adapters: a scaled bottleneck beside every feed-forward part."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Situation
from harness.methods._added import ModuleMethod
from harness.methods._blocks import blocks, hidden_width
from harness.space import Choice, Float, Integer, Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterParallel(ModuleMethod):
    """Adds `s U f(D x)` to each block's feed-forward part, x being that part's input; s is fixed or starts there."""

    summary = "scaled bottlenecks beside every feed-forward part"
    paper = "He et al. 2021, arXiv 2110.04366"
    trains = r".*\.adapter\.((down|up)\.(weight|bias)|scale)"
    alone = ""
    same: ClassVar[tuple[str, ...]] = ("bottleneck", "activation", "adapter_scale", "learned_scale")
    space = {
        "learning_rate": Float(1e-5, 3e-2, default=1e-4, log=True),
        "bottleneck": Integer(1, 512, default=64, log=True),
        "adapter_scale": Float(0.25, 10.0, default=4.0, log=True, searched=False),
        "learned_scale": Choice((False, True), default=False, searched=False),
        "activation": Choice(("relu", "gelu", "silu"), default="relu", searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """A feed-forward part must be one module, whose input and output meet."""
        if situation.model.model_type == "opt":
            return "the feed-forward part of an opt is not one module that an adapter could stand beside"
        return super().skip(situation)

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """One adapter beside each block's feed-forward part."""
        from harness.methods._adapters import Adapter, put

        sizes = hidden_width(model), params.integer("bottleneck"), params.text("activation")
        for block in blocks(model):
            adapter = Adapter(*sizes, params.number("adapter_scale"), params.flag("learned_scale"))
            put(model.get_submodule(block.feed_forward[0]), adapter, parallel=True)
        return model

"""Pfeiffer's adapters: a small bottleneck behind every feed-forward part."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.methods._added import ModuleMethod
from harness.methods._blocks import Block, blocks, hidden_width
from harness.space import Choice, Float, Integer, Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterPfeiffer(ModuleMethod):
    """Adds `U f(D y)` to the output y of each block's feed-forward part; the hidden width is divided by `reduction`."""

    summary = "small bottlenecks behind every feed-forward part"
    paper = "Pfeiffer et al. 2020, arXiv 2005.00247"
    limits = (
        "On the testbed's 1M model, 200 steps reached 40% of full tuning's gain: "
        "rates near the highest of its space did best."
    )
    trains = r".*\.adapter\.(down|up)\.(weight|bias)"
    alone = ""
    same: ClassVar[tuple[str, ...]] = ("reduction", "activation")
    space = {
        "learning_rate": Float(1e-5, 3e-2, default=1e-4, log=True),
        "reduction": Integer(2, 64, default=16, log=True),
        "activation": Choice(("relu", "gelu", "silu"), default="relu", searched=False),
    }

    def places(self, block: Block) -> tuple[str, ...]:
        """Names of the parts that an adapter stands behind."""
        return (block.feed_forward[1],)

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """One adapter behind each place of each block."""
        from harness.methods._adapters import Adapter, put

        width, activation = hidden_width(model), params.text("activation")
        # A model narrower than `reduction` still gets one number per token.
        bottleneck = max(1, width // params.integer("reduction"))
        for place in [place for block in blocks(model) for place in self.places(block)]:
            put(model.get_submodule(place), Adapter(width, bottleneck, activation), parallel=False)
        return model

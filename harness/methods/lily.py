"""LILY: low-rank updates that are connected across layers by factors which several layers share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._added import ModuleMethod
from harness.methods._linear import linear_layers, shape
from harness.methods._peft import TARGET
from harness.space import Float, Integer, Params

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


class Lily(ModuleMethod):
    """Adds `scale sum_e p_e B_e A x` to each layer, `p = softmax(R A x)`: A of neighbouring layers, all B of all of a kind.

    Layers are of one kind when they have the same place in their blocks, for example all query projections. PEFT's
    own averages `p` over all tokens of a batch, so that a score would depend on its neighbours and on what comes
    later in the text; here each token has its own. That the mixture depends on the text is why nothing can be merged.
    """

    summary = "low-rank updates whose factors are shared across layers and mixed token by token"
    paper = "Zhong et al. 2024, arXiv 2407.09946"
    alone = "layers share its factors"
    trains = r".*\.adapter\.(down|up|router)\.weight"
    space = {
        "learning_rate": Float(1e-5, 3e-2, default=1e-3, log=True),
        "rank": Integer(1, 128, default=16, log=True),
        "shared_by": Integer(1, 64, default=2, searched=False),
        "up_factors": Integer(2, 64, default=2, searched=False),
        "update_scale": Float(0.01, 10.0, default=1.0, log=True),
        "target": TARGET,
    }

    def skip(self, situation: Situation) -> str | None:
        """Linear layers are found in any architecture."""
        return None

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """Factors for each kind of layer, and a router for each layer; all of it trainable."""
        from harness.methods._adapters import put
        from harness.methods._interconnected import Interconnected, factors

        rank, near = params.integer("rank"), params.integer("shared_by")
        kinds: dict[tuple[str, tuple[int, int]], list[Module]] = {}
        for name in linear_layers(model, params.text("target")):
            layer = model.get_submodule(name)
            # By name without the block's number, and by shape: some models have blocks of different widths.
            kinds.setdefault((re.sub(r"\.\d+(?=\.)", "", name), shape(layer)), []).append(layer)
        for (_, (inputs, outputs)), layers in kinds.items():
            # Zero, so that the model starts as the base.
            up = factors(outputs, params.integer("up_factors") * rank, zero=True)
            downs = [factors(inputs, rank, zero=False) for _ in range(0, len(layers), near)]
            for index, layer in enumerate(layers):
                added = Interconnected(downs[index // near], up, params.number("update_scale"))
                put(layer, added, parallel=True)
        return model

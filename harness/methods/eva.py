"""EVA: LoRA whose inner factor starts from the principal components of what flows into each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._calibration import batches, drawn
from harness.methods._peft import unwarned
from harness.methods._residual import fitting_rank
from harness.methods._stacking import ADAPTER
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


class Eva(Lora):
    """Gives each layer the components of its inputs that explain most, and layers that need more of them a higher rank.

    Components are those of the exact covariance of all tokens of the calibration rows; PEFT's incremental decomposition
    does not end where a batch has fewer tokens than components.
    """

    summary = "LoRA that starts from its inputs' principal components, ranks shared out by them"
    paper = "Paischer et al. 2024, arXiv 2410.07170"
    alone = "its ranks follow from each trial's rows"
    space = Lora.space | {
        "rank_spread": Float(1.0, 4.0, default=2.0, searched=False),
        "calibration_rows": Integer(1, 4096, default=256, log=True, searched=False),
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """`rank` on average; no layer gets more than `rank_spread` times that."""
        from peft import EvaConfig

        config = EvaConfig(rho=setup.params.number("rank_spread"))
        return {"r": fitting_rank(model, setup), "init_lora_weights": "eva", "eva_config": config}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model, and put the components into it."""
        from peft import get_peft_model, initialize_lora_eva_weights

        sequences = drawn(setup.rows(), setup.params.integer("calibration_rows"), setup)
        with unwarned("lora with eva initialization"):  # of memory that its own search for components would take
            attached = get_peft_model(model, self.config(model, setup))
        layers = self.layers(attached)
        components = _components(attached, layers, batches(sequences, setup))
        rank = int(attached.peft_config[ADAPTER].r)
        ranks = _ranks(
            {name: ratio for name, (_, ratio) in components.items()}, rank, setup.params.number("rank_spread")
        )
        initialize_lora_eva_weights(
            attached, eva_state_dict={name: components[name][0][: ranks[name]] for name in components}
        )
        setup.note(f"EVA's ranks lie between {min(ranks.values())} and {max(ranks.values())}")
        return attached


def _components(
    model: PreTrainedModel, layers: Mapping[str, Module], rows: Iterable[Mapping[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Principal directions of each layer's inputs (rows) and the share of the variance that each explains, falling."""
    import torch

    sums: dict[str, list[Tensor]] = {}
    inputs_of: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, n=name: inputs_of.update({n: x[0]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in rows:
            model(input_ids=batch["input_ids"], use_cache=False)
            mask = batch["attention_mask"].bool()
            for name, inputs in inputs_of.items():
                # In double precision: the covariance is a difference of large sums. Padding is left out.
                # The experts that all tokens share are given them without the rows that they stand in.
                x = inputs.flatten(0, -2)[mask.flatten()].double()
                ones = x.new_ones(1, len(x))
                parts = [x.T @ x, (ones @ x)[0], ones.sum()]
                sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts
    # Left there, they would keep the inputs of every pass of training alive.
    for hook in hooks:
        hook.remove()
    components = {}
    for name, (squares, total, count) in sums.items():
        values, vectors = torch.linalg.eigh(squares / count - torch.outer(total, total) / count**2)
        # Rounding makes eigenvalues near zero negative.
        values = values.flip(0).clamp(min=0)
        components[name] = (vectors.flip(1).T.float().contiguous(), values / values.sum().clamp(min=1e-30))
    return components


def _ranks(ratios: Mapping[str, Tensor], rank: int, spread: float) -> dict[str, int]:
    """Shares out `rank` per layer to the components that explain most, at least one to each layer."""
    most = max(1, int(rank * spread))
    ranked = sorted(
        ((float(ratio), name) for name, values in ratios.items() for ratio in values[1:most]), key=lambda pair: -pair[0]
    )
    ranks = dict.fromkeys(ratios, 1)
    for _, name in ranked[: (rank - 1) * len(ratios)]:
        ranks[name] += 1
    return ranks

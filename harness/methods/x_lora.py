"""X-LoRA: LoRAs that were trained on other tasks, mixed for each token and layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._linear import linear_layers, shapes
from harness.methods._peft import TARGET
from harness.methods._sources import SPACE, SourcesMethod
from harness.space import Float, Integer, Params, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.methods._experts import Experts


class XLora(SourcesMethod):
    """Trains a LoRA on each of `expert_tasks`, other tasks, then freezes them and trains a router over them.

    Every text is read twice: by the base, whose last hidden state of each token gives the weights of the experts in each
    layer by a linear map and a softmax, then with the experts so weighed. The experts are trained while the method is
    attached, each alone, for `source_steps` steps of the stage's batch size; what that takes is part of loading.
    """

    summary = "learns to mix LoRAs, token by token, that it first trains on other tasks"
    paper = "Buehler and Buehler 2024, arXiv 2402.07148"
    sources = "expert_tasks"
    alone = "its experts are trained on other tasks first"
    trains = r".*\.router\.head\.(weight|bias)"
    saves = r".*\.(router\.head|adapter\.sources\.\d+\.(down|up))\.(weight|bias)"
    space = {
        "learning_rate": Float(1e-5, 3e-2, default=1e-3, log=True),
        "expert_tasks": Text(names="tasks"),
        **SPACE,
        "rank": Integer(1, 128, default=8, log=True),
        "alpha": Float(1.0, 512.0, default=16.0, log=True, searched=False),
        "router_temperature": Float(0.1, 10.0, default=1.0, log=True, searched=False),
        "target": TARGET,
    }

    def skip(self, situation: Situation) -> str | None:
        """Each reading of a text keeps keys and values of its own, which only attention has."""
        if not situation.model.has_attention:
            return (
                f"a {situation.model.model_type} has no attention, whose keys and values each reading keeps for itself"
            )
        return super().skip(situation)

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """Fresh experts beside the chosen linear layers, and a router; all of it trainable.

        Raises:
            SpecError: When fewer than two tasks are named.
        """
        from harness.methods._experts import put_experts

        tasks = self.source_tasks(params)
        names = linear_layers(model, params.text("target"))
        # Hooks and names are the backbone's: the router runs it without the output layer.
        paths = [name.removeprefix(f"{model.base_model_prefix}.") for name in names]
        put_experts(
            model.base_model,
            dict(zip(paths, shapes(model, names), strict=True)),
            len(tasks),
            rank=params.integer("rank"),
            alpha=params.number("alpha"),
            temperature=params.number("router_temperature"),
        )
        model.reads_last_layer = True  # so that nobody cuts it short
        model.supports_gradient_checkpointing = False  # a pass computed again would find the weights of a later one
        return model

    def mixtures(self, model: PreTrainedModel) -> list[Experts]:
        """One beside each of the chosen linear layers."""
        from harness.methods._experts import Experts

        return [module for module in model.modules() if isinstance(module, Experts)]

"""ProMoT: a soft prompt takes up the task's format first, then the weights learn with that prompt in front."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._partial import PartialMethod
from harness.methods.base import Method
from harness.methods.prompt_tuning import PromptTuning
from harness.models.parts import PARTS
from harness.space import Float, Params

if TYPE_CHECKING:
    from pathlib import Path

    from torch.optim import Optimizer
    from transformers import PreTrainedModel

PROMPT = "prompt_encoder."
"""What names of the prompt's parameters begin with."""
WEIGHTS = "model"
"""Folder of the tuned weights, which plain transformers loads for questions without the prompt."""


class ProMoT(PartialMethod, PromptTuning):
    """Trains the prompt in the first `prompt_share` of the steps, all weights of the base in the rest.

    The task is asked with the prompt, everything else without it. One schedule of the learning rate spans both phases.
    What is kept is the tuned weights in a folder of their own, and beside them the prompt, as PEFT loads both.
    """

    summary = "trains a soft prompt, then every weight behind it; other tasks are asked without the prompt"
    paper = "Wang et al. 2022, arXiv 2211.00635; rates as for prompt tuning and full fine-tuning"
    # Prompt tuning's limit is not its own: here the weights behind the prompt learn too.
    limits = ""
    covers = PARTS
    shares_base = False
    unmerged = False  # the base's weights move, too
    detached = Method.detached  # what is left without the prompt is not the base
    space = {
        "learning_rate": Float(1e-6, 3e-3, default=2e-5, log=True),
        "prompt_rate_ratio": Float(1.0, 1e4, default=50.0, log=True, searched=False),
        "prompt_share": Float(0.05, 0.95, default=0.5),
    } | {name: PromptTuning.space[name] for name in ("virtual_tokens", "start")}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Put the prompt before the text, and split the steps; with two steps or more, each phase has one at least."""
        wanted = round(setup.params.number("prompt_share") * setup.steps)
        self.prompt_steps = max(1, min(wanted, setup.steps - 1))
        setup.note(
            f"the prompt trained in the first {self.prompt_steps} of {setup.steps} steps, the weights in the rest"
        )
        return PartialMethod.attach(self, PromptTuning.attach(self, model, setup), setup)

    def movable(self, model: PreTrainedModel, setup: StageSetup) -> Iterable[str]:
        """Every parameter, each in its phase."""
        return {name for name, _ in model.named_parameters()}

    def resting(self, model: PreTrainedModel, step: int) -> set[str]:
        """The weights in the first phase, the prompt in the second."""
        second = step > self.prompt_steps
        return {name for name, _ in model.named_parameters() if name.startswith(PROMPT) is second}

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW with `prompt_rate_ratio` times the learning rate on the prompt; what rests keeps its moments."""
        import torch

        from harness.methods._optimizers import Group, groups

        prompt = {id(p) for name, p in model.named_parameters() if name.startswith(PROMPT)}
        parts: list[Group] = [
            group | {"params": held, "lr": group["lr"] * factor}
            for group in groups(model, setup)
            for mine, factor in ((False, 1.0), (True, setup.params.number("prompt_rate_ratio")))
            if (held := [p for p in group["params"] if (id(p) in prompt) is mine])
        ]
        return torch.optim.AdamW(parts, fused=True)

    @contextmanager
    def elsewhere(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The weights without the prompt."""
        yield model.get_base_model()

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """The weights as a model of its own, with its tokenizer; and the prompt, whose base that model is."""
        model.get_base_model().save_pretrained(folder / WEIGHTS)
        self.setup.tokenizer.save_pretrained(folder / WEIGHTS)
        for config in model.peft_config.values():
            config.base_model_name_or_path = str(folder.resolve() / WEIGHTS)
        super().save(model, folder)

    def restore(self, model: PreTrainedModel, params: Params, folder: Path) -> PreTrainedModel:
        """Put the tuned weights in the place of the base's, then the prompt in front."""
        model.load_state_dict(type(model).from_pretrained(folder / WEIGHTS).state_dict())
        return super().restore(model, params, folder)

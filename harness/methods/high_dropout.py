"""Very large dropout in front of the output layer."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._blocks import exactly
from harness.methods.base import Method
from harness.models.facts import ModelFacts
from harness.models.parts import PARTS
from harness.space import Choice, Float, Params

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

NAME = "head_dropout"


class HighDropout(Method):
    """Drops most of the last hidden state while training: the whole model or its output layer moves.

    Where the output layer is tied to the embeddings, these move with it.
    """

    summary = "fine-tuning with most of the last hidden state dropped"
    paper = "Zhang and Bottou 2024, arXiv 2403.00946"
    trains = r".*"
    covers = PARTS
    space = {
        "learning_rate": Float(1e-6, 3e-3, default=5e-5, log=True),
        "head_dropout": Float(0.5, 0.95, default=0.9),
        "trained_part": Choice(("all", "head"), default="all", searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """TRL's trainers that sample take the output layer's weights without calling the layer, so its dropout would not act."""
        objective = situation.beside.get("objective")
        if not getattr(objective, "samples", False):
            return None
        return "its objective passes by what stands before the output layer, as its method's dropout does"

    def reach(self, facts: ModelFacts, params: Params) -> float | None:
        """The output layer alone, or everything; where it is tied to the embeddings, there is one table."""
        whole = super().reach(facts, params)
        if params.text("trained_part") == "all" or whole is None or not facts.vocabulary or not facts.width:
            return whole
        return facts.vocabulary * facts.width / sum(facts.parts.values())

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Let the chosen part move, and put dropout before the output layer."""
        from torch import nn

        head = model.get_output_embeddings()
        model.requires_grad_(setup.params.text("trained_part") == "all")
        # Also where it is tied to the embeddings: they are one parameter.
        head.requires_grad_(True)
        self.trains = exactly(name for name, p in model.named_parameters() if p.requires_grad)
        head.add_module(NAME, nn.Dropout(setup.params.number("head_dropout")))
        # A hook rather than a wrapper: the head's name, and with it checkpoints, stay as they are.
        head.register_forward_pre_hook(_drop)
        return model

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """A copy without the dropout, which only training has."""
        copy = deepcopy(model)
        head = copy.get_output_embeddings()
        # Else the copy would save a module that plain transformers does not know.
        delattr(head, NAME)
        for key, hook in list(head._forward_pre_hooks.items()):
            if hook is _drop:
                del head._forward_pre_hooks[key]
        return copy


def _drop(head: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Dropout on the hidden states that the output layer is given."""
    return (getattr(head, NAME)(arguments[0]), *arguments[1:])

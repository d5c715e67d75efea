"""What methods share that put trained embeddings before the text."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Situation, StageSetup
from harness.methods.base import Options, PeftMethod
from harness.models.parts import Part
from harness.space import Params

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


class VirtualTokens(PeftMethod, ABC):
    """Trained embeddings before every text; whoever asks the model for logits gets those of the text alone."""

    mergeable = False
    covers: ClassVar[tuple[Part, ...] | None] = ()
    shares_base = True
    alone = "its virtual tokens are not part of a layer"
    identity_at_start = False

    def __init__(self) -> None:
        """Nothing is before the text yet."""
        self._before = False

    def skip(self, situation: Situation) -> str | None:
        """TRL's trainers expect logits for the virtual tokens, too, which are left out here."""
        objective = situation.beside.get("objective")
        if getattr(objective, "fuses", True):
            return None
        return "its virtual tokens have no logits here, which the objective's trainer of TRL's expects"

    def reserved(self, params: Params) -> int:
        """The virtual tokens come before the text."""
        return params.integer("virtual_tokens")

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Their number; PEFT asks for heads and layers, which embeddings have no use for."""
        embedding = model.get_input_embeddings()
        return {
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": setup.params.integer("virtual_tokens"),
            "token_dim": embedding.weight.shape[1],
            "num_transformer_submodules": 1,
            "num_attention_heads": 1,
            "num_layers": 1,
        }

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model with PEFT, and leave the virtual tokens out of what the output layer is given."""
        attached = super().attach(model, setup)
        self._align(model, setup.params.integer("virtual_tokens"))
        return attached

    def restore(self, model: PreTrainedModel, params: Params, folder: Path) -> PreTrainedModel:
        """Load the virtual tokens as PEFT does, and leave them out of the logits as in training."""
        tuned = super().restore(model, params, folder)
        self._align(model, params.integer("virtual_tokens"))
        return tuned

    def _align(self, model: PreTrainedModel, count: int) -> None:
        """Hand the output layer the text's positions only, where virtual tokens come before them."""
        import warnings

        # PEFT says at every generated token that it drops position ids: positions then follow from what stands before.
        warnings.filterwarnings("ignore", message="Position ids are not supported")

        # The output layer cannot see whether its input has virtual tokens; the call of the whole model can.
        def note(module: Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
            whole = named.get("labels") is None and not named.get("logits_to_keep")
            self._before = whole and named.get("inputs_embeds") is not None

        def cut(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            return (arguments[0][:, count:], *arguments[1:]) if self._before else None

        # On the base, which PEFT calls with embeddings where there are virtual tokens.
        model.register_forward_pre_hook(note, with_kwargs=True)
        model.get_output_embeddings().register_forward_pre_hook(cut)

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model without virtual tokens; PEFT then calls it past the hooks that notice them."""
        self._before = False
        with super().detached(model) as bare:
            yield bare

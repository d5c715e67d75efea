"""The author's contract for a method: which parameters move.

One file per method; its stem is its name in study files. `PeftMethod` serves everything that PEFT implements:
such a file declares its space and returns a `PeftConfig`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Plugin, StageSetup
from harness.models.facts import ModelFacts
from harness.models.parts import Part
from harness.nn.copies import float32_copy
from harness.space import Params

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftConfig
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward

Options = dict[str, object]
"""Keyword arguments for a class or function of a library, by name."""


class Method(Plugin, ABC):
    """Decides which parameters of a model move, and how they are kept.

    An object serves one stage of one trial, so that hooks may keep what `attach` found on it. What a hook draws at
    random must be a function of the stage's seed and the step, so that a resumed trial goes on as it would have.
    """

    mergeable: ClassVar[bool] = True
    """Whether `merge` gives a plain model with the same logits."""
    trains: str
    """Regular expression that the name of every trainable parameter matches, and of no other; `attach` may narrow it."""
    identity_at_start: ClassVar[bool] = True
    """Whether attaching it leaves the logits as they are before the first step."""
    needs_training: ClassVar[bool] = True
    """False only for the method that leaves the base as it is."""
    shares_base: ClassVar[bool] = False
    """Whether it leaves every weight of the base as it is, so that several trials can hold the same base."""
    needs_float32: ClassVar[bool] = False
    """Whether the base is held in float32 though it does not move: what is trained is summed with the weights
    themselves, which would lose small changes in 16 bits, or code of a library does not mix types."""
    alone: ClassVar[str] = "its trials cannot be stacked"
    """Why its trials cannot train together on one base (see `nn/stack.py`); empty: they can."""
    unmerged: ClassVar[bool] = False
    """Whether what it trained can be kept beside the base as an adapter that plain PEFT loads with the same logits."""
    one_by_one: ClassVar[bool] = False
    """Whether a step shows one example at a time, for methods that treat each example's gradient by itself.

    The loss is then the mean over a step's examples of each one's own mean over what the objective counts."""
    same: ClassVar[tuple[str, ...]] = ()
    """Its parameters that must be equal among trials that train together; others may differ from trial to trial."""
    covers: ClassVar[tuple[Part, ...] | None] = None
    """Parts of the base whose weights it can change, by itself or by what stands in their place; empty: none, what it
    trains is beside the base; None: nobody has said."""
    limits: ClassVar[str] = ""
    """What it was measured not to reach, and why, in a sentence that `harness list` shows; empty: nothing is known."""

    def reach(self, facts: ModelFacts, params: Params) -> float | None:
        """Share of a base's weights that it can change, as far as the headers of its files tell; None: not known.

        Args:
            facts: The base's.
            params: The stage's parameters, of which `target` keeps linear layers and experts out.
        """
        total = sum(facts.parts.values())
        if self.covers is None or not total:
            return None
        target = params.text("target", "all")
        left_out = {"attention": ("mlp", "experts"), "mlp": ("attention",)}.get(target, ())
        return sum(facts.parts.get(part, 0) for part in self.covers if part not in left_out) / total

    @abstractmethod
    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze what must not move, and add what is new.

        Args:
            model: A copy of the base, or a twin that shares its weights where `shares_base` is true.
            setup: The stage's parameters, rows and tools; torch's random state is seeded already.

        Returns:
            The model to train: the same one, or a wrapper of it.
        """

    def layers(self, model: PreTrainedModel) -> dict[str, Module]:
        """By name, the smallest modules that hold all trainable parameters and whose rows do not depend on each other."""
        return {
            name: module
            for name, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        }

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """A forward pass of K of its layers at once (see `nn/stack.py`), or None to map the first one's own over the trials.

        Parameters arrive padded with zeros to the largest trial's shapes: a method whose trials may differ in shape
        must give the same result with them.

        Args:
            layers: One trial's layer each, all in the same place of the base.
            dropout: Draws each trial's masks from that trial's own stream of random numbers.
        """
        return None

    def load_options(self, params: Params, device: str) -> Options:
        """Keyword arguments for `from_pretrained`, for example a quantisation config.

        Without a `dtype` among them a base is held in the type of its checkpoint, which for most is bfloat16. Weights
        that move are held in float32: bfloat16 ones would lose updates below a 256th of a weight.

        Args:
            params: The stage's parameters.
            device: `cpu` or `cuda`.
        """
        import torch

        return {} if self.keeps_type(params) else {"dtype": torch.float32}

    def keeps_type(self, params: Params) -> bool:
        """Whether the base is held in the type of its checkpoint rather than in float32."""
        return self.shares_base and not self.needs_float32 and params.text("precision", "auto") != "float32"

    def weight_bytes(self, params: Params, stored: str) -> float:
        """Bytes of one weight of the base in the device's memory, for forecasts.

        Args:
            params: The stage's parameters.
            stored: Type of the checkpoint's weights.
        """
        return 2.0 if stored != "float32" and self.keeps_type(params) else 4.0

    def reserved(self, params: Params) -> int:
        """Positions of the model's context that the method takes for itself, for example for virtual tokens."""
        return 0

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer | None:
        """An optimiser of its own, or None for the shared AdamW."""
        return None

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor] | None:
        """A function that gives a term of the method's own to add to the loss (scalar), or None."""
        return None

    def before_step(self, model: PreTrainedModel, step: int) -> None:
        """Called before the first forward pass of every step, `step` counting from 1."""

    def after_backward(self, model: PreTrainedModel) -> None:
        """Called after every backward pass of a step; with `one_by_one` after that of every single example."""

    def before_update(self, model: PreTrainedModel, step: int) -> None:
        """Called when a step's gradients are complete, before they are clipped (TRL's trainers: after)."""

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Called after every optimiser step, `step` counting from 1; the step's gradients are still there."""

    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What its hooks keep beside the parameters that move, for a trial that goes on from a checkpoint."""
        return {}

    def load_state(self, model: PreTrainedModel, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave; called on a freshly attached model, and not where it gave nothing."""

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """How far each weight is from the base's, by the weight's name in the base, as functions of what is trained.

        Only weights that the method can change; shapes are the base's. Called before the first step, and in each step
        of a retention that asks for it. Empty: the method changes no weight of the base, or does not say how.
        """
        return {}

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write what was trained beside its base, for a method that is not mergeable."""
        raise NotImplementedError

    def restore(self, model: PreTrainedModel, params: Params, folder: Path) -> PreTrainedModel:
        """Put what `save` wrote on a fresh copy of the base.

        Args:
            model: The base.
            params: The parameters of the stage that trained it.
            folder: Where `save` wrote to.
        """
        raise NotImplementedError

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model as it was before this method (adapters off). Methods that move the base itself cannot: they raise."""
        raise NotImplementedError(f"{type(self).__module__} moves the base's own weights")
        yield model

    @contextmanager
    def elsewhere(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model that answers the off-target suite in the final scores; unless overridden, the tuned model itself."""
        yield model

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """A plain model that a next stage can start from and plain `transformers` can load."""
        return model


HOOKS = {
    "optimizer": "brings an optimiser of its own",
    "penalty": "adds a term to the loss",
    "before_step": "acts on the whole model before every step",
    "after_backward": "acts on the gradients of every pass",
    "before_update": "acts on the gradients of every step",
    "after_step": "acts on the whole model after every step",
    "elsewhere": "is not what other tasks are asked of",
}
"""What a method may override that trials training together cannot do, and what it then does."""


class PeftMethod(Method, ABC):
    """A method whose parameters PEFT adds to a frozen base."""

    unmerged = True

    @abstractmethod
    def config(self, model: PreTrainedModel, setup: StageSetup) -> PeftConfig:
        """PEFT's configuration for these parameters."""

    def layers(self, model: PreTrainedModel) -> dict[str, Module]:
        """The layers that PEFT put in the place of the base's."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}

    moves_biases: ClassVar[bool] = False
    """Whether it may change the biases of the layers that it stands on."""

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model with PEFT."""
        from peft import get_peft_model

        return get_peft_model(model, self.config(model, setup))

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The same model with its adapters switched off; afterwards only what was trained before is trained again."""
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        try:
            with model.disable_adapter():
                yield model
        finally:  # PEFT lets every parameter of the adapters move again
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in trained)

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What its layers add to the base's output for each unit vector; empty where that is not a change of weights."""
        from harness.methods._linear import changes

        return changes(self.layers(model), self.moves_biases) if self.mergeable and self.shares_base else {}

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Fold the adapters into a copy of the base; a method that is not mergeable keeps them beside it."""
        return float32_copy(model).merge_and_unload() if self.mergeable else model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the adapter as PEFT does, so that PEFT can load it."""
        model.save_pretrained(folder)

    def restore(self, model: PreTrainedModel, params: Params, folder: Path) -> PreTrainedModel:
        """Load the adapter as PEFT does."""
        from peft import PeftModel

        tuned: PreTrainedModel = PeftModel.from_pretrained(model, str(folder))
        return tuned

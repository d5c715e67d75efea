"""What retention by penalties shares: how far each weight of the base has moved, for any method that moves weights."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.errors import SpecError
from harness.methods.base import Method, PeftMethod
from harness.plugins import overrides
from harness.retention.base import Retention

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class WeightPenalty(Retention, ABC):
    """Adds half of `strength` times a weighted sum of the squared distances from the base."""

    def skip(self, situation: Situation) -> str | None:
        """Only weights that move can be held back."""
        method = situation.beside.get("method")
        if method is None or not issubclass(method, Method):
            return None
        if not method.needs_training:
            return "its retention holds weights back, but its method trains none"
        beside = method.shares_base or issubclass(method, PeftMethod)  # it trains none of the base's own weights
        if beside and (not overrides(method, "deltas") or not method.mergeable):
            return "its retention holds the base's weights back, but its method does not say how far it moves them"
        return None

    @abstractmethod
    def importances(self, moved: Mapping[str, Tensor], setup: StageSetup) -> Mapping[str, Tensor]:
        """What each weight's squared distance counts, by name; weights that are left out count 1.

        Args:
            moved: The weights that the method moves, by the base's names; only names and shapes matter.
            setup: The stage's.
        """

    @abstractmethod
    def strength(self, setup: StageSetup) -> float:
        """Factor of the penalty."""

    def penalty(self, model: PreTrainedModel, method: Method, setup: StageSetup) -> Callable[[], Tensor]:
        """Half of `strength` times the weighted sum of squared distances, a function of what is trained."""
        import torch

        moves = weight_changes(model, method, setup)
        # Half, so that the gradient is `strength` times the distance.
        strength, start = self.strength(setup) / 2, moves()
        importances = self.importances({name: move.detach() for name, move in start.items()}, setup)

        def term() -> Tensor:
            parts = [(importances.get(name, 1.0) * move.square()).sum() for name, move in moves().items()]
            return strength * torch.stack(parts).sum()

        return term


def weight_changes(model: PreTrainedModel, method: Method, setup: StageSetup) -> Callable[[], dict[str, Tensor]]:
    """Make a function that says how far each weight is from the base's.

    The method says so by `deltas`; for a method that trains the base's own weights, they are compared with a copy of the
    base. They are never compared with the model's present weights: those of a trial that goes on from a checkpoint have
    moved already.

    Args:
        model: The attached model.
        method: What trains it.
        setup: Loads the copy of the base.

    Returns:
        A function without arguments; it gives the distances by the weight's name in the base, differentiable in what is
        trained.

    Raises:
        SpecError: When the method moves no weight of the base, or does not say how.
    """
    # Asked for once before: a method that cannot say gives nothing, whatever is trained.
    if method.deltas(model):
        return lambda: method.deltas(model)
    base = dict(setup.load_base().named_parameters())
    pairs = {
        name: (value, base[name].detach().clone())
        for name, value in model.named_parameters()
        if re.fullmatch(method.trains, name) and name in base and base[name].shape == value.shape
    }
    if not pairs:
        raise SpecError(
            f"this retention must know how far weights of the base move, but {type(method).__name__} does not say: "
            "use a method that moves weights, or retention replay"
        )
    return lambda: {name: value - start for name, (value, start) in pairs.items()}

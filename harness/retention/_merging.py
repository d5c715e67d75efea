"""What retention by merging shares: task vectors (how far weights are from the base's), and how they are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.errors import SpecError
from harness.retention.base import Retention

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel


class Merging(Retention, ABC):
    """Replaces the trained weights by the base's plus something made of task vectors: the trained one and others'."""

    needs_others = False
    """Whether it is nothing without other models in `merge_with`."""

    def skip(self, situation: Situation) -> str | None:
        """There must be a trained task vector, and others where it takes others."""
        method = situation.beside.get("method")
        if method is not None and not getattr(method, "needs_training", True):
            return "its retention merges trained weights, but its method trains none"
        if self.needs_others and not situation.params.names("merge_with", "a model"):
            return "its retention merges with other models, but merge_with names none: name at least one"
        return None

    @abstractmethod
    def merged(self, vectors: Sequence[Tensor], weights: Sequence[float], setup: StageSetup, draw: Generator) -> Tensor:
        """What is added to one of the base's parameters.

        Args:
            vectors: Of this parameter, the trained task vector, then those of other models.
            weights: Of the vectors; the trained one's is 1.
            setup: The stage's.
            draw: Random numbers, a function of the stage's seed.
        """

    def finish(self, model: PreTrainedModel, setup: StageSetup) -> None:
        """Merge parameter by parameter; weights that are tied are one parameter, so they are merged once."""
        import torch

        base = parameters(setup.load_base())
        others = other_models(base, setup)
        weights = [1.0, *(weight for _, weight in others)]
        draw = torch.Generator().manual_seed(setup.seed)
        with torch.no_grad():
            for name, value in model.named_parameters():
                start = _known(base, name, value)
                vectors = [end.to(start) - start for end in (value, *(other[name] for other, _ in others))]
                value.copy_(start + self.merged(vectors, weights, setup, draw))


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's parameters without their history."""
    return {name: value.detach() for name, value in model.named_parameters()}


def _known(base: Mapping[str, Tensor], name: str, value: Tensor) -> Tensor:
    if name not in base or base[name].shape != value.shape:
        raise SpecError(
            f"merging needs a model with the base's own weights, but {name} is new or of another shape: use a method "
            "that changes no shape"
        )
    return base[name].to(value)


def other_models(base: Mapping[str, Tensor], setup: StageSetup) -> list[tuple[dict[str, Tensor], float]]:
    """Parameters and weights of the models that `merge_with` names.

    Raises:
        SpecError: When one of them has other parameters than the base.
    """
    models = []
    for named in setup.params.names("merge_with", ""):
        other = parameters(setup.model_of(named)[0])
        if {key: value.shape for key, value in other.items()} != {key: value.shape for key, value in base.items()}:
            raise SpecError(
                f"merge_with must name models with the base's weights, but those of {named.name!r} have "
                "other names or shapes: name models tuned from the same base"
            )
        models.append((other, named.weight))
    return models


def trimmed(vector: Tensor, density: float) -> Tensor:
    """A task vector with all but its largest magnitudes at zero.

    Args:
        vector: Of any shape.
        density: Share of the elements to keep; the nearest whole number of them, at least one.
    """
    import torch

    # By indices rather than by a threshold, which equal magnitudes would pass together.
    flat = vector.flatten()
    largest = flat.abs().topk(max(1, round(density * flat.numel()))).indices
    return torch.zeros_like(flat).index_copy(0, largest, flat[largest]).view_as(vector)


def dropped(vector: Tensor, density: float, draw: Generator) -> Tensor:
    """Drop elements of a task vector at random, and scale the rest up so that the mean stays.

    Args:
        vector: Of any shape.
        density: Chance of an element to be kept; those kept are divided by it.
        draw: Random numbers.
    """
    import torch

    # Drawn on the CPU, so that a GPU drops the same elements.
    mask = torch.rand(vector.shape, generator=draw).to(vector.device) < density
    return vector * mask / density


def elected(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Of each element, the weighted mean of those vectors that have the sign of the weighted sum; zero has no sign.

    Args:
        vectors: Trimmed task vectors of one parameter.
        weights: Of each vector.
    """
    import torch

    stacked = torch.stack(list(vectors))
    factors = torch.tensor(list(weights)).to(stacked).view(-1, *[1] * vectors[0].dim())
    sign = (factors * stacked).sum(0).sign()
    # A trimmed element says nothing about the sign, so it counts in no mean.
    agreeing = (stacked.sign() == sign) & (stacked != 0)
    total = (factors * agreeing).sum(0)  # 0 where no vector has the elected sign, and nothing must be divided
    return (factors * stacked * agreeing).sum(0) / total.where(total > 0, torch.ones_like(total))

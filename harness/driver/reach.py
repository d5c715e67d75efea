"""Which share of a base's weights each family's methods reach, said before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.driver.experiment import Experiment, ModelInfo
from harness.records.trial import Stage
from harness.space import Params


@dataclass(frozen=True)
class Reach:
    """What a family's methods reach of one base model at their defaults."""

    family: str
    model: str
    shares: tuple[float | None, ...]
    """By stage: share of the weights, as far as the headers of its files tell; 0 where what trains is beside the base,
    None where that is not known before it runs."""
    experts_left: float = 0.0
    """Share of the weights in experts that no stage reaches."""

    def text(self) -> str:
        """A line for people."""
        parts = ["unknown before it runs" if share is None else _in_words(share) for share in self.shares]
        left = f"; experts are no linear layers, and {self.experts_left:.0%} stay" if self.experts_left else ""
        return f"{self.family} on {self.model}: {', then '.join(parts)}{left}"


def reaches(experiment: Experiment) -> tuple[Reach, ...]:
    """Of every family on every base model."""
    return tuple(
        _reach(name, family.stages_at({}), model)
        for name, family in experiment.families.items()
        for model in experiment.models
    )


def _reach(family: str, stages: Sequence[Stage], model: ModelInfo) -> Reach:
    from harness.training.choices import choices

    shares, left, total = [], True, sum(model.facts.parts.values())
    for stage in stages:
        chosen = choices(stage)
        shares.append(chosen.method.reach(model.facts, Params(chosen.params)))
        covers, target = chosen.method.covers, chosen.params.text("target", "all")
        # A method that stands beside the base, or that nobody knows the places of, is not said to leave anything.
        left = left and bool(covers) and ("experts" not in (covers or ()) or target == "attention")
    experts = model.facts.parts.get("experts", 0) / total if total else 0.0
    return Reach(family, model.ref.name, tuple(shares), experts if left else 0.0)


def _in_words(share: float) -> str:
    if share == 0:
        return "none, what it trains is beside them"
    return f"about {share:.0%}" if share >= 0.01 else "less than 1%"

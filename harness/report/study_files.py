"""What a report says of the JSON files beside a study's records: the study file and the plan.

They are read without the checks that a study to be run must pass, so that a study of another version, or with a plug-in
that is gone since, still has a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.space import Distribution
from harness.study.accept import Limits, read_limits
from harness.study.family import resolved_families
from harness.study.spec import StudySpec


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What is said of a study file."""

    content: Mapping[str, object]
    """All of it, as JSON."""
    question: str | None
    base_models: Sequence[str]
    tasks: Sequence[str]
    currency: str
    """Of the price table."""
    seed: int | None
    sampler: str | None
    scheduler: str | None
    budget: Mapping[str, float]
    """What a family may use on each task and base model, by unit."""
    smallest_difference: float
    """That matters, in points: hundredths of a metric's scale."""
    refused: Mapping[str, str]
    """Base models that were left out, each with the reason."""

    @property
    def limits(self) -> Limits:
        """What the study accepts; none where that cannot be read, as in a study of another version."""
        accept = self.content.get("accept")
        try:
            return read_limits(accept) if isinstance(accept, Mapping) else Limits()
        except ValueError:
            return Limits()

    def searched(self, family: str) -> Mapping[str, Distribution]:
        """A family's searched parameters and their ranges; none where they cannot be told, as in a study of another version."""
        try:
            return resolved_families(StudySpec.model_validate(self.content))[family].space
        except (ValueError, KeyError, HarnessError):
            return {}

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> StudyFile:
        """From the parsed `study.json`."""
        content = recorded.get("study", recorded)
        search = content.get("search", {})
        return cls(
            content=content,
            question=content.get("question"),
            base_models=[str(model["name"]) for model in content.get("base_models", ())],
            tasks=[str(task) for task in content.get("tasks", ())],
            currency=content.get("prices", {}).get("currency", "USD"),
            seed=content.get("seed"),
            sampler=search.get("sampler"),
            scheduler=search.get("scheduler"),
            budget={unit: amount for unit, amount in content.get("budget", {}).items() if amount is not None},
            smallest_difference=float(content.get("smallest_difference", 2.0)),
            refused=recorded.get("refused", {}),
        )


@dataclass(frozen=True, kw_only=True)
class PhaseForecast:
    """What the plan predicted of one phase."""

    phase: str
    trials: int
    seconds: float
    """Wall seconds of its trials, summed."""


@dataclass(frozen=True, kw_only=True)
class FamilyForecast:
    """What the plan predicted of one full search trial of a family."""

    seconds: float
    peak_memory_bytes: float | None
    basis: str
    """What it was predicted from."""


@dataclass(frozen=True, kw_only=True)
class DetectableDifference:
    """The smallest difference between two families that the confirm phase can tell from chance on a task."""

    task: str
    difference: float | None
    """In units of the task's metric; None where nothing is known."""
    basis: str
    """What it was computed from."""


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """What is said of a plan."""

    phases: Sequence[PhaseForecast]
    families: Mapping[str, FamilyForecast]
    detectable: Sequence[DetectableDifference]

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> Forecasts:
        """From the parsed `plan.json`.

        Raises:
            KeyError: When it lacks what every version writes.
        """
        detectable = plan.get("detectable")
        return cls(
            phases=[
                PhaseForecast(phase=phase["step"], trials=phase["trials"], seconds=phase["seconds"])
                for phase in plan.get("steps", ())
            ],
            families={
                name: FamilyForecast(
                    seconds=family["seconds"],
                    peak_memory_bytes=family.get("peak_memory_bytes"),
                    basis=family.get("basis", ""),
                )
                for name, family in plan.get("families", {}).items()
            },
            # the first version wrote another form, which is not shown
            detectable=[
                DetectableDifference(task=item["task"], difference=item["difference"], basis=item["basis"])
                for item in (detectable if isinstance(detectable, list) else ())
            ],
        )

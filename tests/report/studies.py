"""Fabricated studies for the report's tests and benchmark."""

from __future__ import annotations

from pathlib import Path

from harness.layout import Layout
from harness.spec import Family, FamilyStage, StageSpec, StudySpec
from harness.store import ingest
from tests.learn.fabricate import LEARNING_RATE, Fabricated, fabricate

METHODS = ("full", "lora", "dora", "ia3", "prefix_tuning", "qlora")
RETENTION = ("none", "replay")


def twelve_families() -> dict[str, Family]:
    """Six methods, each without and with replay."""
    made = {}
    for method in METHODS:
        for retention in RETENTION:
            name = method if retention == "none" else f"{method}_replay"
            stage = FamilyStage(StageSpec(method=method, retention=retention), {"learning_rate": LEARNING_RATE}, 1.0)
            made[name] = Family(name, (stage,))
    return made


def study(models: int = 2, tasks: int = 4, trials: int = 20, finalists: int = 3, seeds: int = 5) -> StudySpec:
    """A study over twelve families."""
    return StudySpec.model_validate(
        {
            "name": "large",
            "question": "Which of twelve ways to tune a small model learns most and forgets least?",
            "base_models": [f"tiny-{size}m" for size in (1, 4, 16)[:models]],
            "tasks": ["sentiment", "newfacts", "sorting", "instructions"][:tasks],
            "off_target": ["facts", "addition", "copying", "stories_perplexity"],
            "families": {
                name: {"method": family.stages[0].spec.method, "retention": family.stages[0].spec.retention}
                for name, family in twelve_families().items()
            },
            "budget": {"trials": trials, "steps": 60},
            "confirm": {"finalists": finalists, "seeds": seeds},
        }
    )


def write(folder: Path, spec: StudySpec) -> tuple[Layout, Fabricated]:
    """Fabricate a study of twelve families and fill its database."""
    layout = Layout(folder / "results", folder / "reports")
    made = fabricate(layout, spec, twelve_families())
    ingest(layout)
    return layout, made

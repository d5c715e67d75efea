"""What the search saw: validation scores of its trials, in arenas within which they may be compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report import words
from harness.report.data import StudyData
from harness.report.findings import places

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Arena:
    """The search trials of one base model, task and comparability key."""

    base_model: str
    task: str
    comparability: str
    unit: words.Unit
    base: float | None
    """The base model's validation score."""
    trials: DataFrame
    """Rows of `StudyData.scores` of the highest fidelity each configuration got, best score first."""

    @property
    def name(self) -> str:
        """What was searched on, in words."""
        return f"{self.task} on {self.base_model}"

    def families(self) -> Iterator[tuple[str, DataFrame]]:
        """Trials by family, best first; trials that ran longest come first where rungs cut some short."""
        for family, rows in self.trials.groupby("family", sort=True):
            yield str(family), rows


def arenas(study: StudyData) -> tuple[Arena, ...]:
    """Every arena of a study, in the study file's order."""
    rows = study.scores[(study.scores["role"] == "search") & study.scores["is_target"]]
    found = [_arena(group) for _, group in rows.groupby(["base_model", "task", "metric", "comparability"], sort=True)]
    order = places(study)
    return tuple(sorted(found, key=lambda arena: order.get((arena.base_model, arena.task), len(order))))


def _arena(rows: DataFrame) -> Arena:
    first = rows.iloc[0]
    higher = bool(first["higher_is_better"])
    base = rows["base_value"].dropna()
    # The longest run counts: a rung's score says less than that of the full budget.
    ordered = rows.sort_values(["fidelity", "value", "key"], ascending=[False, not higher, True], kind="stable")
    return Arena(
        str(first["base_model"]),
        str(first["task"]),
        str(first["comparability"]),
        words.Unit(str(first["metric"]), higher),
        float(base.iloc[0]) if len(base) else None,
        ordered.drop_duplicates(["family", "number"]),
    )


def learning_rates(study: StudyData) -> dict[tuple[str, str, int], dict[str, float]]:
    """The searched learning rates of a trial by (key, family, number); several stages have one each.

    Names are `learning_rate`, or `stage 2 learning rate` and so on where the pipeline has several stages.
    """
    found = {}
    rows = study.trials.loc[study.trials["role"] == "search", ["key", "family", "number", "searched"]]
    for row in rows.to_dict("records"):
        rates = {
            _stage(name): float(value)
            for name, value in json.loads(row["searched"] or "{}").items()
            if name.split(".")[-1] == "learning_rate" and float(value) > 0
        }
        found[(row["key"], row["family"], row["number"])] = rates
    return found


def _stage(name: str) -> str:
    """`` for a pipeline of one stage, `stage 2` for `1.learning_rate`."""
    return f"stage {int(name.split('.')[0]) + 1}" if "." in name else ""

"""What the confirmed results say: who leads, by how much, how sure, and what was forgotten.

One `Comparison` per base model, task and comparability key: scores that may not be ranked together never are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.analysis.statistics import Interval, holm, mean_interval, paired_t_test
from harness.report import words
from harness.report.data import FAILED, StudyData

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Lost:
    """What a pipeline forgot of one skill; positive = lost."""

    skill: str
    unit: words.Unit
    estimate: Interval


@dataclass(frozen=True)
class Contender:
    """A confirmed pipeline within a comparison."""

    label: str
    """Its family; families with several confirmed pipelines get a number."""
    family: str
    stages: tuple[Mapping[str, Any], ...]
    scores: Mapping[int, float]
    """Test score by repetition."""
    level: Interval
    gain: Interval | None
    """Towards better, over the base; None without a comparable base score."""
    lost: tuple[Lost, ...]
    train_s: float | None
    """Seconds of training one run alone, mean over seeds."""
    peak_memory_bytes: float | None
    money: float | None
    """Of one run alone."""
    failures: int
    """Confirm runs of the family on this base model and task that ended without a score."""
    behind: Interval | None = None
    """How far behind the leader, over shared seeds; None for the leader."""
    p: float | None = None
    """Paired test against the leader, Holm-corrected within the comparison; None for the leader or untestable."""

    @property
    def undetermined(self) -> bool:
        """Whether the difference to the leader is the same in every shared seed, so that no test can judge it."""
        return self.p is None and self.behind is not None and self.behind.n > 1

    @property
    def worst(self) -> Lost | None:
        """The skill that lost most, among those scored in percent where there are any: units do not mix."""
        percent = [lost for lost in self.lost if lost.unit.percent]
        return max(percent or self.lost, key=lambda lost: lost.estimate.mean, default=None)


@dataclass(frozen=True)
class Comparison:
    """Confirmed pipelines whose scores may be ranked against each other, best first."""

    base_model: str
    task: str
    comparability: str
    unit: words.Unit
    base: float | None
    chance: float | None
    contenders: tuple[Contender, ...]

    @property
    def best(self) -> Contender:
        """The leader."""
        return self.contenders[0]

    @property
    def name(self) -> str:
        """What is compared, in words."""
        return f"{self.task} on {self.base_model}"


@lru_cache(maxsize=1)  # five sections ask
def compare(study: StudyData) -> tuple[Comparison, ...]:
    """Every comparison of a study, in the study file's order of base models and tasks."""
    confirmed = study.scores[
        (study.scores["role"] == "confirm") & (study.scores["split"] == "test") & (study.scores["status"] == "complete")
    ]
    target = confirmed[confirmed["is_target"]]
    found = [
        _comparison(study, group, confirmed)
        for _, group in target.groupby(["base_model", "task", "metric", "comparability"], sort=True)
    ]
    order = places(study)
    return tuple(sorted(found, key=lambda c: (order.get((c.base_model, c.task), len(order)), -len(c.contenders))))


def places(study: StudyData) -> dict[tuple[str, str], int]:
    """Pairs of base model and task, in the order of the study file."""
    models = [str(model["name"]) for model in study.spec.get("base_models", ())]
    pairs = [(model, str(task)) for model in models for task in study.spec.get("tasks", ())]
    return {pair: index for index, pair in enumerate(pairs)}


def _comparison(study: StudyData, rows: DataFrame, confirmed: DataFrame) -> Comparison:
    first = rows.iloc[0]
    unit = words.Unit(str(first["metric"]), bool(first["higher_is_better"]))
    sign = 1 if unit.higher_is_better else -1
    contenders = [_contender(study, group, confirmed) for _, group in rows.groupby(["family", "pipeline"], sort=True)]
    contenders.sort(key=lambda c: (-sign * c.level.mean, c.family))
    return Comparison(
        str(first["base_model"]),
        str(first["task"]),
        str(first["comparability"]),
        unit,
        _number(first["base_value"]),
        _number(first["chance"]),
        _tested(_numbered(contenders), sign),
    )


def _contender(study: StudyData, rows: DataFrame, confirmed: DataFrame) -> Contender:
    first = rows.iloc[0]
    trials = study.trials[study.trials["key"].isin(rows["key"])].drop_duplicates("key")
    siblings = study.trials[
        (study.trials["role"] == "confirm")
        & (study.trials["family"] == first["family"])
        & (study.trials["task"] == first["task"])
        & (study.trials["base_model"] == first["base_model"])
    ]
    sign = 1 if first["higher_is_better"] else -1
    gains = (sign * (rows["value"] - rows["base_value"])).dropna().tolist()
    return Contender(
        label=str(first["family"]),
        family=str(first["family"]),
        stages=tuple(json.loads(trials.iloc[0]["stages"])),
        scores={int(rep): float(value) for rep, value in zip(rows["repetition"], rows["value"], strict=True)},
        level=_interval(rows["value"].tolist()),
        gain=mean_interval(gains),
        lost=forgotten(confirmed[confirmed["key"].isin(rows["key"])]),
        train_s=_number(trials["solo_train_s"].mean()),
        peak_memory_bytes=_number(trials["peak_memory_bytes"].max()),
        money=_number(trials["solo_money"].mean()),
        failures=int(siblings["status"].isin(FAILED).sum()),
    )


def forgotten(scores: DataFrame) -> tuple[Lost, ...]:
    """Per off-target skill: base score minus tuned score with the sign so that positive is lost."""
    rows = scores[~scores["is_target"] & scores["base_value"].notna()].drop_duplicates(["key", "scored", "metric"])
    found = []
    for (skill, metric, higher), group in rows.groupby(["scored", "metric", "higher_is_better"], sort=False):
        values = (group["base_value"] - group["value"]) * (1 if higher else -1)
        found.append(Lost(str(skill), words.Unit(str(metric), bool(higher)), _interval(values.tolist())))
    return tuple(found)


def _interval(values: list[float]) -> Interval:
    """Mean and 95% interval over seeds of at least one value."""
    return mean_interval(values) or Interval(values[0], None, None, 1)


def _numbered(contenders: list[Contender]) -> list[Contender]:
    """Tell pipelines of one family apart by a number."""
    seen: dict[str, int] = {}
    result = []
    for contender in contenders:
        seen[contender.family] = seen.get(contender.family, 0) + 1
        count = seen[contender.family]
        result.append(contender if count == 1 else replace(contender, label=f"{contender.family} ({count})"))
    return result


def _tested(contenders: list[Contender], sign: int) -> tuple[Contender, ...]:
    """Compare each contender with the leader over shared seeds; Holm-correct within the comparison."""
    leader, *others = contenders
    tested: list[Contender] = []
    p_values: dict[str, float] = {}
    for other in others:
        shared = sorted(set(leader.scores) & set(other.scores))
        test = paired_t_test(
            [sign * leader.scores[rep] for rep in shared], [sign * other.scores[rep] for rep in shared]
        )
        if test and test.p_value is not None:
            p_values[other.label] = test.p_value
        behind = Interval(test.difference, test.low, test.high, test.n) if test else None
        tested.append(replace(other, behind=behind))
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return (leader, *(replace(other, p=corrected.get(other.label)) for other in tested))


def _number(value: Any) -> float | None:
    return float(value) if words.known(None if value is None else float(value)) else None

"""Rows of the database that a report shows, and the queries that give them: each column is a field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import fsum
from typing import TypeVar

from harness.database.rows import stages_of
from harness.records.scale import Scale
from harness.records.study_trials import Role
from harness.records.trial import Stage, TrialStatus
from harness.report.words import Unit
from harness.space import Scalar

FAILED = frozenset(status.value for status in TrialStatus if not status.has_scores)


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """Why a study has a trial."""

    key: str
    role: Role
    family: str
    task: str
    base_model: str
    repetition: int
    number: int


MemberOrTrial = TypeVar("MemberOrTrial", bound=MemberRow)


@dataclass(frozen=True, kw_only=True)
class TrialRow(MemberRow):
    """A member of the study: why it ran, how it ended, what it cost and where it ran.

    All that comes from the record is None where there is no record yet. Costs are what was really spent: a trial's own
    share of what several did together. `solo_train_s` and `solo_money` are what it would have taken alone; methods are
    compared by nothing else.
    """

    reused: bool
    searched_json: str | None
    """The searched parameters by name, as JSON."""
    status: str | None
    reason: str | None
    stages_json: str | None
    steps: int | None
    """Optimiser steps of the full budget."""
    fidelity: float | None
    seed: int | None
    split: str | None
    notes: list[str] | None
    total_s: float | None
    train_s: float | None
    solo_train_s: float | None
    seconds_json: str | None
    """Wall seconds by phase of the trial, as JSON."""
    cpu_s: float | None
    gpu_s: float | None
    trained_with: int | None
    """Trials that trained together, itself included."""
    utilisation: float | None
    """Share of the machine's measured matrix peak that training used, 0 to 1."""
    peak_memory_bytes: int | None
    energy_j: float | None
    money: float | None
    solo_money: float | None
    total_params: int | None
    reach_json: str | None
    """By stage: share of the base's weights that its method reached, as JSON; null where that is not known."""
    reach_experts_json: str | None
    """The same of a mixture's experts; null where there are none."""
    alone: str | None
    """Why it could not train together with others."""
    harness_version: str | None
    versions_json: str | None
    plugins_json: str | None
    hardware: str | None
    python: str | None
    git_commit: str | None
    chat_template: str | None
    """Identity of the chat template of its prompts and answers; empty for plain text."""
    started_at: datetime | None

    @property
    def failed(self) -> bool:
        """Whether it ended without a score."""
        return self.status in FAILED

    @property
    def searched(self) -> Mapping[str, Scalar]:
        """The searched parameters by name."""
        return dict(json.loads(self.searched_json or "{}"))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its pipeline."""
        # Parsed when asked for: a report shows the stages of a few trials of thousands.
        return stages_of(self.stages_json or "[]")

    @property
    def reach(self) -> tuple[float, ...]:
        """By stage that trained, the share of the base's weights that was reached; empty where one is not known."""
        shares = json.loads(self.reach_json or "[]")
        return () if None in shares else tuple(shares)

    @property
    def leaves_experts(self) -> bool:
        """Whether its base has experts, of which no stage reached any."""
        shares = json.loads(self.reach_experts_json or "[]")
        return bool(shares) and not any(shares) and None not in shares

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall seconds by phase of the trial."""
        return dict(json.loads(self.seconds_json or "{}"))

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of libraries by name."""
        return dict(json.loads(self.versions_json or "{}"))

    @property
    def plugins(self) -> Mapping[str, str]:
        """Hashes of the code of plug-ins by folder and name, for example `methods/lora`."""
        return dict(json.loads(self.plugins_json or "{}"))


@dataclass(frozen=True, kw_only=True)
class _Scored(MemberRow):
    """A score of a member's trial."""

    fidelity: float
    is_target: bool
    """Whether it is of the trial's own task."""
    scored: str
    """The task that was scored."""
    metric: str
    value: float
    higher_is_better: bool
    low: float | None
    """The metric's lowest value, where one is declared."""
    high: float | None
    comparability: str

    @property
    def unit(self) -> Unit:
        """How its value is shown."""
        return Unit(self.metric, self.higher_is_better, Scale(low=self.low, high=self.high))

    @property
    def sign(self) -> int:
        """What makes more of the value better."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True, kw_only=True)
class ScoreRow(_Scored):
    """A member's score on one task, with the base model's comparable score where there is one."""

    pipeline: str
    """Equal for trials that differ in seed, split or fidelity."""
    status: str
    split: str
    chance: float | None
    majority: float | None
    """Score of one answer to all items, the one that is most often right."""
    base_value: float | None
    answer_bits: float | None
    """Bits per byte of the right answers, where items have them."""
    base_answer_bits: float | None

    @property
    def gain(self) -> float | None:
        """Value minus base value, positive where it is better."""
        return None if self.base_value is None else self.sign * (self.value - self.base_value)


@dataclass(frozen=True, kw_only=True)
class PartRow(_Scored):
    """A member's score on a part of a group, with the base model's comparable score where there is one."""

    whole: str
    """The group."""
    parent: str
    """The group that lists the part: the whole, or one within."""
    counts: bool
    """Whether the group's score is made of it."""
    position: int
    n: int
    """Items scored."""
    base_value: float | None


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """A point of a trial's learning curve."""

    key: str
    step: int
    loss: float | None
    """Nats per supervised token."""
    score: float | None
    train_seconds: float
    """What training alone would have taken so far."""


@dataclass(frozen=True, kw_only=True)
class PathRow(_Scored):
    """A member's score on one task at one place between base and tuned weights."""

    tuned_weight: float
    """0 is the base, 1 the tuned model."""
    stages_json: str

    @cached_property
    def kept_weight(self) -> float | None:
        """Where between base and tuned weights the trial's own weights lie; None where the record does not say."""
        weight = stages_of(self.stages_json)[-1].params.get("tuned_weight")
        return None if weight is None else float(weight)


TRIALS = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, m.params AS searched_json, m.reused,
  t.status, t.reason, t.stages AS stages_json, t.steps, t.fidelity, t.seed, t.split, t.notes,
  c.total_s, c.train_s, c.solo_train_s, c.seconds AS seconds_json, c.cpu_s, c.gpu_s, c.trained_with, c.utilisation,
  c.peak_memory_bytes, c.energy_j, c.money, c.solo_money, c.total_params,
  to_json(p.effective->'$.stages[*].reach') AS reach_json,
  to_json(p.effective->'$.stages[*].reach_experts') AS reach_experts_json,
  p.alone, p.harness_version, p.versions AS versions_json, p.plugins AS plugins_json,
  p.hardware, p.python, p.git_commit, t.chat_template, p.started_at
FROM members m LEFT JOIN trials t USING (key) LEFT JOIN costs c USING (key) LEFT JOIN provenance p USING (key)
WHERE m.study = ? ORDER BY m.base_model, m.task, m.role, m.family, m.number, m.repetition, m.key"""
"""`TrialRow`s of a study, one per member."""

SCORES = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, t.pipeline, t.fidelity, t.status,
  s.is_target, s.task AS scored, s.split, s.metric, s.value, s.higher_is_better, s.low, s.high,
  s.comparability, s.chance, s.majority, b.value AS base_value, s.answer_bits, b.answer_bits AS base_answer_bits
FROM members m JOIN trials t USING (key) JOIN scores s USING (key)
  LEFT JOIN base_scores b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.task = s.task
    AND b.split = s.split AND b.metric = s.metric AND b.comparability = s.comparability
WHERE m.study = ?
QUALIFY row_number() OVER (PARTITION BY m.key, m.role, m.family, m.number, m.repetition, s.task, s.split, s.metric
  ORDER BY (b.n = s.n) DESC NULLS LAST, b.n DESC) = 1
ORDER BY m.base_model, m.task, m.role, m.family, m.number, m.repetition, m.key, s.position"""
"""`ScoreRow`s of a study, one per member and task. A base that was scored on as many items is preferred."""

PARTS = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, t.fidelity, p.whole = t.task AS is_target,
  p.task AS scored, p.whole, p.parent, p.counts, p.position, p.n, p.metric, p.value, p.higher_is_better, p.low, p.high,
  p.comparability, b.value AS base_value
FROM members m JOIN trials t USING (key) JOIN parts p USING (key)
  LEFT JOIN base_parts b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.whole = p.whole
    AND b.parent = p.parent AND b.task = p.task AND b.split = p.split AND b.metric = p.metric
    AND b.comparability = p.comparability
WHERE m.study = ? AND m.role = 'confirm' AND t.status = 'complete'
QUALIFY row_number() OVER (PARTITION BY m.key, m.role, m.family, m.number, m.repetition, p.position
  ORDER BY (b.n = p.n) DESC NULLS LAST, b.n DESC) = 1
ORDER BY m.base_model, m.task, m.family, m.number, m.repetition, m.key, p.position"""
"""`PartRow`s of a study's confirmed trials, one per member and part of a group; only where groups were scored."""

CURVES = """
SELECT DISTINCT u.key, u.step, u.loss, u.score,
  u.train_seconds * CASE WHEN c.train_s > 0 THEN c.solo_train_s / c.train_s ELSE 1 END AS train_seconds
FROM curves u JOIN members m USING (key) JOIN costs c USING (key) WHERE m.study = ? ORDER BY u.key, u.step"""
"""`CurveRow`s of a study. Seconds are what training alone would have taken, since families are compared by them."""

PATHS = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, t.fidelity, t.stages AS stages_json,
  p.tuned_weight, p.task = t.task AS is_target, p.task AS scored, p.metric, p.value, p.higher_is_better,
  p.low, p.high, p.comparability
FROM members m JOIN trials t USING (key) JOIN paths p USING (key)
WHERE m.study = ? ORDER BY m.base_model, m.task, m.role, m.family, m.number, m.repetition, m.key, p.tuned_weight"""
"""`PathRow`s of a study, one per member, place and task; only where retention scored places between the weights."""


def each_once(rows: Iterable[MemberOrTrial]) -> list[MemberOrTrial]:
    """The first row of every key: a study may have one trial as several members."""
    # A study may have a trial as several members, but it ran once.
    first: dict[str, MemberOrTrial] = {}
    for row in rows:
        first.setdefault(row.key, row)
    return list(first.values())


def total(values: Iterable[float | None]) -> float:
    """The sum of what is known; 0 for nothing."""
    # Summed exactly, so that the order of rows cannot change a rounded digit.
    return fsum(value for value in values if value is not None)


def known_total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known, or None where nothing is: an unknown cost is not zero."""
    numbers = [value for value in values if value is not None]
    return fsum(numbers) if numbers else None

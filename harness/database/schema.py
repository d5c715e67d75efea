"""The database's tables and views: every column with its type, its meaning, and where in a record it comes from.

`ingest` builds the database from these declarations, `harness database --schema` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from harness.database.views import VIEWS
from harness.metrics.base import LM_EVAL_SCALES
from harness.records.codec import field_types


@dataclass(frozen=True)
class Column:
    """A declared column of a table."""

    name: str
    type: str
    meaning: str
    source: str
    """SQL over `r`, a staged record (or its list element), that gives the value."""


@dataclass(frozen=True)
class Table:
    """A declared table."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    source: str
    """The FROM clause over the staged records."""


def structure(kind: Any) -> Any:
    """The structure that `json_transform` gives the JSON of a record, by its fields; a mapping of unlike values stays JSON."""
    if is_dataclass(kind):
        return {name: structure(own) for name, own in field_types(kind).items()}
    origin, arguments = get_origin(kind), get_args(kind)
    own = [part for part in arguments if part is not type(None)]
    if origin is tuple:
        return [structure(arguments[0])]
    if origin in (Union, UnionType):
        return structure(own[0]) if len(own) == 1 else "JSON"
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return "VARCHAR"
    if origin is not None:
        value = structure(arguments[1])
        return f"MAP(VARCHAR, {value})" if value in _TYPES.values() else "JSON"
    return _TYPES.get(kind, "JSON")


_TYPES = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}

_STAGES = "r.config.pipeline.stages"
_TOTAL_S = "coalesce(list_sum(map_values(r.cost.seconds)), 0)"
_TRAIN_S = "coalesce(r.cost.seconds['train'], 0)"
_SOLO_TRAIN_S = f"coalesce(r.cost.solo_equivalent_s, {_TRAIN_S})"
_SOLO_S = f"({_TOTAL_S} - {_TRAIN_S} + {_SOLO_TRAIN_S})"
_SCALE_COLUMNS = """
            low DOUBLE | The metric's lowest value, where one is declared. | scale.low
            high DOUBLE | Its highest value, where one is declared. | scale.high"""
_PIPELINE = "md5(to_json([to_json(r.config.pipeline), to_json(r.config.task), to_json(r.config.steps)]))"


def _with_scale(source: str) -> str:
    """Scores with the scale of their metric.

    Records of before scales were declared have none. They take it from scores of the same comparability, else they mean
    lm-eval's metric of that name, unless a value does not lie on its scale.

    Args:
        source: A query of `s`, a score of a record, and what else is wanted.
    """
    alike = "(PARTITION BY s.task, s.metric, s.comparability)"

    def end(value: float | None) -> str:
        return f"{'NULL' if value is None else value}::DOUBLE"

    names = " ".join(
        f"WHEN '{name}' THEN {{'low': {end(scale.low)}, 'high': {end(scale.high)}}}"
        for name, scale in LM_EVAL_SCALES.items()
    )
    return f"""(SELECT * EXCLUDE (named, lowest, highest, declared), coalesce(declared, CASE WHEN
      lowest >= coalesce(named.low, lowest) AND highest <= coalesce(named.high, highest) THEN named END) AS scale
      FROM (SELECT *, {{'low': s.scale.low, 'high': s.scale.high}} AS own, CASE s.metric {names} END AS named,
        any_value(CASE WHEN s.scale IS NOT NULL THEN own END) OVER {alike} AS declared,
        min(s.value) OVER {alike} AS lowest, max(s.value) OVER {alike} AS highest FROM {source}))"""


def _columns(text: str, prefix: str) -> tuple[Column, ...]:
    """Columns from lines `name TYPE | meaning | source`; a source left out is the field of the same name."""
    columns = []
    for line in text.strip().splitlines():
        head, meaning, *source = (part.strip() for part in line.split("|"))
        name, type_ = head.split(" ", 1)
        columns.append(Column(name, type_, meaning, source[0] if source else f"{prefix}{name}"))
    return tuple(columns)


def _axis(name: str) -> str:
    return f"list_aggregate(list_transform({_STAGES}, lambda s: s.{name}), 'string_agg', '+')"


_TEMPLATE = "coalesce(r.config.pipeline.base_model.chat_template, '')"

TABLES = (
    Table(
        "trials",
        "One row per record: what was run, and how it ended.",
        _columns(
            f"""
            key VARCHAR | The trial's key; its record is trials/<first two digits>/<key>/record.json. | key
            status VARCHAR | How it ended; only complete and pruned trials have scores. | r.status
            reason VARCHAR | Why it did not complete, else empty. | r.reason
            base_model VARCHAR | The base model as named in the study. | r.config.pipeline.base_model.name
            base_revision VARCHAR | Its commit or content fingerprint. | r.config.pipeline.base_model.revision
            chat_template VARCHAR | The chat template that it was tuned and scored in; empty for plain text. | {_TEMPLATE}
            task VARCHAR | What was trained for. | r.config.task.name
            task_fingerprint VARCHAR | Hash of the task's file and data. | r.config.task.fingerprint
            pipeline VARCHAR | Hash of base model, stages, task and steps: equal for runs that differ in seed, split or fidelity. | {_PIPELINE}
            method VARCHAR | Which parameters moved, by stage, joined by +. | {_axis("method")}
            objective VARCHAR | What was minimised, by stage. | {_axis("objective")}
            retention VARCHAR | How old knowledge was kept, by stage. | {_axis("retention")}
            curation VARCHAR | What happened to the rows, by stage. | {_axis("curation")}
            params JSON | List of every stage's parameters. | to_json(list_transform({_STAGES}, lambda s: s.params))
            stages JSON | List of stages as recorded. | to_json({_STAGES})
            steps BIGINT | Optimiser steps of the full budget; 0 is the base model itself. | r.config.steps
            fidelity DOUBLE | Share of the full budget that the trial got. | r.config.fidelity
            seed BIGINT | Seed of initialisation and data order. | r.config.seed
            split VARCHAR | validation while searching, test when confirming. | r.config.evaluation.split
            item_limit BIGINT | Items scored per task; null is all. | r.config.evaluation.limit
            notes VARCHAR[] | What a reader must know beside the score. | r.notes
            """,
            "r.",
        ),
        "records",
    ),
    Table(
        "scores",
        "One row per trial and evaluated task.",
        _columns(
            f"""
            key VARCHAR | The trial. | key
            position BIGINT | 1 is the trial's own task where it has one; then the off-target suite. | position
            is_target BOOLEAN | Whether it is the trial's own task. | s.task = r.config.task.name
            task VARCHAR | What was scored.
            split VARCHAR | On which split.
            metric VARCHAR | By which metric.
            value DOUBLE | The score, in the metric's own unit and direction.
            stderr DOUBLE | Standard error over items.
            n BIGINT | Items scored.
            higher_is_better BOOLEAN | False for losses and perplexities.{_SCALE_COLUMNS}
            comparability VARCHAR | Scores with different keys are never ranked against each other.
            chance DOUBLE | Score of guessing: as the task states it, or what it gives where each item is a right or a wrong choice.
            answer_bits DOUBLE | Mean bits per byte of the right answers, of test items that have them. | NULL
            majority DOUBLE | Score of one answer to all items, the one that is most often right; null in old records.
            """,
            "s.",
        ),
        _with_scale(
            "(SELECT key, r, unnest(r.scores) AS s, generate_subscripts(r.scores, 1) AS position FROM records)"
        ),
    ),
    Table(
        "curves",
        "One row per trial and point of its learning curve.",
        _columns(
            """
            key VARCHAR | The trial. | key
            fraction DOUBLE | Share of the full training budget spent.
            step BIGINT | Optimiser steps so far.
            train_seconds DOUBLE | Wall seconds of training so far, evaluation excluded.
            tokens BIGINT | Tokens so far.
            loss DOUBLE | Mean training loss since the last point, nats per supervised token.
            score DOUBLE | The task's metric on the trial's split.
            """,
            "s.",
        ),
        "(SELECT key, unnest(r.curve) AS s FROM records)",
    ),
    Table(
        "paths",
        "One row per trial, place on the way from base to tuned weights, and task; only where retention walked it.",
        _columns(
            f"""
            key VARCHAR | The trial. | key
            tuned_weight DOUBLE | 0 is the base, 1 the tuned model. | p.tuned_weight
            task VARCHAR | What was scored.
            split VARCHAR | On which split.
            metric VARCHAR | By which metric.
            value DOUBLE | The score, in the metric's own unit and direction.
            stderr DOUBLE | Standard error over items.
            n BIGINT | Items scored.
            higher_is_better BOOLEAN | False for losses and perplexities.{_SCALE_COLUMNS}
            comparability VARCHAR | Scores with different keys are never ranked against each other.
            """,
            "s.",
        ),
        _with_scale("(SELECT key, p, unnest(p.scores) AS s FROM (SELECT key, unnest(r.path) AS p FROM records))"),
    ),
    Table(
        "parts",
        "One row per task or group within a group that was scored: what the group's one row in scores is made of.",
        _columns(
            f"""
            key VARCHAR | The trial. | key
            position BIGINT | A group comes before its members. | position
            whole VARCHAR | The group that has a row in scores.
            parent VARCHAR | The group that lists it: the whole, or one within.
            task VARCHAR | What was scored.
            is_group BOOLEAN | Whether it has parts itself.
            counts BOOLEAN | Whether the score of the whole is made of it, too.
            split VARCHAR | On which split.
            metric VARCHAR | By which metric.
            value DOUBLE | The score, in the metric's own unit and direction.
            stderr DOUBLE | Standard error over items.
            n BIGINT | Items scored.
            higher_is_better BOOLEAN | False for losses and perplexities.{_SCALE_COLUMNS}
            comparability VARCHAR | Scores with different keys are never ranked against each other.
            """,
            "s.",
        ),
        _with_scale("(SELECT key, unnest(r.parts) AS s, generate_subscripts(r.parts, 1) AS position FROM records)"),
    ),
    Table(
        "costs",
        "One row per trial: everything it cost, failures included.",
        _columns(
            f"""
            key VARCHAR | The trial. | key
            total_s DOUBLE | Wall seconds of all phases; of what trials shared, this one's share. | {_TOTAL_S}
            train_s DOUBLE | Wall seconds of training, its share. | r.cost.seconds['train']
            evaluate_s DOUBLE | Wall seconds of evaluation, its share. | r.cost.seconds['evaluate']
            seconds JSON | Wall seconds by phase. | to_json(r.cost.seconds)
            cpu_s DOUBLE | CPU seconds.
            gpu_s DOUBLE | GPUs held times wall seconds.
            peak_memory_bytes BIGINT | Device memory on a GPU, resident set on a CPU; of the training window only.
            tokens BIGINT | Tokens trained on.
            supervised_tokens BIGINT | Of these, tokens that carried loss.
            flops DOUBLE | Floating-point operations of training.
            energy_j DOUBLE | Joules, where measured.
            money DOUBLE | By the study's price table, where it has one.
            trainable_params BIGINT | Parameters that moved.
            total_params BIGINT | Parameters of the model.
            artifact_bytes BIGINT | Size of what the trial would keep.
            trained_with BIGINT | Trials that were trained together, itself included; 1 is alone. | coalesce(r.cost.trained_with, 1)
            solo_equivalent_s DOUBLE | Training seconds had nobody trained it with others, or tried to; null where nobody did.
            solo_train_s DOUBLE | Training seconds alone: what methods are compared by. | {_SOLO_TRAIN_S}
            solo_s DOUBLE | Wall seconds of all phases, had it been trained alone. | {_SOLO_S}
            solo_money DOUBLE | Money, had it been trained alone. | r.cost.money * {_SOLO_S} / nullif({_TOTAL_S}, 0)
            utilisation DOUBLE | Share of the measured matrix peak that training used, 0 to 1, where measured.
            """,
            "r.cost.",
        ),
        "records",
    ),
    Table(
        "provenance",
        "One row per trial: where and with what it ran.",
        _columns(
            """
            key VARCHAR | The trial. | key
            harness_version VARCHAR | Version of harness.
            versions JSON | Versions of libraries by name. | to_json(r.provenance.versions)
            hardware VARCHAR | GPU or CPU.
            hostname VARCHAR | Machine.
            python VARCHAR | Version of Python.
            git_commit VARCHAR | Commit of the working tree, where there is one.
            started_at TIMESTAMP | UTC. | TRY_CAST(TRY_CAST(r.provenance.started_at AS TIMESTAMPTZ) AS TIMESTAMP)
            source VARCHAR | Who ran it, where the harness did not: the name under which it was imported. | r.provenance.source
            study VARCHAR | Study that had it run; NULL where none did, or where nobody wrote it down.
            effective JSON | How it was really run, read back from the libraries' objects. | to_json(r.provenance.effective)
            plugins JSON | Hash of the code of each plug-in, by folder and name. | to_json(r.provenance.plugins)
            alone VARCHAR | Why it could not train together with others, where it could not. | r.provenance.effective.alone
            """,
            "r.provenance.",
        ),
        "records",
    ),
    Table(
        "items",
        "Item-level outcomes of trials scored on the test split (search trials keep theirs beside their records).",
        _columns(
            r"""
            key VARCHAR | The trial. | regexp_extract(filename, '([^/\\]+)[/\\]items\.parquet$', 1)
            task VARCHAR | What was scored.
            split VARCHAR | On which split.
            metric VARCHAR | By which metric.
            doc_hash VARCHAR | The item; equal for the same item in every trial.
            value DOUBLE | Its score.
            prediction VARCHAR | What the model said, where that was kept.
            answer_bits DOUBLE | Bits per byte of the right answer or text, where its likelihood was asked for; null in old records.
            pseudo_value DOUBLE | Stands for the item of a metric of all items at once (F1, BLEU, perplexity): their mean is the score. Else null.
            """,
            "",
        ),
        "",
    ),
    Table(
        "members",
        "One row per trial of a study, and why the study ran it.",
        _columns(
            """
            study VARCHAR | The study. | study
            key VARCHAR | The trial; several studies may share one. | m.key
            role VARCHAR | base, search or confirm.
            family VARCHAR | The pipeline family.
            task VARCHAR | What was trained for.
            base_model VARCHAR | The base model.
            repetition BIGINT | Which of the fresh seeds, when confirming.
            number BIGINT | Order in which the search asked.
            params JSON | The searched values.
            reused BOOLEAN | Whether another study had it run, so that it cost this one nothing.
            asked_at VARCHAR | UTC, ISO 8601.
            fidelity DOUBLE | At which share of the full budget it stopped. | coalesce(m.fidelity, 1)
            """,
            "m.",
        ),
        "staged_members",
    ),
    Table(
        "studies",
        "One row per study.",
        _columns(
            """
            study VARCHAR | Its name. | study
            question VARCHAR | What it asks. | coalesce(spec->>'$.study.question', spec->>'$.question')
            fingerprint VARCHAR | Hash of the whole study. | spec->>'$.fingerprint'
            spec JSON | The study file. | coalesce(spec->'$.study', spec)
            """,
            "",
        ),
        "staged_studies",
    ),
    Table(
        "damaged",
        "Files that could not be read and were left out.",
        _columns("path VARCHAR | The file.\nreason VARCHAR | What is wrong, and the remedy.", ""),
        "",
    ),
)


SCHEMA = (*TABLES, *VIEWS)
"""Everything in the database."""


def schema_text() -> str:
    """The documented schema as plain text: tables with typed columns, then views."""
    lines = []
    for table in TABLES:
        lines.append(f"{table.name}: {table.meaning}")
        lines += [f"  {column.name} {column.type}: {column.meaning}" for column in table.columns]
    return "\n".join([*lines, *(f"{view.name} (view): {view.meaning}" for view in VIEWS)])

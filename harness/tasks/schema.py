"""The JSON Schema of a task file, for editors."""

from __future__ import annotations

from dataclasses import fields

from harness.tasks.file import Keys
from harness.tasks.metadata import TaskMetadata

KINDS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "dict": "object", "list": "array"}


def task_json_schema() -> Keys:
    """lm-eval's fields, `include`, and the harness's `metadata`."""
    metadata = TaskMetadata.model_json_schema()
    # The parts of `metadata` refer to each other from the root of the whole document.
    definitions = metadata.pop("$defs")
    output_types = ["multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "harness task",
        "type": "object",
        "properties": {
            **_lm_evals(),
            "include": {"type": ["string", "array"], "description": "YAML to start from."},
            "output_type": {"enum": output_types},
            "group": {"type": "string", "description": "Name of a group of tasks; task then lists its members."},
            "group_alias": {"type": "string"},
            "aggregate_metric_list": {"type": ["array", "object"], "description": "What the group's score is of."},
            "metadata": metadata,
        },
        "anyOf": [
            {"required": ["include"]},
            {"required": ["group", "task"]},
            {"required": ["dataset_path", "metric_list", "doc_to_target"]},
        ],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _lm_evals() -> Keys:
    """lm-eval's fields by name, with what JSON can hold of their types."""
    from lm_eval.config.task import TaskConfig

    properties: Keys = {}
    for known in fields(TaskConfig):
        # Annotations are texts there, for example "dict[str, str] | None".
        kinds = [part.strip().split("[")[0] for part in str(known.type).split("|")]
        plain = sorted({KINDS[kind] for kind in kinds if kind in KINDS})
        properties[known.name] = {"type": plain if len(plain) > 1 else plain[0]} if plain else {}
    return properties

"""What a task file says under `metadata`, where lm-eval has no field for it; a misspelt key is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema, field_validator
from pydantic_core import ErrorDetails

from harness.errors import SpecError
from harness.study.spec import Strict, sentence
from harness.tasks.file import Keys

PROSE = ("licence", "license", "description", "source", "citation", "config_source")
"""Metadata that cannot change a score; not part of a task's fingerprint."""
REWARDS = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"regex": {"type": "string"}}, "required": ["regex"]},
    ]
}


class _Exact(Strict):
    """Refuses values of another type, too."""

    # Without `strict`, pydantic would take the text "5" for a number.
    model_config = ConfigDict(strict=True)


class Preference(_Exact):
    """Columns of preferred and rejected answers."""

    chosen: str
    rejected: str


class Chat(_Exact):
    """Which columns hold a chat; its last answer is what is learned and scored, and its earlier ones are learned too."""

    messages: str = Field("messages", description="Column of messages {role, content}, or {from, value}.")
    tools: str | None = Field(None, description="Column of JSON schemas of the functions that may be called.")
    plain: bool = Field(False, description="Whether models without a chat template read the chats as plain text.")


class Pieces(_Exact):
    """Which column's texts are cut, and how long a piece is at most."""

    column: str
    max_chars: int = Field(ge=1)


class DeclaredMetric(_Exact):
    """What lm-eval has no field for, of a metric that the task's own code computes."""

    higher_is_better: bool | None = Field(None, description="Direction, where the entry in metric_list has none.")
    bounds: list[float | None] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Lowest and highest value, for example [0, 100]; null for an end that there is none of.",
    )

    @field_validator("bounds")
    @classmethod
    def _is_ascending(cls, value: list[float | None] | None) -> list[float | None] | None:
        if value and None not in value and not value[0] < value[1]:  # type: ignore[operator]
            raise ValueError(
                f"metadata.metrics: bounds must be the lowest and the highest value, but are {value}: swap them"
            )
        return value


class TaskMetadata(_Exact):
    """A task's metadata, with the types that the harness needs; every key may be left out."""

    chance: float | None = Field(None, description="Score of guessing, in the metric's units.")
    licence: str | None = Field(None, description="Licence of the data.")
    license: str | None = Field(None, description="The same in American spelling.")
    description: str | None = Field(None, description="What the task asks, in one sentence.")
    source: str | None = Field(None, description="Where the data come from.")
    citation: str | None = Field(None, description="The paper that introduced the data.")
    config_source: str | None = Field(None, description="Where the task file comes from.")
    domain: str | None = Field(None, description="What the texts are about; recommendations compare tasks by it.")
    metrics: dict[str, DeclaredMetric] = Field(
        default_factory=dict, description="Direction and bounds of metrics that are nowhere else declared, by name."
    )
    preference: Preference | None = Field(
        None, description="Columns of preferred and rejected answers, for preference objectives."
    )
    chat: Chat | None = Field(
        None, description="Columns of chats, which the model's chat template renders; doc_to_text is left out then."
    )
    score: str | None = Field(None, description="Column with an answer's score in [0, 1], for objectives of scores.")
    reward: Annotated[Any, WithJsonSchema(REWARDS)] = Field(
        None,
        description="What a sampled answer is worth: exact_match, numeric, {regex: ...}, !function module.name, or "
        "the objective of an earlier stage that trains a reward model.",
    )
    pieces: Pieces | None = Field(
        None, description="Cuts the texts of a column into pieces, at paragraph, line, sentence or word ends."
    )
    version: Annotated[Any, WithJsonSchema({"type": ["number", "string"]})] = Field(
        None, description="Version of the task, for lm-eval's tables."
    )
    num_fewshot: int | None = Field(None, description="Number of examples that lm-eval's tables show.")

    @field_validator("chance", mode="before")
    @classmethod
    def _is_a_score(cls, value: object) -> object:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"metadata.chance must be the score of guessing, but is {value!r}: give a number")
        return value

    @field_validator("reward")
    @classmethod
    def _is_a_rule(cls, value: object) -> object:
        if not (value is None or isinstance(value, str | Mapping) or callable(value)):
            raise ValueError(
                f"metadata.reward must be a name, {{regex: ...}} or !function module.name, but is {value!r}: correct it"
            )
        return value

    @field_validator("version")
    @classmethod
    def _is_a_version(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float | str | None):
            raise ValueError(f"metadata.version must be a number or a text, but is {value!r}: correct it")
        return value


def read_metadata(given: Keys, where: str) -> TaskMetadata:
    """Check what a task file says under `metadata`.

    Args:
        given: Keys and values as the file has them, functions imported.
        where: The task, for error messages.

    Raises:
        SpecError: For an unknown key, or a value of another type.
    """
    try:
        return TaskMetadata.model_validate(given)
    except ValidationError as error:
        # A misspelt key is often a missing one as well: the misspelling is the mistake.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise SpecError(f"{where}: {_sentence(first)}") from error


def _sentence(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        # The validators above name the key themselves, in the sentence that users know.
        return error["msg"].removeprefix("Value error, ")
    return sentence({**error, "loc": ("metadata", *error["loc"])}, TaskMetadata)

"""Rows that hold a chat: their messages, as templates read them, whatever form the data have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of
from harness.files import parse_json
from harness.models.chat import Message, Tools
from harness.tasks.file import Keys
from harness.tasks.metadata import TaskMetadata
from harness.tasks.splits import Doc
from harness.tasks.table import docs

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
}
"""Roles as templates know them, by the words that data use: OpenAI's, and ShareGPT's."""
RENDERED = ("doc_to_text", "description", "gen_prefix", "target_delimiter")
"""Keys that a chat leaves no room for."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A row's chat up to the assistant's last answer."""

    asked: tuple[Message, ...]
    answer: Message
    rejected: Message | None = None
    """An answer that is liked less; None where the task has no preferences."""
    tools: Tools = ()


def conversation(doc: Doc, metadata: TaskMetadata, where: str) -> Conversation | None:
    """Read a row's chat; what comes after the assistant's last answer is left out.

    Args:
        doc: The row.
        metadata: Its task's, with `chat`.
        where: Its place, for messages.

    Returns:
        The chat; None where the assistant says nothing in it.

    Raises:
        SpecError: When a column holds no messages, or preferred and rejected answers follow different chats.
    """
    chat, preference = metadata.chat, metadata.preference
    assert chat is not None
    tools = _tools(_cell(doc, chat.tools, where), where) if chat.tools else ()
    if preference is None:
        turns = _trimmed(_messages(_cell(doc, chat.messages, where), where))
        return Conversation(asked=turns[:-1], answer=turns[-1], tools=tools) if turns else None
    before = _messages(doc[chat.messages], where) if doc.get(chat.messages) is not None else ()
    chosen, rejected = (
        (*before, *_answer(_cell(doc, column, where), where)) for column in (preference.chosen, preference.rejected)
    )
    if not chosen or not rejected or any(turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return None
    if chosen[:-1] != rejected[:-1]:
        raise SpecError(
            f"{where}: preferred and rejected answers must follow the same messages, but do not: keep rows whose chats differ "
            "in the last answer only"
        )
    return Conversation(asked=chosen[:-1], answer=chosen[-1], rejected=rejected[-1], tools=tools)


def check_chat(definition_keys: Keys, output_type: str, where: str) -> None:
    """Refuse keys of a task file that contradict its chats.

    Args:
        definition_keys: The task file's.
        output_type: lm-eval's word for how it is scored.
        where: The task, for messages.

    Raises:
        SpecError: For a template of prompts, or a task of whole texts.
    """
    refused = RENDERED if output_type == "generate_until" else (*RENDERED, "doc_to_target")
    for key in refused:
        if definition_keys.get(key):
            raise SpecError(
                f"{where}: metadata.chat says what is asked and answered, so {key} must be left out, but is set: remove one"
            )
    if output_type == "loglikelihood_rolling":
        raise SpecError(
            f"{where}: chats are scored on their last answer, so output_type must be generate_until, loglikelihood or "
            "multiple_choice, but is loglikelihood_rolling: choose one"
        )


def _cell(doc: Doc, column: str, where: str) -> Any:
    if column not in doc:
        raise SpecError(f"{where}: " + one_of("column of metadata.chat", column, list(doc)))
    return doc[column]


def _trimmed(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns up to the assistant's last one."""
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    return turns[: last + 1]


def _answer(cell: Any, where: str) -> tuple[Message, ...]:
    """An answer as a text, as a message or as messages."""
    if isinstance(cell, str) and not cell.lstrip().startswith("[{"):
        return ({"role": "assistant", "content": cell},)
    return _messages([cell] if isinstance(cell, Mapping) else cell, where)


def _messages(cell: Any, where: str) -> tuple[Message, ...]:
    listed = _parsed(cell)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not all(isinstance(m, Mapping) for m in listed):
        raise SpecError(
            f"{where}: a chat must be a list of messages {{role, content}}, but is {str(cell)[:80]!r}: name their column in "
            "metadata.chat.messages"
        )
    return tuple(_message(message, where) for message in listed)


def _message(given: Mapping[str, Any], where: str) -> Message:
    """A message as templates read it, without keys that say nothing."""
    own = {key: value for key, value in _present(given).items() if key not in ("from", "value")}
    role, content = own.get("role", given.get("from")), own.get("content", given.get("value"))
    if role not in ROLES:
        raise SpecError(f"{where}: " + one_of("role of a message", str(role), sorted(ROLES)))
    if isinstance(content, list):
        # Parts of one message, as for models that see pictures.
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise SpecError(f"{where}: a message must be text, but has other parts: keep rows of text only")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str | None) or (content is None and not own.get("tool_calls")):
        raise SpecError(f"{where}: a message must have a text as content, but has {content!r}: correct the data")
    calls = {"tool_calls": [_call(call) for call in own["tool_calls"]]} if own.get("tool_calls") else {}
    others = {key: value for key, value in own.items() if key not in ("role", "content", "tool_calls", "weight")}
    return {"role": ROLES[role], "content": content or "", **others, **calls}


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI writes them as JSON in a text, which templates would quote again."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": _parsed(function["arguments"])}}


def _tools(cell: Any, where: str) -> Tools:
    listed = _parsed(cell) or []
    if not isinstance(listed, list) or not all(isinstance(tool, Mapping) for tool in listed):
        raise SpecError(f"{where}: tools must be a list of JSON schemas, but are {str(cell)[:80]!r}: correct the data")
    return [_present(tool) for tool in listed]


def _parsed(cell: Any) -> Any:
    """What a text holds as JSON: columns of rows that differ in their keys are often kept so."""
    try:
        return parse_json(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell


def _present(value: Any) -> Any:
    """Without keys of no value: tables fill in those that only other rows have."""
    if isinstance(value, Mapping):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def with_answers(rows: Dataset, metadata: TaskMetadata, where: str) -> Dataset:
    """The rows in which the assistant says something that follows another message.

    Args:
        rows: Of a chat task.
        metadata: The task's.
        where: The task, for messages.
    """
    kept = answered_rows(rows, metadata, where)
    return rows if len(kept) == len(rows) else rows.select(kept)


def answered_rows(rows: Dataset, metadata: TaskMetadata, where: str) -> list[int]:
    """Places of the rows that `with_answers` keeps; its arguments."""
    chats = [conversation(doc, metadata, f"{where}: row {number}") for number, doc in enumerate(docs(rows), 1)]
    return [index for index, chat in enumerate(chats) if chat and chat.asked]

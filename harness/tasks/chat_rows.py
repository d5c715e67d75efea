"""Messages as a row's text: a prompt and the assistant's last answer, in a model's chat template or as plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from harness.errors import SpecError
from harness.models.chat import ChatTemplate, Message, RenderedChat, Span, Tools
from harness.tasks.chats import Conversation, conversation
from harness.tasks.file import Keys
from harness.tasks.splits import Doc
from harness.tasks.table import docs
from harness.tasks.task import Task

OWN = ("doc_to_target", "filter_list")
"""Keys by which a task of generated answers may say what of an answer counts."""
OF_NOBODY = ("system", "developer")
"""Roles whose messages are no turns."""
PLAIN = "Assistant:"
"""What asks for an answer where a chat is rendered without a template."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The messages that a row asks with, and what renders them as its prompt."""

    messages: tuple[Message, ...]
    template: ChatTemplate | None
    """None for chats that are read as plain text."""
    tools: Tools = ()
    beginning: str = ""
    """Of the answer, which the prompt ends with."""

    @property
    def question(self) -> str:
        """What the user says last; what comes last, where there is no user."""
        return str(self.messages[self._last]["content"])

    @property
    def _last(self) -> int:
        users = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        return users[-1] if users else len(self.messages) - 1

    def asking(self, question: str) -> Turns:
        """The same messages with another question."""
        return self._with(self._last, question)

    def alone(self) -> Turns:
        """The question without earlier turns; what is said to the model itself stays."""
        kept = [message for message in self.messages[: self._last] if message["role"] in OF_NOBODY]
        return replace(self, messages=(*kept, self.messages[self._last]))

    def after(self, beginning: str, turns: Sequence[Message]) -> Turns:
        """The same after other turns.

        Args:
            beginning: What the first turn begins with.
            turns: Of other chats, each ended by an answer.
        """
        places = [place for place, message in enumerate(self.messages) if message["role"] not in OF_NOBODY]
        start = places[0] if places else len(self.messages) - 1
        spoken = [message for message in turns if message["role"] not in OF_NOBODY]
        messages = (*self.messages[:start], *spoken, *self.messages[start:])
        return replace(self, messages=messages)._with(start, beginning + str(messages[start]["content"]))

    def prompt(self) -> tuple[str, tuple[Span, ...]]:
        """The text that a model is asked with, and where earlier answers of the assistant stand in it.

        Raises:
            SpecError: When the template cannot render it.
        """
        if self.template:
            return self.template.prompted(self.messages, self.tools, self.beginning)
        chat = _plain((*self.messages, {"role": "assistant", "content": ""}))
        return chat.prompt, chat.learned

    def _with(self, place: int, content: str) -> Turns:
        other = {**self.messages[place], "content": content}
        return replace(self, messages=(*self.messages[:place], other, *self.messages[place + 1 :]))


class RowRefused(SpecError):
    """A chat template cannot render a row, whose place stands in the sentence."""


@contextmanager
def at_row(task: Task, split: str, index: int) -> Iterator[None]:
    """Say in which row of a split a chat template met what it cannot render."""
    try:
        yield
    except RowRefused:
        raise
    except SpecError as error:
        raise RowRefused(f"{task.place(split, index)}: {error}") from error


class Chats:
    """A chat task's rows as text, for one template."""

    def __init__(self, task: Task, template: ChatTemplate | None) -> None:
        self.task, self.template = task, template
        self._last: tuple[Doc, RenderedChat] | None = None

    def turns(self, doc: Doc) -> Turns:
        """What a row asks with."""
        chat = self._conversation(doc)
        return Turns(messages=chat.asked, template=self.template, tools=chat.tools)

    def answered(self, doc: Doc) -> RenderedChat:
        """A row as prompt and answer."""
        # lm-eval asks for each part of a row in turn.
        if self._last is None or self._last[0] != doc:
            chat = self._conversation(doc)
            self._last = doc, self._rendered((*chat.asked, chat.answer), chat.tools)
        return self._last[1]

    def rejected(self, doc: Doc) -> str | None:
        """A row's rejected answer as text."""
        chat = self._conversation(doc)
        return self._rendered((*chat.asked, chat.rejected), chat.tools).answer if chat.rejected else None

    def config(self, first: Doc) -> Keys:
        """What lm-eval's configuration of the task has in place of templates.

        Args:
            first: A row, which shows what comes between a prompt and an answer.
        """
        answer = self.answered(first).answer
        between = answer[: len(answer) - len(answer.lstrip())]
        keys: Keys = {"doc_to_text": lambda doc: self.answered(doc).prompt, "target_delimiter": between}
        kind, own = self.task.output_type, self.task.config
        if kind == "loglikelihood":
            return keys | {"doc_to_target": lambda doc: self.answered(doc).answer}
        keys |= {"doc_to_target": lambda doc: self.answered(doc).answer.strip()}
        if kind == "generate_until":
            # Tokenizers differ in the white space that an answer begins with.
            stripped = {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            keys |= {"filter_list": [stripped]}
        elif not own.get("doc_to_choice"):
            keys |= {"doc_to_choice": self._pair, "doc_to_target": lambda doc: 0}
        return keys | {key: own[key] for key in OWN if own.get(key)}

    def _pair(self, doc: Doc) -> list[str]:
        """The preferred answer and the rejected one: which is likelier says whether a pair is ranked right."""
        answers = (self.answered(doc).answer, self.rejected(doc))
        if None in answers:
            raise SpecError(
                f"task {self.task.name}: a chat of multiple choice must have choices, but has none: add doc_to_choice, or "
                "metadata.preference for pairs of answers"
            )
        return [str(answer).strip() for answer in answers]

    def _conversation(self, doc: Doc) -> Conversation:
        chat = conversation(doc, self.task.metadata, f"task {self.task.name}")
        if chat is None or not chat.asked:
            raise SpecError(f"task {self.task.name}: a chat must have an answer of the assistant, but one has none")
        return chat

    def _rendered(self, messages: Sequence[Message], tools: Tools) -> RenderedChat:
        return self.template.answered(messages, tools) if self.template else _plain(messages)


def _plain(messages: Sequence[Message]) -> RenderedChat:
    """A chat without a template: each message after its role, with an empty line between two."""
    text, learned = "", list[Span]()
    for message in messages:
        said = " ".join(filter(None, [message["content"], *map(json.dumps, message.get("tool_calls", ()))]))
        role = f"{message['role'].capitalize()}:"
        learned += [(len(text) + len(role), len(text) + len(role) + 1 + len(said))] * (role == PLAIN)
        text += f"{role} {said}\n\n"
    start, end = learned.pop()
    return RenderedChat(prompt=text[:start], answer=text[start:end], end="", learned=tuple(learned))


def template_for(task: Task, template: ChatTemplate | None, model: str) -> ChatTemplate | None:
    """The template that a task's prompts are rendered in for a model; None for plain text.

    Args:
        task: What is trained for, or scored.
        template: The model's; None where it is tuned and scored without.
        model: Its name.

    Raises:
        SpecError: When the task's rows are chats, and nothing says how the model reads them.
    """
    if task.group is not None:
        for leaf in dict.fromkeys(task.leaves):
            template_for(leaf, template, model)
        return template
    chat = task.metadata.chat
    if chat is not None and template is None and not chat.plain:
        raise SpecError(
            f"task {task.name} holds chats, so {model} must have a chat template, but it has none or the study says "
            "chat_template: false: choose an instruct model, save a template as chat_template.jinja in the model's folder, "
            "or say metadata.chat.plain: true in the task file for chats as plain text"
        )
    # Whole texts answer nobody.
    return None if task.output_type == "loglikelihood_rolling" else template


def chat_notes(task: Task, template: ChatTemplate | None) -> list[str]:
    """What a reader must know of how a template renders a task's training chats.

    Args:
        task: What is trained for; nothing is said of tasks that hold no chats.
        template: The model's; None for plain text.

    Raises:
        SpecError: When the template cannot render a chat, or leaves something of it out.
    """
    if task.metadata.chat is None or template is None:
        return []
    chats = Chats(task, template)
    rendered, notes = list[RenderedChat](), list[str]()
    for index, doc in enumerate(docs(task.split("train"))):
        with at_row(task, "train", index):
            rendered.append(chats.answered(doc))
    if unlearned := sum(bool(chat.unlearned) for chat in rendered):
        notes.append(
            f"{unlearned} of {len(rendered)} chats have earlier answers that the chat template writes otherwise than they were "
            "given (without their reasoning, for example): these are not learned, the last answer is"
        )
    if left_out := next((chat.left_out for chat in rendered if chat.left_out), ""):
        notes.append(
            f"the chat template writes {left_out!r} before an answer that it is given, but does not when it asks for one: it "
            "is not learned"
        )
    return notes

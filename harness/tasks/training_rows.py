"""Training rows as lm-eval renders them, and what a reader of a task's scores must know."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.errors import SpecError, one_of
from harness.models.chat import ChatTemplate, Message, Span
from harness.tasks.chat_rows import Chats, Turns, at_row, template_for
from harness.tasks.lm_eval_task import (
    answer_of,
    border,
    gold_index,
    in_template,
    lm_eval_task,
    task_labels,
    template_errors,
)
from harness.tasks.metadata import Preference
from harness.tasks.overlap import overlap_notes, size_notes
from harness.tasks.own_answers import takes_delimiter
from harness.tasks.splits import Doc
from harness.tasks.table import docs
from harness.tasks.task import SPLITS, Task

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


_TRIED = 200
"""Rows that tell whether lm-eval scores answers with the delimiter before them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A training row: a prompt, which carries no loss, and the completion to learn, which does."""

    prompt: str = ""
    """Empty for plain text."""
    completion: str
    rejected: str | None = None
    """The answer that is liked less than the completion; None where the task has no preferences."""
    wrong: tuple[str, ...] | None = None
    """Choices other than the completion, which is the right one; None where the task is no multiple choice."""
    end: str = ""
    """What a chat template writes after any answer; it is learned with the completion."""
    learned: tuple[Span, ...] = ()
    """Earlier answers of a chat, which are learned too: where they stand in the prompt, in characters from its end."""
    doc: Doc = field(default_factory=dict)
    """The row of the task's data, column by column; empty for a row that no task's data have."""
    turns: Turns | None = None
    """The messages that the prompt renders; None where it is plain text."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.prompt + self.completion + self.end

    @property
    def question(self) -> str:
        """What is asked: what the user says last, or the whole prompt where it renders no messages."""
        return self.turns.question if self.turns else self.prompt

    def asking(self, question: str) -> Row:
        """The row with another question, asked in the same form; earlier answers are not learned again."""
        return self._rendered(self.turns.asking(question), 0) if self.turns else replace(self, prompt=question)

    def answering(self, answer: str) -> Row:
        """The row with another answer; in a chat template, after the white space that the row's own begins with."""
        bare = self.completion.lstrip()
        space = self.completion[: len(self.completion) - len(bare)]
        return replace(self, completion=space + answer.strip() if self.turns else answer)

    def another(self, question: str, answer: str) -> Row:
        """A row that asks and answers otherwise, in the form of this one, with nothing else of it."""
        return replace(self.asking(question).answering(answer), rejected=None, wrong=None, doc={})

    def alone(self) -> Row:
        """The row without the turns before its question."""
        return self._rendered(self.turns.alone(), 0) if self.turns else self

    def after(self, beginning: str, rows: Iterable[Row]) -> Row:
        """The row after other rows, each with its answer; of earlier answers, only its own are learned.

        Args:
            beginning: What all of it begins with.
            rows: Examples, as turns before the row's own, or as texts ended by an empty line.
        """
        if self.turns is None:
            shown = "".join(f"{row.prompt}{row.completion}{row.end}\n\n" for row in rows)
            return replace(self, prompt=beginning + shown + self.prompt)
        shots: list[Message] = []
        for row in rows:
            shots += row.turns.messages if row.turns else [{"role": "user", "content": row.prompt}]
            given = row.turns.beginning if row.turns else ""
            shots.append({"role": "assistant", "content": (given + row.completion).strip()})
        return self._rendered(self.turns.after(beginning, shots), len(self.learned))

    def _rendered(self, turns: Turns, learned: int) -> Row:
        """The row with other messages.

        Args:
            turns: They.
            learned: How many of the earlier answers are learned: the last ones.
        """
        prompt, spans = turns.prompt()
        own = spans[len(spans) - learned :] if learned else ()
        places = tuple((start - len(prompt), stop - len(prompt)) for start, stop in own)
        return replace(self, prompt=prompt, turns=turns, learned=places)


def training_rows(task: Task, template: ChatTemplate | None = None) -> list[Row]:
    """The training split as prompt and completion: exactly the strings that lm-eval would score.

    For multiple choice the completion is the right choice; for generation it is the target behind the target delimiter;
    plain text has an empty prompt. A task with `metadata.preference` gives the chosen column as completion and adds
    `rejected`; multiple choice adds `wrong`, the other choices after the same prompt. No examples are put before a prompt.
    A group's rows are those of its tasks, one task after the other.
    In a chat template, prompts are a user's turn and completions the assistant's; a chat's last answer is its completion.

    Args:
        task: The task.
        template: The chat template that prompts are rendered in (see `template_for`); None for plain text.

    Raises:
        SpecError: When there is no training split, it is empty, or a row does not fit the templates.
    """
    return list(_training_rows(task, template))


@lru_cache(maxsize=16)
def _training_rows(task: Task, template: ChatTemplate | None) -> tuple[Row, ...]:
    if task.group is not None:
        leaves = dict.fromkeys(task.leaves)
        return tuple(row for leaf in leaves for row in _training_rows(leaf, template_for(leaf, template, "the model")))
    built = lm_eval_task(task, "train", template=template)
    preference = task.metadata.preference
    rows, made = list(docs(task.split("train"))), list[Row]()
    try:
        if task.built_in and task.output_type == "generate_until" and not takes_delimiter(built, rows[:_TRIED]):
            # lm-eval's score of its own task stays as it is: what is trained must be what it takes for right.
            built = _undelimited(built)
        chats = Chats(task, template) if task.metadata.chat else None
        for index, doc in enumerate(rows):
            with at_row(task, "train", index):
                row = _row(built, doc, None if chats else preference)
                made.append(_chat_row(row, chats) if chats else row)
    except template_errors() as error:
        raise SpecError(
            f"task {task.name}: its training rows must fit the task file's templates, but row {len(made) + 1} does not "
            f"({error}): correct one"
        ) from error
    return tuple(made)


def _undelimited(built: ConfigurableTask) -> ConfigurableTask:
    """The same without a delimiter before answers; the task itself, which others have too, stays as it is."""
    other, config = copy(built), copy(built.config)
    config.target_delimiter = ""
    other._config = config
    return other


def _chat_row(row: Row, chats: Chats) -> Row:
    """The row of a chat with all of its answers."""
    chat, size = chats.answered(row.doc), len(row.prompt)
    return replace(
        row,
        completion=chat.answer,
        rejected=chats.rejected(row.doc),
        end=chat.end,
        learned=tuple((start - size, stop - size) for start, stop in chat.learned),
        turns=chats.turns(row.doc),
    )


def _row(built: ConfigurableTask, doc: Doc, preference: Preference | None) -> Row:
    # What lm-eval would ask a model to score is taken from its own requests, so that training cannot differ from it.
    prefix, template, prompts = built.doc_to_prefix(doc), built.template, list[Sequence[Message]]()
    options = in_template(template, prompts)
    context = built.fewshot_context(doc, num_fewshot=0, gen_prefix=prefix, **options)
    requests = built.construct_requests(doc=doc, ctx=context, metadata=(built.config.task, 0, 1), **options)
    if built.OUTPUT_TYPE == "loglikelihood_rolling":
        prompt, completion = "", requests.args[0]
    elif built.OUTPUT_TYPE == "loglikelihood":
        prompt, completion = requests.args
    elif built.OUTPUT_TYPE == "multiple_choice":
        prompt, completion = requests[gold_index(built, doc)].args
    else:
        prompt, completion = context, _bordered(built, doc, answer_of(built, doc))
    # Where a choice stands in the prompt, each has one of its own.
    asked = prompts[gold_index(built, doc) if len(prompts) > 1 else 0] if prompts else ()
    end = template.end_after(asked, prefix or "") if template else ""
    turns = Turns(messages=tuple(asked), template=template, beginning=prefix or "") if template else None
    row = Row(prompt=prompt, completion=completion, end=end, doc=dict(doc), turns=turns)
    if built.OUTPUT_TYPE == "multiple_choice":
        # Where the choice comes before the text, each choice has a prompt of its own: none of them is wrong after this one.
        others = [request.args[1] for request in requests if request.args[0] == prompt]
        row = replace(row, wrong=tuple(choice for choice in dict.fromkeys(others) if choice != completion))
    if preference:
        chosen, rejected = (_bordered(built, doc, _cell(doc, key, column)) for key, column in preference)
        row = replace(row, completion=chosen, rejected=rejected)
    return row


def _bordered(built: ConfigurableTask, doc: Doc, answer: str) -> str:
    return border(built, doc, answer) + answer


def _cell(doc: Doc, key: str, column: str) -> str:
    if column not in doc:
        raise SpecError(f"metadata.preference.{key}: " + one_of("column", column, list(doc)))
    return str(doc[column])


@lru_cache(maxsize=64)
def check_task(task: Task) -> tuple[str, ...]:
    """Read all of a task's data, and collect what a reader of its scores must know.

    Returns:
        Notes: splits made by hash, rows that two splits share, splits that are small or have one answer.

    Raises:
        SpecError: For an empty split, a missing column or value, or a label that is not among the choices.
    """
    notes = [*task.notes, *task.source.notes()]
    if task.group is not None:
        return (*notes, *_notes_of_tasks(task, check_task))
    for split in SPLITS:
        if split in task.parts:
            lm_eval_task(task, split)
            if count := task.left_out(split):
                notes.append(f"{count} chats of its {split} split are left out: in them the assistant answers nothing")
    if task.metadata.chat is None:
        notes += task_labels(task).notes
    if "train" in task.parts:
        rows = training_rows(task)
        if any(row.prompt != row.prompt.rstrip() for row in rows):
            notes.append("prompts end in white space, which lm-eval scores as the beginning of the answer")
    return (*notes, *_pair_notes(task), *overlap_notes(task), *size_notes(task, _answers(task)))


def _pair_notes(task: Task) -> list[str]:
    """What to write where pairs are trained on and something else is scored, which may not move when they are learned."""
    preference, choices = task.metadata.preference, task.config.get("doc_to_choice")
    if preference is None:
        return []
    ranked = task.output_type == "multiple_choice"
    if task.metadata.chat:
        keys = "output_type: multiple_choice"  # the pair itself is then what it chooses from
    else:
        columns = (preference.chosen, preference.rejected)
        ranked = ranked and all(re.search(rf"\b{re.escape(column)}\b", str(choices)) for column in columns)
        keys = f'output_type: multiple_choice, doc_to_choice: "{{{{[{", ".join(columns)}]}}}}", doc_to_target: 0'
    if ranked:
        return []
    return [
        f"pairs of answers are trained on, but {task.metric} of something else is scored: for the share of pairs ranked right write "
        f"{keys} and metric acc"
    ]


def _answers(task: Task) -> dict[str, Iterator[str]]:
    """The right answers of splits, in the order of their rows: those that are trained on, and choices that are scored."""
    answers: dict[str, Iterator[str]] = {}
    if "train" in task.parts and task.output_type != "loglikelihood_rolling":
        answers["train"] = (row.completion for row in training_rows(task))
    if task.output_type == "multiple_choice":
        built = {split: lm_eval_task(task, split) for split in ("validation", "test") if split in task.parts}
        answers |= {split: _right_choices(of, docs(task.split(split))) for split, of in built.items()}
    return answers


def _right_choices(built: ConfigurableTask, rows: Iterable[Doc]) -> Iterator[str]:
    return (str(built.doc_to_choice(doc)[gold_index(built, doc)]) for doc in rows)


def notes_of(task: Task) -> tuple[str, ...]:
    """What a reader of a task's scores must know, as far as its file says it; no data are read."""
    return (*task.notes, *(_notes_of_tasks(task, notes_of) if task.group else ()))


def _notes_of_tasks(group: Task, notes_of: Callable[[Task], Iterable[str]]) -> list[str]:
    """What is to know of a group's tasks: each note once, with those that it is about."""
    about: dict[str, list[str]] = {}
    for leaf in dict.fromkeys(group.leaves):
        for note in notes_of(leaf):
            about.setdefault(note, []).append(leaf.name)
    every = len(set(group.leaves))
    return [
        f"{'all of its tasks' if len(names) == every else ', '.join(names[:3]) + ' and others' * (len(names) > 3)}: {note}"
        for note, names in about.items()
    ]

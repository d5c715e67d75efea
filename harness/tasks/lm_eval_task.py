"""A task as lm-eval's own object over the harness's rows: it is scored, and it renders training rows.

Templates run in jinja's sandbox and are compiled once; lm-eval's warnings and progress bars are silenced.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_line, one_of
from harness.metrics.base import Answered, Settings, measure_of, register, settings_of
from harness.models.chat import ChatTemplate, Message
from harness.tasks.chat_rows import Chats, at_row
from harness.tasks.code import repeatable
from harness.tasks.definition import metric_name
from harness.tasks.file import Keys
from harness.tasks.labels import Labels, choices_of, gold_of, read_labels, whole_number
from harness.tasks.splits import Doc, hash_order
from harness.tasks.table import docs, is_value, mixed_columns
from harness.tasks.task import Task
from harness.tasks.templates import answer_text, sandbox, shown, value_of

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask


def import_lm_eval() -> None:
    """Import lm-eval, which takes seconds, before a trial waits for it."""
    import lm_eval.api.task  # noqa: F401


def lm_eval_task(
    task: Task, split: str, limit: int | None = None, template: ChatTemplate | None = None
) -> ConfigurableTask:
    """The task as lm-eval's object, with one split as its test split; built once per process.

    Args:
        task: The task.
        split: `train`, `validation` or `test`.
        limit: Only this many rows, the first in the order of their hashes; None for all.
        template: The chat template that prompts are rendered in (see `template_for`); None for plain text.

    Raises:
        SpecError: For an empty split, a missing column or value, or a label that is not among the choices.
    """
    return _built(task, split, limit, template)


@lru_cache(maxsize=256)  # mmlu alone has 57 tasks
def _built(task: Task, split: str, limit: int | None, template: ChatTemplate | None) -> ConfigurableTask:
    rows = task.split(split)
    where = f"task {task.name}: its {split} split"
    if not len(rows):
        raise SpecError(f"{where} must hold rows, but is empty: check the data files")
    if limit is not None and limit < len(rows):
        rows = rows.select([index for _, index in hash_order(rows)[:limit]])
    _check_columns(task.config, rows, where)
    config = dict(task.config) | {"test_split": "test", "custom_dataset": lambda: {"test": rows}}
    row = 1  # its constructor renders the first row
    try:
        if task.metadata.chat:
            with at_row(task, split, 0):
                built = _task_class()(config=config | Chats(task, template).config(docs(rows.select([0]))[0]))
        elif task.built_in:
            built = _task_class()(config=config)
        else:
            built = _own_task_class()(config, task_labels(task))
        built.template, built.origin = None if task.metadata.chat else template, (task, split)
        for row, doc in enumerate(docs(rows), 1):
            if task.output_type == "multiple_choice":
                gold_index(built, doc, f"{where}, row {row}")
            elif not task.built_in and not task.metadata.chat:
                built.doc_to_target(doc)
    except IndexError as error:
        raise SpecError(
            f"{where}, row 1: the label must be one of the choices, but that of {str(rows[0])[:120]} is not: correct the data"
        ) from error
    except template_errors() as error:
        raise SpecError(
            f"{where}, row {row}, must fit the task file's templates, but does not ({error}): correct one"
        ) from error
    return built


@lru_cache(maxsize=64)
def task_labels(task: Task) -> Labels:
    """How the labels of a task are read; decided on the rows of all its splits, so that none is read otherwise.

    Raises:
        SpecError: For the first row whose label is neither a choice nor the place of one.
    """
    if task.config.get("doc_to_choice") is None:
        return Labels()
    rows = []
    for split in task.parts:
        where = f"task {task.name}: its {split} split"
        _check_columns(task.config, task.split(split), where)
        rows += [(f"{where}, row {index}", doc) for index, doc in enumerate(docs(task.split(split)), 1)]
    try:
        return read_labels(task.config, rows)
    except template_errors() as error:
        raise SpecError(f"task {task.name} must fit its own templates, but does not ({error}): correct one") from error


def gold_index(built: ConfigurableTask, doc: Doc, where: str = "") -> int:
    """Which of a multiple-choice row's choices is right; the first where several are.

    Args:
        built: The task as lm-eval's object.
        doc: The row.
        where: The row's place, for the error message.

    Raises:
        SpecError: When the label is not among the choices.
    """
    choices = built.doc_to_choice(doc)
    target = built.doc_to_text(doc) if built.multiple_input else built.doc_to_target(doc)
    label = target[0] if isinstance(target, list) and target else target
    if isinstance(label, str) and label in choices:
        return int(choices.index(label))
    if isinstance(label, int) and 0 <= label < len(choices):
        return label
    raise SpecError(f"{where}: the label must be one of {choices} or its index, but is {label!r}: correct the data")


def _check_columns(config: Keys, rows: Dataset, where: str) -> None:
    """Every column that a template names must exist and have a value of one kind in every row."""
    cells, mixed = rows[:], mixed_columns(rows)
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix"):
        template = config.get(key)
        # A prefix without braces is plain text; anywhere else a bare word names a column.
        if not isinstance(template, str) or (key == "gen_prefix" and "{{" not in template):
            continue
        for column in _columns(template, rows.column_names):
            if column not in rows.column_names and "defined" in template:
                continue
            if column not in rows.column_names:
                raise SpecError(f"{where}: " + one_of(f"column in {key}", column, rows.column_names))
            if _decides(template):
                continue
            if column in mixed:
                raise SpecError(
                    f"{where}: {key} needs values of one kind in '{column}', but {mixed[column]}: correct one"
                )
            missing = next((index for index, value in enumerate(cells[column]) if not is_value(value)), None)
            if missing is not None:
                raise SpecError(f"{where}: {key} needs a value in '{column}', but row {missing + 1} has none: add it")


def _decides(template: str) -> bool:
    """Whether a template has logic of its own for values that may be missing."""
    blocks = re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL)
    return any(block.startswith("{%") or re.search(r"\b(if|is|or|default)\b", block) for block in blocks)


def _columns(template: str, known: Iterable[str]) -> set[str]:
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.meta import find_undeclared_variables

    if template in known:
        return {template}
    if template.isidentifier():  # a bare word is meant as a column; lm-eval would show the word itself in every row
        return {template}
    try:
        return set(find_undeclared_variables(Environment(autoescape=False).parse(template)))
    except TemplateSyntaxError as error:
        raise SpecError(f"a template must be valid jinja, but '{template}' is not ({error}): correct it") from error


@cache
def template_errors() -> tuple[type[Exception], ...]:
    """What rendering a row may raise."""
    from jinja2 import TemplateError

    return (TemplateError, ValueError, TypeError, SyntaxError, LookupError, AttributeError, AssertionError)


@contextmanager
def _rendering(task: str) -> Iterator[None]:
    """Say of what goes wrong inside that a task's templates do not fit its rows."""
    try:
        yield
    except template_errors() as error:
        raise SpecError(
            f"task {task}: its rows must give prompts as the task file's templates render them, but one does not "
            f"({one_line(str(error))}): correct a template, or that row"
        ) from error


@cache
def _task_class() -> type[ConfigurableTask]:
    """lm-eval's task class, without few-shot examples and with requests that are rendered once."""
    from lm_eval.api.task import ConfigurableTask

    _quieten()
    register()

    class RenderedTask(ConfigurableTask):  # type: ignore[misc]
        template: ChatTemplate | None = None
        """What lm-eval renders prompts in; a chat's own prompt has been rendered already."""
        exact = False
        """Whether texts are scored as they stand; lm-eval's own tasks are scored as lm-eval reads them."""

        origin: tuple[Task, str] | None = None
        """The task and its split."""

        def fewshot_context(self, doc: Doc, *arguments: Any, **options: Any) -> Any:
            try:
                return super().fewshot_context(doc, *arguments, **options)
            except SpecError:
                task, split = self.origin or (None, "")
                if task is None:
                    raise
                # Where only some rows are scored, their places are others.
                with at_row(task, split, docs(task.split(split)).index(dict(doc))):
                    raise

        def download(self, *args: Any, **kwargs: Any) -> None:
            # lm-eval would fetch the dataset itself, by name and without a commit.
            self.dataset = self.config.custom_dataset()
            self.config.custom_dataset = None

        def fewshot_docs(self) -> None:
            return None

        def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
            entry = self.config.metric_list[0]
            ours = None if callable(self.config.process_results) else measure_of(entry)
            if ours is None:
                return _named(entry, self.config, super().process_results(doc, results))
            return {entry["metric"]: ours.item(_answered(self, doc, results, settings_of(entry, self.config.task)))}

        def build_all_requests(self, **options: Any) -> None:
            if getattr(self, "_instances", None) is None:
                with repeatable(), _rendering(self.config.task):
                    super().build_all_requests(**in_template(self.template), **options)
            # The requests of the last model scored still hold its answers.
            for instance in self._instances:
                instance.resps, instance.filtered_resps = [], {}

    return RenderedTask


def _named(entry: Keys, config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """An item's values, the one that counts by the metric's name: a function may name several (pass@1, pass@10), the first counts."""
    if not callable(entry["metric"]) or callable(config.process_results) or not values:
        return values
    return {metric_name(entry): next(iter(values.values()))} | values


@cache
def _own_task_class() -> type[ConfigurableTask]:
    """The class of tasks that users write: what stands in a row is what is trained and what is scored."""

    class OwnTask(_task_class()):  # type: ignore[misc]
        exact = True

        def __init__(self, config: Keys, labels: Labels) -> None:
            self.labels = labels
            super().__init__(config=config | _border_apart(config))

        def doc_to_text(self, doc: Doc, doc_to_text: object = None) -> Any:
            value = shown(self.config.doc_to_text if doc_to_text is None else doc_to_text, doc)
            return whole_number(value) if self.labels.choose_prompt else value

        def doc_to_choice(self, doc: Doc, doc_to_choice: object = None) -> list[str]:
            return choices_of(vars(self.config), doc)

        def doc_to_target(self, doc: Doc, doc_to_target: object = None) -> Any:
            if self.config.doc_to_choice is not None and not self.labels.choose_prompt:
                return gold_of(vars(self.config), self.labels, doc)
            value = value_of(self.config.doc_to_target, doc)
            if self.OUTPUT_TYPE != "generate_until" or not isinstance(value, list | tuple):
                return answer_text(value)
            return [answer_text(one) for one in value]

        def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
            if self.OUTPUT_TYPE == "generate_until":
                # A model learns to put the delimiter before its answer, of which it is no part.
                delimiter = border(self, doc, answer_of(self, doc))
                results = [_without(delimiter, result) for result in results]
            scores: dict[str, Any] = super().process_results(doc, results)
            return scores

    return OwnTask


def _border_apart(config: Keys) -> Keys:
    """The white space before a target as part of the delimiter: not all tokenizers give a space back when they decode."""
    target = config.get("doc_to_target")
    if config["output_type"] != "generate_until" or config.get("gen_prefix") or not isinstance(target, str):
        return {}
    bare = target.lstrip()
    if "{{" not in target or bare == target:
        return {}
    return {"doc_to_target": bare, "target_delimiter": config.get("target_delimiter", " ") + target[: -len(bare)]}


def answer_of(built: ConfigurableTask, doc: Doc) -> str:
    """A row's answer; the first where several are right."""
    target = built.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target
    if built.config.doc_to_choice is not None and isinstance(target, int):
        target = built.doc_to_choice(doc)[target]
    return str(target)


def border(built: ConfigurableTask, doc: Doc, answer: str) -> str:
    """What stands between a row's prompt and its answer: lm-eval's rule for the answers of examples (`build_qa_turn`)."""
    from lm_eval.api.utils import maybe_delimit

    if prefix := built.doc_to_prefix(doc):
        return str(maybe_delimit(prefix, answer))[len(prefix) : -len(answer) or None]
    # A chat template itself writes what stands between a question and its answer.
    return "" if built.template else str(built.config.target_delimiter)


def _without(delimiter: str, result: Any) -> Any:
    """A generated text without the delimiter before it; of several texts each one."""
    if isinstance(result, str):
        return result.removeprefix(delimiter)
    return [_without(delimiter, one) for one in result] if isinstance(result, list | tuple) else result


def in_template(template: ChatTemplate | None, asked: list[Sequence[Message]] | None = None) -> Keys:
    """What lm-eval's functions take to render prompts in a chat template; nothing for plain text.

    Args:
        template: The template.
        asked: Gets the messages of each prompt, without the beginning of an answer.
    """

    def render(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        if asked is not None:
            asked.append(messages if add_generation_prompt else messages[:-1])
        return template.render(messages, add_generation_prompt) if template else ""

    return {"apply_chat_template": True, "chat_template": render} if template else {}


def _answered(built: ConfigurableTask, doc: Doc, results: Sequence[Any], settings: Settings) -> Answered:
    """An item with its answers, for a metric of ours."""
    if built.OUTPUT_TYPE == "loglikelihood":
        nats = [float(value) for value, _ in results]
        return Answered(doc=doc, answers=nats, choices=(str(built.doc_to_target(doc)),), gold=0, settings=settings)
    if built.OUTPUT_TYPE != "multiple_choice":
        return Answered(doc=doc, answers=results, choices=(), gold=-1, settings=settings)
    choices = tuple(map(str, built.doc_to_choice(doc)))
    nats = [float(value) for value, _ in results[: len(choices)]]
    return Answered(doc=doc, answers=nats, choices=choices, gold=gold_index(built, doc), settings=settings)


@cache
def _quieten() -> None:
    """Once per process: lm-eval's templates in a sandbox and compiled once, and only its errors in the log."""
    import lm_eval.api.task
    import lm_eval.utils

    lm_eval.utils.env = sandbox()
    hide_bars(lm_eval.api.task)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def hide_bars(*modules: Any) -> None:
    """Switch off the progress bars of these modules; lm-eval has no option for all of them."""
    for module in modules:
        bar = module.tqdm
        module.tqdm = lambda *args, _bar=bar, **options: _bar(*args, **(options | {"disable": True}))

"""A study's texts in tokens, under each of its base models: what will be cut, and what cannot be trained or scored.

Rows and requests are encoded as trials will encode them (`models/tokens`), so that what is said here is what happens. Each
task proves itself under each model (`evaluation/proof`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from harness.driver.experiment import Experiment, TaskInfo
from harness.driver.kept import kept
from harness.errors import SpecError
from harness.models.tokens import Encoder, TokenCache
from harness.nn.sequences import IGNORED
from harness.plugins import AXIS_FOLDER, code_hash
from harness.records.codec import Json, Record, to_json
from harness.space import Params

if TYPE_CHECKING:
    from harness.axes.encoding import Cuts, EncodedRows
    from harness.models.base_model import BaseModel
    from harness.models.chat import ChatTemplate
    from harness.tasks.task import Task
    from harness.tasks.training_rows import Row
    from harness.training.choices import Choices


@dataclass(frozen=True)
class Lengths(Record):
    """What is counted of a study's texts."""

    tokens: Mapping[str, Mapping[str, float]]
    """Mean of a training row, by task and base model."""
    longest: Mapping[str, Mapping[str, tuple[int, int]]]
    """Tokens of the longest training row, and most tokens of one that carry loss, likewise."""
    notes: tuple[str, ...]


def with_lengths(experiment: Experiment, models: Sequence[BaseModel], tasks: Mapping[str, Task]) -> Experiment:
    """The experiment with the mean tokens of its tasks' training rows, and notes of what will be cut.

    Args:
        experiment: Resolved otherwise.
        models: Its base models.
        tasks: Every task that it names or evaluates, by name.

    Raises:
        SpecError: When a text has a token that a model does not have, or does not fit a model's context, or when what a task
            teaches is not what it scores as right.
    """
    counted = kept(experiment.paths, Lengths, _depends(experiment, tasks), partial(_counted, experiment, models, tasks))
    return replace(
        experiment,
        tasks=tuple(
            replace(task, tokens=counted.tokens[task.ref.name], longest=counted.longest[task.ref.name])
            for task in experiment.tasks
        ),
        notes=(*experiment.notes, *counted.notes),
    )


def _depends(experiment: Experiment, tasks: Mapping[str, Task]) -> list[Json]:
    """All that decides what is counted."""
    spec, models = experiment.spec, [to_json(model.ref) for model in experiment.models]
    data = {name: task.ref.fingerprint for name, task in tasks.items()}
    asked = spec.model_dump(mode="json", include={"families", "tasks", "off_target", "search", "confirm"})
    stages = [stage.spec for family in experiment.families.values() for stage in family.stages]
    code = {code_hash(folder, getattr(stage, axis)) for stage in stages for axis, folder in AXIS_FOLDER.items()}
    return [models, data, asked, sorted(code)]


def _counted(experiment: Experiment, models: Sequence[BaseModel], tasks: Mapping[str, Task]) -> Lengths:
    notes: list[str] = []
    tokens: dict[str, dict[str, float]] = {task.ref.name: {} for task in experiment.tasks}
    longest: dict[str, dict[str, tuple[int, int]]] = {task.ref.name: {} for task in experiment.tasks}
    for model in models:
        texts = _Texts(experiment, model, tasks)
        notes += texts.template_notes()
        for task in experiment.tasks:
            tokens[task.ref.name][model.ref.name] = texts.mean_tokens(task.ref.name)
            longest[task.ref.name][model.ref.name] = texts.longest(task.ref.name)
            notes += texts.training_notes(task.ref.name)
            notes += texts.proof_notes(task.ref.name)
        for info in (*experiment.tasks, *experiment.off_target):
            notes += texts.scoring_notes(info)
    return Lengths(tokens, longest, tuple(dict.fromkeys(notes)))


class _Texts:
    """A study's texts under one base model."""

    def __init__(self, experiment: Experiment, model: BaseModel, tasks: Mapping[str, Task]) -> None:
        from harness.models.base_model import embedded_tokens, load_config, load_tokenizer
        from harness.models.chat import template_of

        self.experiment, self.tasks, self.model, self.name = experiment, tasks, model, model.ref.name
        self.template = template_of(model)
        self.config, self.tokenizer = load_config(model), load_tokenizer(model)
        self._known_cuts: dict[tuple[object, ...], Cuts | None] = {}
        self._known_rows: dict[str, EncodedRows] = {}
        encode = TokenCache().encoder(self.tokenizer, experiment.paths.cache).encode
        self.encoder = Encoder(self.tokenizer, partial(_embedded, encode, embedded_tokens(model), self.name))

    def template_notes(self) -> Iterator[str]:
        """What a reader must know of how the model reads tasks; refuses chats that it has no template for."""
        from harness.tasks.chat_rows import chat_notes

        if self.template is not None:
            yield f"{self.name}: tuned and scored in its chat template ({self.template.identity[:8]})"
        for info in (*self.experiment.tasks, *self.experiment.off_target):
            self._template(self.tasks[info.ref.name])
        trained = [self.tasks[info.ref.name] for info in self.experiment.tasks]
        for leaf in dict.fromkeys(leaf for task in trained for leaf in task.leaves):
            for note in chat_notes(leaf, self.template):
                yield f"{leaf.name} in the chat template of {self.name}: {note}"

    def mean_tokens(self, task: str) -> float:
        """Of a training row."""
        sequences = self._encoded(task).sequences
        return sum(len(sequence.input_ids) for sequence in sequences) / max(1, len(sequences))

    def longest(self, task: str) -> tuple[int, int]:
        """Tokens of the longest training row, and most tokens of one that carry loss."""
        sequences = self._encoded(task).sequences
        answers = (sum(label != IGNORED for label in sequence.labels[1:]) for sequence in sequences)
        return max((len(sequence.input_ids) for sequence in sequences), default=1), max(answers, default=1)

    def training_notes(self, task: str) -> Iterator[str]:
        """What families will cut of training rows, and where tokens would span prompt and answer."""
        from harness.training.choices import choices

        said: dict[str, list[str]] = {}
        for family in self.experiment.families.values():
            for stage, defaults in zip(family.stages, family.stages_at({}), strict=True):
                data = stage.spec.data or task
                if cuts := self._cuts(choices(defaults), data):
                    said.setdefault(f"{data} on {self.name}: training rows: {cuts}", []).append(family.name)
        yield from (f"{note} ({', '.join(dict.fromkeys(names))})" for note, names in said.items())
        rows = self._rows(task)
        pairs = [(row.prompt, row.completion) for row in rows if row.prompt]
        if spanning := self.encoder.spanning(pairs, self._generates(task)):
            yield (
                f"{task} on {self.name}: a token would span prompt and answer in {spanning} of {len(rows)} training rows: "
                "they are encoded apart there, in training as in scoring"
            )

    def proof_notes(self, task: str) -> Iterator[str]:
        """What a task's training rows teach that is not scored as right; refuses where nothing is."""
        from harness.evaluation.proof import prove_answers

        for leaf in dict.fromkeys(self.tasks[task].leaves):
            yield from prove_answers(leaf, self._template(leaf), self.encoder, self.name)

    def scoring_notes(self, info: TaskInfo) -> Iterator[str]:
        """What will be cut of prompts that are scored, and answers that nothing ends."""
        from harness.evaluation.generation import check_settings
        from harness.evaluation.proof import prove_choices, prove_scored
        from harness.evaluation.responses import prompts_cut, scored_length
        from harness.tasks.lm_eval_task import lm_eval_task

        task, spec = self.tasks[info.ref.name], self.experiment.spec
        length = scored_length(self.config, self.tokenizer)
        for split, limit in (("validation", spec.search.limit), ("test", spec.confirm.limit)):
            for leaf in dict.fromkeys(task.leaves):
                built = lm_eval_task(leaf, split, limit, self._template(leaf))
                built.build_all_requests()
                if leaf.output_type == "generate_until":
                    check_settings(self.model, self.tokenizer, built)
                prove_scored(leaf, split, built)
                yield from prove_choices(leaf, split, built, self.encoder, self.name)
                if cut := prompts_cut(self.encoder, built, length):
                    yield (
                        f"{leaf.name} on {self.name}: of {len(built.instances)} prompts of {split}, {cut} lose their "
                        f"beginning when they are scored, to fit the context of {length} tokens"
                    )
        if self._generates(task.name) and not self.encoder.end:
            yield (
                f"{task.name} on {self.name}: the tokenizer has no end token, so that training ends no answer, and "
                "generation goes on until a stop string or max_gen_toks"
            )

    def _cuts(self, chosen: Choices, task: str) -> Cuts | None:
        """What a stage will cut of a task's rows, as the task gives them."""
        from harness.models.base_model import context_length
        from harness.training.prepare import try_curation

        if not chosen.method.needs_training:
            return None
        reserved = chosen.method.reserved(chosen.params)
        limit = context_length(self.config, chosen.params.integer("max_length"), reserved)
        params = Params(chosen.params, max_length=limit)
        chosen.curation.check(self._rows(task), self.encoder, params, self._generates(task))
        try_curation(chosen, self._rows(task), params, self.tokenizer)
        # Families mostly differ in what rows do not depend on.
        own = tuple((name, params[name]) for name in sorted({*chosen.objective.space, "max_length"}))
        key = (task, type(chosen.objective), own)
        if key not in self._known_cuts:
            self._known_cuts[key] = chosen.objective.cuts(self._encoded(task), params)
        return self._known_cuts[key]

    def _encoded(self, task: str) -> EncodedRows:
        from harness.axes.encoding import EncodedRows

        if task not in self._known_rows:
            self._known_rows[task] = EncodedRows(self._rows(task), self.encoder, self._generates(task))
        return self._known_rows[task]

    def _rows(self, task: str) -> list[Row]:
        from harness.tasks.training_rows import training_rows

        return training_rows(self.tasks[task], self._template(self.tasks[task]))

    def _template(self, task: Task) -> ChatTemplate | None:
        from harness.tasks.chat_rows import template_for

        return template_for(task, self.template, self.name)

    def _generates(self, task: str) -> bool:
        return self.tasks[task].output_type == "generate_until"


def _embedded(
    encode: Callable[[Sequence[str]], list[list[int]]], tokens: float, name: str, texts: Sequence[str]
) -> list[list[int]]:
    """Ids of texts, all of which the model must embed.

    Args:
        encode: Of the tokenizer.
        tokens: How many tokens the model embeds.
        name: The model's.
        texts: To encode.
    """
    found = encode(texts)
    for text, ids in zip(texts, found, strict=True):
        if ids and max(ids) >= tokens:
            raise SpecError(
                f"texts must be of tokens that {name} embeds, but {text[:60]!r} has a token with the id {max(ids)}, and the "
                f"model embeds {tokens:.0f}: take that token out of the tokenizer or the text, or resize the model "
                "(resize_token_embeddings) and save it again"
            )
    return found

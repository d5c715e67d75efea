"""From a task's name to advice, and from advice to a tuned model: what `harness recommend` and `harness train` do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import yaml
from pydantic import Field, ValidationError

from harness.errors import PartialFailure, SpecError, UsageError
from harness.files import make_folder, parse_json, read_yaml
from harness.records.paths import Paths
from harness.records.trial import Evaluation, Pipeline, Score, Stage, TaskRef, TrialConfig, TrialResult
from harness.study.spec import Count, FamilySpec, StageSpec, StudySpec, sentences

if TYPE_CHECKING:
    from harness.models.base_model import BaseModel
    from harness.recommend.rank import Advice, NotEnoughEvidence
    from harness.tasks.task import Task
    from harness.trial.model_folder import Keeps


@dataclass(frozen=True)
class Answer:
    """What `recommend` prints: one of its two parts is there."""

    task: str
    base_model: str
    advice: Advice | None = None
    not_enough_evidence: NotEnoughEvidence | None = None
    measured: tuple[str, ...] = ()
    """What studies say that confirmed pipelines on this very task and base model, their verdicts first."""

    def text(self) -> str:
        """For a terminal: what was measured, then what is expected of pipelines."""
        answer = self.advice or self.not_enough_evidence
        return "\n".join([*self.measured, *([answer.text()] if answer else [])])


class PipelineFile(FamilySpec):
    """A pipeline to train with, instead of a recommended one: a family of a study file, its base model and steps."""

    model: str = Field(description="Base model: embedded, a folder, or a Hugging Face id.")
    revision: str | None = None
    chat_template: bool | None = Field(
        None,
        description="Whether the base is tuned in its tokenizer's chat template; left out, it is where there is one.",
    )
    steps: Count = Field(description="Optimiser steps.")


class Limits(TypedDict, total=False):
    """What a recommended pipeline may cost at most, and how many are ranked; see `recommend.candidates.Request`."""

    max_forgetting: float | None
    max_seconds: float | None
    max_memory_bytes: float | None
    top: int


class Wanted(TypedDict):
    """What `train` leaves, and whether it does."""

    output: Path | None
    """Model folder; None for the usual one."""
    seed: int
    keep: Keeps
    dry_run: bool


@dataclass(frozen=True)
class Trained:
    """What `train` leaves."""

    folder: Path | None
    """None for a dry run or a failed trial."""
    pipeline: str
    """As YAML."""
    result: TrialResult | None = None
    base_scores: tuple[Score, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 4 when the trial ended without a score."""
        return PartialFailure.exit_code if self.result and not self.result.status.has_scores else 0

    def text(self) -> str:
        """The pipeline, its scores beside the base's, and where the model lies."""
        if self.result is None:
            return self.pipeline
        if not self.result.status.has_scores:
            return f"{self.pipeline}\n{self.result.status}: {self.result.reason}"
        before = {score.task: score.value for score in self.base_scores}
        scores = [
            f"{score.task} {score.metric} {score.value:.4g} (base {before.get(score.task, float('nan')):.4g}, n {score.n})"
            for score in self.result.scores
        ]
        return "\n".join([self.pipeline, *scores, f"{self.result.cost.total_s:.1f} s; model in {self.folder}"])


def advise(
    paths: Paths, task: Task, model: str | None, score_base: tuple[Path, ...] | None = None, **limits: Unpack[Limits]
) -> Answer:
    """Rank pipelines for a task, or say what evidence is missing.

    Args:
        paths: Where the records are.
        task: Any task, in a study or not.
        model: Base model; None takes the one with the most evidence.
        score_base: Task folders, if the base is to be scored on the task where that was never done; without a base
            score only gains can be predicted.
        limits: What the pipelines may cost at most.

    Raises:
        SpecError: When no model is named and there is no evidence on any.
        StorageError: When there is no database.
    """
    from harness.axes.contract import Situation
    from harness.models.base_model import resolve_model
    from harness.models.chat import in_template
    from harness.models.facts import model_facts
    from harness.recommend.lookup import most_evidence, request_for
    from harness.recommend.rank import NotEnoughEvidence, recommend
    from harness.tasks.facts import task_facts

    # Gains of one base say little of another, so without a wish the base that most is known of is the safest.
    name = model or most_evidence(paths)
    if name is None:
        raise SpecError(
            "a recommendation needs records, but there are none: run a study first, for example `snakemake`"
        )
    base = in_template(resolve_model(name, None))
    # Which machine will train is not known here: what the CPU refuses is refused, the rest is ranked.
    situation = Situation(device="cpu", model=model_facts(base), task=task_facts(task))
    request = request_for(paths, task, base, situation=situation, **limits)
    if request.base_score is None and score_base is not None:
        request = replace(request, base_score=_base_score(paths, task, base, score_base))
    answer, measured = recommend(paths, request), tuple(_measured(paths, task, base))
    if isinstance(answer, NotEnoughEvidence):
        return Answer(task.name, name, not_enough_evidence=answer, measured=measured)
    return Answer(task.name, name, advice=answer, measured=measured)


def _measured(paths: Paths, task: Task, base: BaseModel) -> Iterator[str]:
    """The verdict of each study that confirmed pipelines on this very task and base model."""
    from harness.recommend.lookup import confirmed_in
    from harness.report.conclusion import said_now

    for study in confirmed_in(paths, task, base):
        for one in said_now(paths, study):
            if (one.task, one.base_model) == (task.name, base.ref.name):
                yield f"Measured by study {study}: {one.text}"


def _base_score(paths: Paths, task: Task, base: BaseModel, folders: tuple[Path, ...]) -> float | None:
    """The base's validation score, from its record or scored now."""
    from harness.trial.group import Workspace, run_trial

    order = Order(task=task, base=base, stages=(), steps=0)
    # Validation, not test: advice selects, and what selects must not see the test split.
    config = replace(order.base_config(), evaluation=Evaluation("validation"))
    target = run_trial(config, Workspace(paths, folders)).target
    return target.value if target else None


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to train: a pipeline for a task, and what to score it on."""

    task: Task
    base: BaseModel
    stages: tuple[Stage, ...]
    steps: int
    off_target: tuple[TaskRef, ...] = ()

    def config(self, seed: int) -> TrialConfig:
        """The trial that trains it and opens its test split."""
        pipeline = Pipeline(self.base.ref, self.stages)
        return TrialConfig(
            pipeline=pipeline,
            task=self.task.ref,
            steps=self.steps,
            seed=seed,
            evaluation=Evaluation(split="test", off_target=self.off_target),
        )

    def base_config(self) -> TrialConfig:
        """The trial that scores the base on the same."""
        untouched = Pipeline(self.base.ref, (Stage(method="none"),))
        return replace(self.config(0), pipeline=untouched, steps=0)

    def text(self) -> str:
        """As a pipeline file."""
        stages = [
            {key: value for key in StageSpec.model_fields if (value := getattr(stage, key)) is not None}
            | {"params": dict(stage.params)}
            for stage in self.stages
        ]
        return str(
            yaml.safe_dump({"model": self.base.ref.name, "steps": self.steps, "stages": stages}, sort_keys=False)
        )


def order_from_file(path: Path, task: Task) -> Order:
    """Read a pipeline file.

    Args:
        path: The file.
        task: What is trained for.

    Raises:
        SpecError: With one sentence per broken rule.
    """
    from harness.models.base_model import resolve_model
    from harness.models.chat import in_template
    from harness.study.family import resolve_family

    data = read_yaml(path)
    # A pipeline of one stage may leave out `stages`, as a family in a study file may.
    outer = {key: data.pop(key) for key in ("model", "revision", "chat_template", "steps") if key in data}
    try:
        spec = PipelineFile.model_validate(outer | (data if "stages" in data else {"stages": [data]}))
    except ValidationError as error:
        raise SpecError(f"{path}: " + sentences(error, PipelineFile)) from error
    base = in_template(resolve_model(spec.model, spec.revision), spec.chat_template)
    family = resolve_family(path.stem, spec)
    return Order(task=task, base=base, stages=family.stages_at({}), steps=spec.steps)


def order_from_advice(paths: Paths, task: Task, model: str | None) -> Order:
    """The first recommendation for a task.

    Args:
        paths: Where the records are.
        task: What is trained for.
        model: Base model; None takes the one with the most evidence.

    Raises:
        UsageError: When there is not enough evidence to recommend anything.
    """
    from harness.models.base_model import resolve_model
    from harness.models.chat import in_template

    answer = advise(paths, task, model, top=1)
    if answer.advice is None:
        reason = answer.not_enough_evidence.reason if answer.not_enough_evidence else ""
        raise UsageError(
            f"train must have a recommendation to follow, but there is not enough evidence ({reason}): see "
            f"`harness recommend --task {task.name}`, or say what to do with --pipeline FILE"
        )
    best = answer.advice.recommendations[0]
    return Order(
        task=task, base=in_template(resolve_model(answer.base_model, None)), stages=best.stages, steps=best.steps
    )


def with_suite(order: Order, paths: Paths, folders: tuple[Path, ...]) -> Order:
    """The order with the off-target suite and the corpus that studies of its base model use.

    Args:
        order: What is to be trained.
        paths: Where the studies' files are.
        folders: Where tasks are looked for.
    """
    from harness.models.base_model import resolve_model
    from harness.tasks.corpus import with_corpus
    from harness.tasks.task import find_task

    names: dict[str, None] = {}
    corpus = None
    for study in started_studies(paths):
        for model in study.base_models:
            if model.name == order.base.ref.name:
                names |= dict.fromkeys(name for name in study.off_target if name != order.task.name)
                corpus = corpus or model.corpus
    # The pinned revision, since a hub model may have moved on since it was recommended.
    base = resolve_model(order.base.ref.name, order.base.ref.revision, corpus)
    ref = replace(with_corpus(base, folders), chat_template=order.base.ref.chat_template)
    base = replace(base, ref=ref)
    return replace(order, base=base, off_target=tuple(find_task(name, folders).ref for name in names))


def started_studies(paths: Paths) -> list[StudySpec]:
    """The studies that were started here, as they were started; files that are none (any more) are left out."""
    studies = []
    for files in paths.started():
        with suppress(ValueError, AttributeError):
            data = parse_json(files.spec.read_text())
            studies.append(StudySpec.model_validate(data.get("study", data)))
    return studies


def train_model(paths: Paths, order: Order, folders: tuple[Path, ...], **wanted: Unpack[Wanted]) -> Trained:
    """Score the base, train, score, and leave a model folder with its card.

    Args:
        paths: Where records go.
        order: What to train.
        folders: Where tasks are looked for.
        wanted: What is to be left.

    Raises:
        UsageError: When the output folder has something in it.
        StorageError: When it cannot be written to.
        SpecError: When the base model is not what it says it is.
    """
    from harness.models.soundness import check_model
    from harness.trial.group import Workspace, run_trial
    from harness.trial.model_folder import write_model_card
    from harness.trial.process import WarmProcess

    folder = wanted["output"] or paths.trained(order.task.name)
    # Before anything is spent: a folder of somebody's files would be mixed with the model's.
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--output must be a new or empty folder, but '{folder}' has files in it: name another")
    if wanted["keep"] != "merged" and (reason := _not_apart(order.stages[-1], wanted["keep"])):
        raise UsageError(
            f"--keep {wanted['keep']} must be of a pipeline that ends in an adapter, but {reason}: leave --keep out"
        )
    if wanted["dry_run"]:
        return Trained(None, order.text())
    check_model(order.base)
    make_folder(folder)  # nothing should be trained that cannot be left there
    corpora = {order.base.ref.name: order.base.corpus} if order.base.corpus else {}
    workspace = Workspace(paths, folders, keep_model=True, keeps=wanted["keep"], corpora=corpora)
    process = WarmProcess()  # both trials use one base model: it is loaded once
    base = run_trial(order.base_config(), replace(workspace, keep_model=False), process)
    result = run_trial(order.config(wanted["seed"]), workspace, process)
    if not result.status.has_scores:
        with suppress(OSError):  # it may be where something is mounted
            folder.rmdir()
        return Trained(None, order.text(), result, base.scores)
    # Copied and removed rather than moved: --output may be on another file system.
    shutil.copytree(paths.model(result.config.key), folder, dirs_exist_ok=True)
    shutil.rmtree(paths.model(result.config.key))
    write_model_card(folder, result, base.scores)
    return Trained(folder, order.text(), result, base.scores)


def _not_apart(stage: Stage, keep: Keeps) -> str | None:
    """Why what a pipeline's last stage trains cannot be kept so; None where it can.

    Args:
        stage: The last one.
        keep: `adapter` or `both`.
    """
    from harness.plugins import overrides
    from harness.training.choices import choices

    chosen = choices(stage)
    if not chosen.method.unmerged:
        return f"PEFT alone cannot put what {stage.method} trains on the base again"
    if keep == "both" and not chosen.method.mergeable:
        return f"what {stage.method} trains cannot be merged"
    if overrides(chosen.retention, "finish"):
        return f"retention {stage.retention} changes the merged weights"
    return None

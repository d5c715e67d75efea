"""A tuned model on disk: a folder that plain transformers, PEFT or `load_tuned` loads, with tokenizer and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.models.base_model import BaseModel, embedded_models, load_model, resolve_model
from harness.models.facts import model_facts
from harness.plugins import load
from harness.records.trial import Score, TrialResult
from harness.space import Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.training.learner import Learner

TUNED = "tuned.json"
"""What a method that cannot be merged needs to be put on its base again."""


def save_model(folder: Path, learner: Learner, base: BaseModel) -> None:
    """Write a tuned model and its tokenizer.

    A mergeable method leaves a whole model, in the dtype of the base's own weights; another an adapter beside its
    base, whose location it names; `load_tuned` loads either. If that base exists only for this trial (an earlier stage
    made it), it is kept in `folder/base`.

    Args:
        folder: Where to; replaced if it exists.
        learner: The last stage, trained.
        base: The model that stage started from.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if learner.choices.method.mergeable:
        _save_whole(folder, learner.plain(), base)
    else:
        kept = str(_kept_base(base, folder))
        for config in getattr(learner.model, "peft_config", {}).values():
            config.base_model_name_or_path = kept
        learner.choices.method.save(learner.model, folder)
        how = {
            "method": type(learner.choices.method).__module__.rpartition(".")[2],
            "params": dict(learner.setup.params),
            "base": "base" if base.is_temporary else base.ref.name if base.ref.name in embedded_models() else kept,
            "revision": "" if base.is_local else base.ref.revision,
        }
        (folder / TUNED).write_text(json.dumps(how, indent=1))
    learner.setup.tokenizer.save_pretrained(folder)


def load_tuned(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """A tuned model that `save_model` wrote, whole or beside its base, in eval mode.

    Args:
        folder: Where it was written to.
        device: `cpu` or `cuda`.

    Raises:
        SpecError: When there is none, or its base is gone.
    """
    if not (folder / TUNED).exists():
        return load_model(resolve_model(str(folder.resolve())), {}, device)
    try:
        how = json.loads((folder / TUNED).read_text())
        name, params, place, revision = (how[key] for key in ("method", "params", "base", "revision"))
        params = Params(params)
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{folder / TUNED} must say how the model was tuned, but cannot be read: {error!r}") from error
    source = str(folder.resolve() / "base") if place == "base" else place
    method = load("methods", name)()
    model = load_model(resolve_model(source, revision or None), method.load_options(params, device), device)
    tuned: PreTrainedModel = method.restore(model, params, folder).eval()
    return tuned


def save_untouched(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> None:
    """Write a model that nothing was trained on, so that `folder` loads like any other.

    Args:
        folder: Where to; replaced if it exists.
        model: The base as it is.
        tokenizer: Its tokenizer.
        base: What it was loaded from.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _save_whole(folder, model, base)
    tokenizer.save_pretrained(folder)


def _save_whole(folder: Path, model: PreTrainedModel, base: BaseModel) -> None:
    dtype = _stored_dtype(base)
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)


def _kept_base(base: BaseModel, folder: Path) -> str | Path:
    if not base.is_temporary:
        return base.source
    return shutil.copytree(base.source, folder.resolve() / "base")


def _stored_dtype(base: BaseModel) -> Any:
    """The torch dtype that the base's config states, or None."""
    import torch

    return getattr(torch, str(model_facts(base).dtype), None)


def write_model_card(folder: Path, result: TrialResult, base_scores: Sequence[Score] = ()) -> Path:
    """Write `README.md` beside a tuned model: what it is, how it was made, what it scores, and what it forgot.

    Args:
        folder: The model's folder.
        result: The record of the trial that made it.
        base_scores: The base model's scores on the same tasks and split; without them nothing is said of forgetting.
    """
    config, cost = result.config, result.cost
    base = config.pipeline.base_model
    front = ["---", f"base_model: {base.name}", "library_name: transformers"]
    licence = _licence(base.name)
    front += [f"license: {licence}"] if licence else []
    stages = [
        f"{number}. {stage.method}, {stage.objective}, retention {stage.retention}, curation {stage.curation}: "
        + ", ".join(f"{name} {value}" for name, value in sorted(stage.params.items()))
        for number, stage in enumerate(config.pipeline.stages, start=1)
    ]
    known = {(score.task, score.metric): score for score in base_scores}
    lines = [
        *front,
        "---",
        "",
        f"# {Path(base.name).name} tuned for {config.task.name}",
        "",
        f"Tuned from `{base.name}` (revision {base.revision}) with harness {result.provenance.harness_version}; "
        f"record {config.key}, seed {config.seed}, {config.steps} steps"
        + (f", stopped at {config.fidelity:g} of them." if config.fidelity < 1 else "."),
        "",
        *stages,
        "",
        f"| task | split | metric | this model | base model | n |\n|---|---|---|---|---|---|\n{_table(result.scores, known)}",
        "",
        f"Cost: {cost.total_s:.1f} s wall, {cost.cpu_s:.1f} s CPU, {cost.tokens:,} tokens trained on, "
        f"{cost.trainable_params:,} of {cost.total_params:,} parameters trained, {cost.flops:.3g} FLOPs.",
        f"Hardware: {result.provenance.hardware}. Made {result.provenance.started_at}.",
        *[f"Note: {note}." for note in result.notes],
        "",
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines))
    return path


def _table(scores: Sequence[Score], known: Mapping[tuple[str, str], Score]) -> str:
    rows = []
    for score in scores:
        base = known.get((score.task, score.metric))
        before = f"{base.value:.4f}" if base and base.comparability == score.comparability else "unknown"
        error = f" ± {score.stderr:.4f}" if score.stderr is not None else ""
        rows.append(
            f"| {score.task} | {score.split} | {score.metric} | {score.value:.4f}{error} | {before} | {score.n} |"
        )
    return "\n".join(rows)


def _licence(name: str) -> str | None:
    """The licence that the base's own model card states in its front matter, or None."""
    from harness.models.base_model import EMBEDDED

    if (EMBEDDED / name).is_dir():
        return "apache-2.0"
    card = Path(name) / "README.md"
    lines = card.read_text(errors="replace").splitlines()[:50] if card.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None)

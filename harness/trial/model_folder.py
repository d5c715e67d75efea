"""A tuned model on disk: a folder that plain transformers, PEFT or `load_tuned` loads, with tokenizer and model card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from harness.errors import SpecError
from harness.files import expand, parse_json
from harness.models.base_model import BaseModel, embedded_models, load_model, resolve_model
from harness.models.headers import held_type
from harness.plugins import load
from harness.records.trial import Score, TrialResult
from harness.space import Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.training.learner import Learner

Keeps = Literal["adapter", "merged", "both"]
"""What is left of a trial whose method is mergeable."""
ADAPTER = "adapter"
"""Folder of the adapter beside a merged model."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""What the hub takes as `base_model`."""
TUNED = "tuned.json"
"""What a method that cannot be merged needs to be put on its base again."""

TEMPLATED = (
    "It was tuned and scored in its tokenizer's chat template: ask it with `tokenizer.apply_chat_template(messages, "
    "add_generation_prompt=True)`."
)
"""What the card of a model says that was tuned in a chat template."""


def save_model(folder: Path, learner: Learner, base: BaseModel, keeps: Keeps = "merged") -> None:
    """Write a tuned model and its tokenizer.

    A mergeable method leaves a whole model; another an adapter beside its base, whose location it names; `load_tuned`
    loads either. Weights are saved in the type that they were scored in, and adapters are merged in float32: rounded to
    bfloat16, small updates would be lost. If the base exists only for this trial (an earlier stage made it), it is kept
    in `folder/base`.

    Args:
        folder: Where to; replaced if it exists.
        learner: The last stage, trained.
        base: The model that stage started from.
        keeps: The adapter, the whole model, or both: the adapter then lies in `folder/adapter`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not learner.choices.method.mergeable or keeps == "adapter":
        _save_adapter(folder, learner, base)
        return
    learner.plain().save_pretrained(folder)
    learner.setup.tokenizer.save_pretrained(folder)
    if keeps == "both":
        _save_adapter(folder / ADAPTER, learner, base)


def _save_adapter(folder: Path, learner: Learner, base: BaseModel) -> None:
    """Write what was trained, where its base is, and the tokenizer."""
    folder.mkdir(exist_ok=True)
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
        how = parse_json((folder / TUNED).read_text())
        name, params, place, revision = (how[key] for key in ("method", "params", "base", "revision"))
        params = Params(params)
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{folder / TUNED} must say how the model was tuned, but cannot be read: {error!r}") from error
    source = str(folder.resolve() / "base") if place == "base" else place
    method = load("methods", name)()
    model = load_model(resolve_model(source, revision or None), method.load_options(params, device), device)
    tuned: PreTrainedModel = method.restore(model, params, folder).eval()
    return tuned


def save_untouched(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model that nothing was trained on, so that `folder` loads like any other.

    Args:
        folder: Where to; replaced if it exists.
        model: The base as it is.
        tokenizer: Its tokenizer.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _kept_base(base: BaseModel, folder: Path) -> str | Path:
    if not base.is_temporary:
        return base.source
    return shutil.copytree(base.source, folder.resolve() / "base")


def write_model_card(folder: Path, result: TrialResult, base_scores: Sequence[Score] = ()) -> Path:
    """Write `README.md` beside a tuned model: what it is, how it was made, what it scores, and what it forgot.

    Args:
        folder: The model's folder.
        result: The record of the trial that made it.
        base_scores: The base model's scores on the same tasks and split; without them nothing is said of forgetting.
    """
    config, cost = result.config, result.cost
    base = config.pipeline.base_model
    adapter = (folder / TUNED).exists()
    front = {
        "library_name": "peft" if adapter else "transformers",
        "base_model": _hub_name(base.name),
        "license": _licence(base.name),
    }
    stages = [
        f"{number}. {stage.method}, {stage.objective}, retention {stage.retention}, curation {stage.curation}: "
        + ", ".join(f"{name} {value}" for name, value in sorted(stage.params.items()))
        for number, stage in enumerate(config.pipeline.stages, start=1)
    ]
    known = {(score.task, score.metric): score for score in base_scores}
    lines = [
        "---",
        yaml.safe_dump({name: value for name, value in front.items() if value}, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {Path(base.name).name} tuned for {config.task.name}",
        "",
        f"Tuned from `{base.name}` (revision {base.revision}) with harness {result.provenance.harness_version}; "
        f"record {config.key}, seed {config.seed}, {config.steps} steps"
        + (f", stopped at {config.fidelity:g} of them." if config.fidelity < 1 else "."),
        *([TEMPLATED] if base.chat_template else []),
        "",
        *stages,
        "",
        f"| task | split | metric | this model | base model | n |\n|---|---|---|---|---|---|\n{_table(result.scores, known)}",
        "",
        f"Cost: {cost.total_s:.1f} s wall, {cost.cpu_s:.1f} s CPU, {cost.tokens:,} tokens trained on, "
        f"{cost.trainable_params:,} of {cost.total_params:,} parameters trained, {cost.flops:.3g} FLOPs.",
        f"Hardware: {result.provenance.hardware}. Made {result.provenance.started_at}.",
        "Kept beside its base, which is not in this folder."
        if adapter
        else f"Saved in {held_type(folder)}, as scored.",
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


def _hub_name(name: str) -> str | None:
    """The base's name on the hub: its own, or what a folder's config or card says that it was; None where nobody says.

    A path would keep the folder from being uploaded, and tell where files lie.
    """
    folder = Path(expand(name, "base model")).expanduser()
    if name in embedded_models():
        return None
    if not folder.is_dir():
        return name if HUB_NAME.fullmatch(name) else None
    with suppress(OSError, ValueError, AttributeError):
        known = str(parse_json((folder / "config.json").read_text()).get("_name_or_path"))
        if HUB_NAME.fullmatch(known) and not Path(known).exists():
            return known
    known = _front_matter(folder).get("base_model", "").strip("'\"")
    return known if HUB_NAME.fullmatch(known) else None


def _front_matter(folder: Path) -> dict[str, str]:
    """The plain entries in the metadata of a folder's own model card."""
    card = folder / "README.md"
    lines = card.read_text(errors="replace").splitlines()[:50] if card.is_file() else []
    if not lines or lines[0] != "---":
        return {}
    metadata = lines[1 : lines.index("---", 1)] if "---" in lines[1:] else []
    entries = (line.partition(":") for line in metadata if not line.startswith((" ", "-")))
    return {key: value.strip() for key, _, value in entries}


def _licence(name: str) -> str | None:
    """The licence that the base's own model card states in its front matter, or None."""
    if name in embedded_models():
        return "apache-2.0"
    return _front_matter(Path(expand(name, "base model")).expanduser()).get("license")

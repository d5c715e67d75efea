"""Training one stage: the objective's trainer, wrapped so that it stops, counts, scores and fails as a trial must.

Nothing here knows any plug-in by name: what differs between methods, objectives and retention is behind their hooks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cost import Meter, Tally
from harness.curation.base import Curation
from harness.errors import Diverged, TimedOut
from harness.methods.base import Method
from harness.objectives.base import Objective, TrainerParts
from harness.plugins import Row, Situation, StageSetup, load
from harness.records import Pipeline, Stage
from harness.retention.base import Retention
from harness.space import Scalar, check, defaults
from harness.spec import AXIS_FOLDER, stage_space

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Choices:
    """A stage's plug-ins and its complete parameters."""

    method: Method
    objective: Objective
    retention: Retention
    curation: Curation
    params: Mapping[str, Scalar]


def choices(stage: Stage) -> Choices:
    """Load a stage's plug-ins and fill in its defaults.

    Raises:
        SpecError: For an unknown name or a parameter outside its range.
    """
    names = {axis: getattr(stage, axis) for axis in AXIS_FOLDER}
    plugins = {axis: load(AXIS_FOLDER[axis], name)() for axis, name in names.items()}
    space = stage_space(names)
    check(space, stage.params, f"stage with {stage.method}")
    return Choices(**plugins, params=defaults(space) | dict(stage.params))


def refusal(pipeline: Pipeline, situation: Situation) -> str | None:
    """The reason why a pipeline cannot work in a situation, or None."""
    stages = [choices(stage) for stage in pipeline.stages]
    for chosen in stages:
        for plugin in (chosen.method, chosen.objective, chosen.retention, chosen.curation):
            if (reason := plugin.skip(situation)) is not None:
                return reason
    for stage, chosen in zip(pipeline.stages[:-1], stages[:-1], strict=True):
        if not chosen.method.mergeable:
            return f"{stage.method} cannot be merged into the base, so no stage can follow it: put it last"
    return None


@dataclass(frozen=True)
class Watch:
    """What happens around a stage's steps."""

    stop_at: int
    """Optimiser steps after which the stage ends (its share of the fidelity); the schedule spans all of its steps."""
    score_at: frozenset[int]
    """Steps after which `scored` is called."""
    scored: Callable[[PreTrainedModel, int, Losses], None]
    """Called with the model, the step, and the losses since the last call."""
    meter: Meter
    tally: Tally
    time_limit_s: float | None = None


@dataclass
class Losses:
    """Sum and number of steps' losses since the last point of the learning curve."""

    total: float = 0.0
    steps: int = 0

    @property
    def mean(self) -> float | None:
        """Mean loss per step; None before any."""
        return self.total / self.steps if self.steps else None


@dataclass
class _Penalty:
    """A retention term, and what it added to the loss since the last logged step."""

    term: Callable[[], Tensor] | None
    added: float = field(default=0.0)


@dataclass(frozen=True)
class Prepared:
    """A stage that is ready to train: everything that the data phase pays for."""

    model: PreTrainedModel
    trainer: Trainer
    choices: Choices
    setup: StageSetup
    watch: Watch
    losses: Losses = field(default_factory=Losses)


def prepare(model: PreTrainedModel, rows: list[Row], chosen: Choices, setup: StageSetup, watch: Watch) -> Prepared:
    """Build the objective's trainer around an attached model, on curated rows with old knowledge mixed in."""
    rows = chosen.retention.rows(chosen.curation.rows(rows, setup), setup)
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    with _temporary_folder() as folder:
        parts = TrainerParts(model, rows, _arguments(chosen.params, setup, folder), setup)
        trainer = chosen.objective.trainer(parts)
    for name, parameter in model.named_parameters():
        if name in dtypes:  # TRL turns a quantised model's adapters to bfloat16, which rounds small updates away
            parameter.data = parameter.data.to(dtypes[name])
    trainer.optimizer = chosen.method.optimizer(model, setup)
    return Prepared(model, trainer, chosen, setup, watch)


def train(stage: Prepared, resume_from: Path | None = None) -> None:
    """Train in place, up to `watch.stop_at`; `retention.finish` is left to the caller, who may save a checkpoint first.

    Args:
        stage: What `prepare` returned.
        resume_from: Folder that `checkpoint.save` wrote, whose weights are in the model already.

    Raises:
        Diverged: When a loss, a gradient norm or a weight is not finite.
        TimedOut: When the trial's time is used up.
    """
    from transformers import PrinterCallback

    trainer, model = stage.trainer, stage.model
    penalty = _Penalty(stage.choices.retention.penalty(model, stage.setup))
    _count_and_penalise(trainer, stage.watch.tally, penalty)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_callback(stage, penalty))
    trainer._load_from_checkpoint = lambda *args: None  # weights are restored by name, for any method
    model.train()
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    _plain_forward(model)
    model.eval()
    _require_finite(model)


def _arguments(params: Mapping[str, Scalar], setup: StageSetup, folder: str) -> dict[str, Any]:
    """`TrainingArguments` for a stage, with nothing left to defaults that change between versions."""
    on_gpu = setup.device == "cuda"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": int(params["batch_size"]),
        "gradient_accumulation_steps": int(params["gradient_accumulation"]),
        "max_steps": setup.steps,
        "learning_rate": float(params["learning_rate"]),
        "weight_decay": float(params["weight_decay"]),
        "lr_scheduler_type": SCHEDULES[str(params["schedule"])],
        "warmup_steps": round(float(params["warmup_share"]) * setup.steps),
        "max_grad_norm": float(params["max_grad_norm"]),
        "optim": "adamw_torch_fused",
        "seed": setup.seed,
        "data_seed": setup.seed,
        "bf16": resolve_precision(str(params["precision"]), setup.device) == "bfloat16",
        "fp16": False,
        "use_cpu": not on_gpu,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "average_tokens_across_devices": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as `bfloat16` on a GPU that computes in it, `float32` elsewhere."""
    import torch

    if precision != "auto":
        return precision
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def _count_and_penalise(trainer: Trainer, tally: Tally, penalty: _Penalty) -> None:
    """Wrap the trainer's loss: count the batch, add the retention term once per optimiser step."""
    original = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        tally.add(inputs)
        loss = original(model, inputs, return_outputs=return_outputs, **options)
        if penalty.term is None:
            return loss
        term = penalty.term() / trainer.current_gradient_accumulation_steps
        penalty.added += float(term.detach())
        return (loss[0] + term, *loss[1:]) if return_outputs else loss + term

    trainer.compute_loss = compute_loss


def _callback(stage: Prepared, penalty: _Penalty) -> Any:
    """The trainer's hooks: after each step the method's own, then the checks, the curve and the end."""
    from transformers import TrainerCallback

    watch, losses, model = stage.watch, stage.losses, stage.model

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stage.choices.method.after_step(model, state.global_step)
            control.should_training_stop |= state.global_step >= watch.stop_at

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            for name in ("loss", "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise Diverged(f"{name} became {logs[name]} at step {state.global_step}: lower the learning rate")
            losses.total += logs["loss"] - penalty.added
            losses.steps += 1
            penalty.added = 0.0
            if state.global_step in watch.score_at:
                with _for_scoring(model):
                    watch.scored(model, state.global_step, losses)
                losses.total, losses.steps = 0.0, 0
            _check_time(watch, state.global_step)

    return Watcher()


def _check_time(watch: Watch, step: int) -> None:
    if watch.time_limit_s is not None and watch.meter.total_s > watch.time_limit_s:
        raise TimedOut(
            f"the trial's {watch.time_limit_s:g} s were used up at step {step}: raise the limit or lower the budget"
        )


@contextmanager
def _for_scoring(model: PreTrainedModel) -> Iterator[None]:
    """Without the trainer's autocast, and without a trace in any random state: scoring changes no training."""
    with random_state_kept(), _without_autocast(model):
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random states of python, numpy and torch back as they were."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Accelerate replaces `forward` by one under autocast: use the original meanwhile."""
    wrapped, original = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped


def _plain_forward(model: Any) -> None:
    """Undo accelerate's autocast around `forward` for good."""
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        model.forward = original


def _require_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise Diverged(f"{name} holds a value that is not finite after training: lower the learning rate")


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """The trainer insists on an output folder; it writes nothing there."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        yield folder

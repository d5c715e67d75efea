"""Training by a trainer of TRL's: for objectives that the harness's own loop does not run, and as its reference.

The trainer is wrapped so that it stops, counts, scores and fails as a trial must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.axes.contract import StageSetup
from harness.nn.determinism import random_state_kept, resolve_precision
from harness.nn.optimizer import warmup_steps
from harness.objectives.base import TrainerParts
from harness.records.execution import StageSettings
from harness.records.trial import Ended
from harness.space import Params
from harness.training.learner import Learner, not_finite

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class _Stopped(Exception):
    """Leaves the trainer's loop from inside a callback, which `run_trainer` alone catches."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.reason)
        self.ended = ended


def trainer_for(learner: Learner) -> Trainer:
    """The objective's trainer around an attached model."""
    model = learner.model
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    with _temporary_folder() as folder:
        parts = TrainerParts(
            model, learner.rows, _arguments(learner.setup.params, learner.setup, folder), learner.setup
        )
        trainer = learner.choices.objective.trainer(parts)
    for name, parameter in model.named_parameters():
        # TRL turns a quantised model's adapters to bfloat16, which rounds small updates away.
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
    trainer.optimizer = learner.choices.method.optimizer(model, learner.setup)
    return trainer


def run_trainer(learner: Learner, paused: Callable[[], None], resume_from: Path | None = None) -> None:
    """Train in place, up to `watch.stop_at`.

    Args:
        learner: What trains; its `failure` is set where a loss, a gradient norm or a weight is not finite, or time is up.
        paused: Called after the steps of `watch.score_at`.
        resume_from: Folder that `save_state` wrote, whose weights are in the model already.
    """
    from transformers import PrinterCallback, set_seed

    trainer, model = learner.trainer, learner.model
    # Making the trainer drew random numbers, as many as the library likes; a checkpoint brings its own state.
    set_seed(learner.setup.seed)
    method = learner.choices.method
    terms = (learner.choices.retention.penalty(model, method, learner.setup), method.penalty(model, learner.setup))
    _count_and_penalise(trainer, learner, [term for term in terms if term is not None])
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_callback(learner, paused))
    # `resume_from_checkpoint` would load weights as PEFT or transformers save them; `checkpoint.restore` has done so by
    # name, for any method.
    trainer._load_from_checkpoint = lambda *args: None
    model.train()
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except _Stopped as stopped:
        learner.failure = stopped.ended
    # Accelerate puts autocast around `forward` for good, which would change how the model is scored and saved.
    for wrapped in (model, trainer.model):
        original = wrapped.__dict__.pop("_original_forward", None)
        if original is not None:
            wrapped.forward = original
    model.eval()
    learner.settings = _settings(trainer, learner)


def save_state(trainer: Trainer, folder: Path) -> None:
    """Write what the trainer needs to go on, apart from the weights.

    Args:
        trainer: It has trained.
        folder: Where to; it exists.
    """
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer._save_rng_state(str(folder))
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


def _arguments(params: Params, setup: StageSetup, folder: str) -> dict[str, Any]:
    """`TrainingArguments` for a stage, with nothing left to defaults that change between versions.

    Args:
        params: The stage's parameters.
        setup: Its device, seed and number of steps.
        folder: The trainer insists on one.
    """
    on_gpu = setup.device == "cuda"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": params.integer("batch_size"),
        "gradient_accumulation_steps": params.integer("gradient_accumulation"),
        "max_steps": setup.steps,
        "learning_rate": params.number("learning_rate"),
        "weight_decay": params.number("weight_decay"),
        "lr_scheduler_type": SCHEDULES[params.text("schedule")],
        "warmup_steps": warmup_steps(params, setup.steps),
        "max_grad_norm": params.number("max_grad_norm"),
        "optim": "adamw_torch_fused",
        "seed": setup.seed,
        "data_seed": setup.seed,
        "bf16": resolve_precision(params.text("precision"), setup.device) == "bfloat16",
        "fp16": False,
        "use_cpu": not on_gpu,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1,  # the watcher reads every loss
        "logging_nan_inf_filter": False,  # which would show the mean of earlier losses in place of a NaN
        "average_tokens_across_devices": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def _count_and_penalise(trainer: Trainer, learner: Learner, terms: list[Callable[[], Tensor]]) -> None:
    """Wrap the trainer's loss to count the batch, and its backward pass to add the terms once per optimiser step.

    Not its loss: some trainers divide that by the passes of a step, others have done so already.
    """
    original, backward = trainer.compute_loss, trainer.accelerator.backward

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        learner.watch.tally.add(inputs)
        return original(model, inputs, return_outputs=return_outputs, **options)

    def penalised(loss: Tensor, **options: Any) -> None:
        if terms:
            loss = loss + sum(term() for term in terms) / trainer.current_gradient_accumulation_steps
        backward(loss, **options)
        learner.choices.method.after_backward(learner.model)

    trainer.compute_loss, trainer.accelerator.backward = compute_loss, penalised


def _callback(learner: Learner, paused: Callable[[], None]) -> Any:
    """A callback of the trainer that calls the hooks of method and retention, looks at every loss, and ends the stage.

    Args:
        learner: What trains.
        paused: Called after the steps of `watch.score_at`.
    """
    from transformers import TrainerCallback

    watch, losses, model = learner.watch, learner.losses, learner.model

    def stop(ended: Ended | None) -> None:
        if ended is not None:
            raise _Stopped(ended)

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            learner.choices.method.before_step(model, state.global_step + 1)
            learner.choices.retention.before_step(state.global_step + 1)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            learner.choices.method.before_update(model, state.global_step + 1)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            learner.choices.method.after_step(model, state.global_step + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            learner.step = state.global_step
            control.should_training_stop |= state.global_step >= watch.stop_at

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            for name in ("loss", "grad_norm"):
                stop(not_finite(name, logs.get(name, 0.0), state.global_step))
            losses.total += logs["loss"]
            losses.steps += 1
            if state.global_step in watch.score_at:
                with random_state_kept(), _without_autocast(learner.trainer.model):
                    paused()
                stop(learner.failure)
            stop(learner.overtime())

    return Watcher()


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


def _settings(trainer: Trainer, learner: Learner) -> StageSettings:
    """What the stage ran with, read back from the trainer."""
    args, optimizer = trainer.args, trainer.optimizer
    group = optimizer.param_groups[0] if optimizer else {}
    return replace(
        learner.settings,
        optimizer=type(getattr(optimizer, "optimizer", optimizer)).__name__,
        learning_rate=group.get("initial_lr", group.get("lr")),
        weight_decay=group.get("weight_decay"),
        schedule=str(args.lr_scheduler_type.value),
        warmup_steps=args.warmup_steps,
        scheduled_steps=args.max_steps,
        rows=len(trainer.train_dataset),
        batch=(args.per_device_train_batch_size, args.gradient_accumulation_steps),
        bf16=args.bf16,
        seed=args.seed,
        observed=learner.choices.objective.observed(trainer, learner.setup) or None,
    )


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """The trainer insists on an output folder; it writes nothing there."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        yield folder

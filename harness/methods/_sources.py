"""What methods share that train one adapter on each of several other tasks before they learn to mix them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Situation, StageSetup
from harness.errors import SpecError
from harness.methods._added import ModuleMethod
from harness.records.trial import derive_seed
from harness.space import Distribution, Float, Integer, Named, Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.methods._adapters import Mixture

FEWEST = 2
SPACE: dict[str, Distribution] = {
    "source_steps": Integer(1, 100_000, default=200, log=True, searched=False),
    "source_learning_rate": Float(1e-5, 3e-2, default=1e-3, log=True, searched=False),
}


class SourcesMethod(ModuleMethod, ABC):
    """Trains one adapter on each of several other tasks, freezes them, and then trains how to mix them."""

    requires = "two or more other tasks"
    identity_at_start = False
    sources: ClassVar[str]
    """Its parameter that names the other tasks."""

    def skip(self, situation: Situation) -> str | None:
        """Two tasks or more must be named."""
        known = self.sources in situation.params
        return (self._unfit(situation.params) if known else None) or super().skip(situation)

    def source_tasks(self, params: Params) -> tuple[Named, ...]:
        """The other tasks.

        Raises:
            SpecError: When fewer than two are named, or with weights.
        """
        if reason := self._unfit(params):
            raise SpecError(f"method {type(self).__module__.rpartition('.')[2]}: {reason}")
        return params.names(self.sources)

    def _unfit(self, params: Params) -> str | None:
        tasks, text = params.names(self.sources), params.text(self.sources)
        if len({task.name for task in tasks}) < FEWEST:
            return f"{self.sources} must name two tasks or more, but got {text!r}: name them in the study"
        if any(task.weight != 1.0 for task in tasks):
            return (
                f"{self.sources} must name tasks without weights, which are learned, but got {text!r}: leave them out"
            )
        return None

    @abstractmethod
    def mixtures(self, model: PreTrainedModel) -> Sequence[Mixture]:
        """The modules that mix, each with one adapter for each of the other tasks, in their order."""

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze the base, train the adapters of the other tasks, and freeze them too.

        Raises:
            SpecError: When a task has nothing to train on.
        """
        model = super().attach(model, setup)
        mixtures = self.mixtures(model)
        for index, task in enumerate(self.source_tasks(setup.params)):
            loss = _train_source(model, mixtures, index, task, setup)
            setup.note(f"the adapter of {task.name} ended with a loss of {loss:.3f}")
        for mixture in mixtures:
            mixture.sources.requires_grad_(False)
        return model


def _train_source(
    model: PreTrainedModel, mixtures: Sequence[Mixture], index: int, task: Named, setup: StageSetup
) -> float:
    """Train one source with AdamW; returns the last step's loss in nats per token."""
    import torch

    from harness.methods._calibration import batches, drawn

    size, rows = setup.params.integer("batch_size"), setup.rows_of(task)
    steps, order = setup.params.integer("source_steps"), random.Random(derive_seed(setup.seed, "source", index))
    examples = drawn(rows, min(len(rows), steps * size), setup)
    moving = [p for mixture in mixtures for p in mixture.sources[index].parameters()]
    optimizer = torch.optim.AdamW(moving, lr=setup.params.number("source_learning_rate"), weight_decay=0.0)
    model.train()
    for mixture in mixtures:
        mixture.only = index
    loss = torch.zeros(())
    for _ in range(steps):
        (batch,) = batches(order.sample(examples, min(size, len(examples))), setup, size)
        loss = model(**batch).loss
        # By hand and not by backward(), since the other sources and the mixture require gradients too.
        for p, slope in zip(moving, torch.autograd.grad(loss, moving), strict=True):
            p.grad = slope
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
    optimizer.zero_grad()
    for mixture in mixtures:
        mixture.only = None
    model.eval()
    return float(loss.detach())

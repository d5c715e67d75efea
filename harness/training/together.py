"""Trains several trials in one forward and backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from harness.nn.batches import Batch
from harness.nn.logits import supervised_nats
from harness.nn.optimizer import adamw, learning_rate, put_state
from harness.training.learner import Learner, settings_of
from harness.training.precision import precision
from harness.training.session import Session

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.nn.stack import Stack


class Together(Session):
    """Several trials in one forward and backward pass.

    Raises:
        CannotStack: When their models cannot share one.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        import torch

        from harness.nn.stack import Stack

        super().__init__(learners)
        self.stack: Stack = Stack(
            [learner.model for learner in learners], [learner.choices.method for learner in learners]
        )
        self.first, self.second = torch.zeros_like(self.stack.gradients), torch.zeros_like(self.stack.gradients)
        self.optimizers = [self._adamw(k, learner) for k, learner in enumerate(learners)]
        for learner in learners:
            learner.settings = settings_of(learner, "AdamW")
        self.stack.model.train()

    def _adamw(self, k: int, learner: Learner) -> Any:
        """AdamW over a trial's row: one vector that decays, one that does not.

        Args:
            k: The trial's place in the stack.
            learner: Its learner.
        """
        import torch

        for moments, index in ((self.first, 0), (self.second, 1)):
            for name, view in self.stack.named(moments[k], k).items():
                if name in learner.moments:
                    view.copy_(learner.moments[name][index])
        rows = []
        values, gradients = self.stack.values.detach(), self.stack.gradients
        for columns in (slice(0, self.stack.decayed), slice(self.stack.decayed, None)):
            # A parameter that shares the stack's memory: stepping it steps the stack.
            row = torch.nn.Parameter(values[k, columns])
            row.grad = gradients[k, columns]
            rows.append((row, columns))
        decays = (learner.setup.params.number("weight_decay"), 0.0)
        optimizer = adamw([([row] if len(row) else [], decay) for (row, _), decay in zip(rows, decays, strict=True)])
        for row, columns in rows:
            if len(row):
                put_state(optimizer, row, self.first[k, columns], self.second[k, columns], learner.step)
        return optimizer

    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """All trials' rows through the stack, each with its own random numbers."""
        if seeds:  # a step's later passes go on with its first one's stream
            self.stack.dropout.start(seeds)
        self.stack.dropout.lengths = batch.lengths
        with precision(self.learners[0], self.stack.model, batch):
            return supervised_nats(self.stack.model, batch)

    def optimizer_step(self) -> Tensor:
        """Each trial's own clipping, rate and decay."""
        import torch

        gradients = self.stack.gradients
        norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
        limits = [learner.setup.params.number("max_grad_norm") or math.inf for learner in self.learners]
        limit = torch.tensor(limits, dtype=norms.dtype, device=norms.device)
        # The formula of torch's `clip_grad_norm_`, its 1e-6 included, so that together is alone.
        gradients.mul_(torch.clamp(limit / (norms + 1e-6), max=1.0).unsqueeze(1))
        for learner, optimizer in zip(self.learners, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(learner.setup.params, learner.step, learner.setup.steps)
            optimizer.step()
        gradients.zero_()
        return norms

    def scoring(self, due: Sequence[Learner]) -> AbstractContextManager[tuple[PreTrainedModel, int]]:
        """The stack as it is, or one of the trials asked for."""
        from harness.nn.stack import stacked

        if len(due) == len(self.learners):
            return nullcontext((self.stack.model, self.stack.count))
        self.stack.write_back()  # a smaller stack is made of the learners' own models
        return stacked([learner.model for learner in due], [learner.choices.method for learner in due])

    def keep(self) -> None:
        """Each trial's weights to its model, its moments to itself."""
        self.stack.write_back()
        for k, learner in enumerate(self.learners):
            first, second = (self.stack.named(moments[k], k) for moments in (self.first, self.second))
            learner.moments = {name: (first[name].clone(), second[name].clone()) for name in first}

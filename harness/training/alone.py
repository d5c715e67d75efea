"""Trains one trial alone: any method, with every hook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from harness.methods.base import Method
from harness.nn.batches import Batch
from harness.nn.logits import supervised_nats
from harness.nn.optimizer import adamw, decaying, learning_rate, put_state
from harness.training.learner import Learner, facts
from harness.training.precision import precision
from harness.training.session import Session

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Alone(Session):
    """One trial, its model as it is: any method, with every hook."""

    def __init__(self, one: Learner) -> None:
        super().__init__([one])
        method, model = one.choices.method, one.model
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        own = method.optimizer(model, one.setup)
        self.optimizer = own or self._adamw(one)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]  # a kept state brings a step's own
        if own and one.optimizer_state:
            own.load_state_dict(one.optimizer_state)
        terms = (one.choices.retention.penalty(model, method, one.setup), method.penalty(model, one.setup))
        self.terms = [term for term in terms if term is not None]
        one.facts |= facts(one) | {"optimizer": type(self.optimizer).__name__}
        model.train()

    def _adamw(self, one: Learner) -> Any:
        decays, decay = decaying(one.model), float(one.setup.params["weight_decay"])
        groups = [(decay, True), (0.0, False)]
        optimizer = adamw(
            [([p for name, p in self.trained.items() if (name in decays) is wanted], rate) for rate, wanted in groups]
        )
        for name, (first, second) in one.moments.items():
            put_state(optimizer, self.trained[name], first, second, one.step)
        return optimizer

    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """The model's own, its random numbers seeded for the step."""
        import torch

        for seed in seeds:
            torch.manual_seed(seed)
        model = self.learners[0].model
        with precision(self.learners[0], model, batch):
            return supervised_nats(model, batch)

    def penalty(self) -> Tensor | None:
        """The retention's term and the method's."""
        import torch

        return torch.stack([term() for term in self.terms]).sum() if self.terms else None

    def begin(self) -> None:
        """The method's own hook, and the retention's."""
        one = self.learners[0]
        one.choices.method.before_step(one.model, one.step + 1)
        one.choices.retention.before_step(one.step + 1)

    def passed(self) -> None:
        """The method's own hook."""
        self.learners[0].choices.method.after_backward(self.learners[0].model)

    def update(self) -> Tensor:
        """One step of the method's optimiser, or of AdamW; then the method's own hook."""
        import torch

        one = self.learners[0]
        one.choices.method.before_update(one.model, one.step + 1)
        limit = float(one.setup.params["max_grad_norm"])
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), limit or math.inf)
        rate = learning_rate(one.setup.params, one.step, one.setup.steps)
        for group, own in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (own / float(one.setup.params["learning_rate"]) if own else 1.0)
        self.optimizer.step()
        one.choices.method.after_step(one.model, one.step + 1)
        self.optimizer.zero_grad()
        return norm.view(1)

    def scoring(self, due: Sequence[Learner]) -> AbstractContextManager[tuple[PreTrainedModel, int]]:
        """The model itself."""
        return nullcontext((self.learners[0].model, 1))

    def close(self) -> None:
        """Keep the moments; the weights are the model's."""
        one, state = self.learners[0], self.optimizer.state
        if type(one.choices.method).optimizer is not Method.optimizer:
            one.optimizer_state = self.optimizer.state_dict()
        one.moments = {
            name: (state[p]["exp_avg"], state[p]["exp_avg_sq"])
            for name, p in self.trained.items()
            if "exp_avg" in state.get(p, {})
        }
        one.model.eval()

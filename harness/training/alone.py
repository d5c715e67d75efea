"""Trains one trial alone: any method, with every hook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from harness.nn.batches import Batch
from harness.nn.determinism import seed_torch
from harness.nn.logits import supervised_nats
from harness.nn.optimizer import adamw, decaying, learning_rate, put_state
from harness.plugins import overrides
from harness.training.learner import Learner, settings_of
from harness.training.precision import precision
from harness.training.session import Session

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Alone(Session):
    """One trial, its model as it is: any method, with every hook."""

    def __init__(self, learner: Learner) -> None:
        super().__init__([learner])
        self.learner = learner
        method, model, setup = learner.choices.method, learner.model, learner.setup
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        own = method.optimizer(model, setup)
        self.optimizer = own or self._adamw()
        # Read before a kept state is loaded, which brings the rates of the step at which it was kept.
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if own and learner.optimizer_state:
            own.load_state_dict(learner.optimizer_state)
        terms = (learner.choices.retention.penalty(model, method, setup), method.penalty(model, setup))
        self.terms = [term for term in terms if term is not None]
        learner.settings = settings_of(learner, type(self.optimizer).__name__)
        model.train()

    def _adamw(self) -> Any:
        learner = self.learner
        decays, decay = decaying(learner.model), learner.setup.params.number("weight_decay")
        groups = [(decay, True), (0.0, False)]
        optimizer = adamw(
            [([p for name, p in self.trained.items() if (name in decays) is wanted], rate) for rate, wanted in groups]
        )
        for name, (first, second) in learner.moments.items():
            put_state(optimizer, self.trained[name], first, second, learner.step)
        return optimizer

    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """The model's own forward pass, its random numbers seeded for the step."""
        for seed in seeds:
            seed_torch(seed)
        with precision(self.learner, self.learner.model, batch):
            return supervised_nats(self.learner.model, batch)

    def penalty(self) -> Tensor | None:
        """The retention's term and the method's."""
        import torch

        return torch.stack([term() for term in self.terms]).sum() if self.terms else None

    def before_passes(self) -> None:
        """The hooks `before_step` of the method and the retention."""
        learner = self.learner
        learner.choices.method.before_step(learner.model, learner.step + 1)
        learner.choices.retention.before_step(learner.step + 1)

    def after_pass(self) -> None:
        """The method's hook `after_backward`."""
        self.learner.choices.method.after_backward(self.learner.model)

    def optimizer_step(self) -> Tensor:
        """One step of the method's optimiser, or of AdamW, between the method's hooks `before_update` and `after_step`."""
        import torch

        learner, params = self.learner, self.learner.setup.params
        learner.choices.method.before_update(learner.model, learner.step + 1)
        limit = params.number("max_grad_norm")
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), limit or math.inf)
        rate = learning_rate(params, learner.step, learner.setup.steps)
        for group, own in zip(self.optimizer.param_groups, self.rates, strict=True):
            # Groups keep the ratio to the stage's rate that their method gave them.
            group["lr"] = rate * (own / params.number("learning_rate") if own else 1.0)
        self.optimizer.step()
        learner.choices.method.after_step(learner.model, learner.step + 1)
        self.optimizer.zero_grad()
        return norm.view(1)

    def scoring(self, due: Sequence[Learner]) -> AbstractContextManager[tuple[PreTrainedModel, int]]:
        """The model itself."""
        return nullcontext((self.learner.model, 1))

    def keep(self) -> None:
        """Keep the optimiser's state; the weights are the model's already."""
        learner, state = self.learner, self.optimizer.state
        if overrides(learner.choices.method, "optimizer"):
            learner.optimizer_state = self.optimizer.state_dict()
        learner.moments = {
            name: (state[p]["exp_avg"], state[p]["exp_avg_sq"])
            for name, p in self.trained.items()
            if "exp_avg" in state.get(p, {})
        }

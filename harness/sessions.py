"""The harness's own training loop, for one trial or for several that share a forward pass.

A session trains learners in step, together (`fused.Stack`) or alone. All that a continuation needs is a learner's
weights, its moments and its step: batches and random numbers are functions of seed and step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.attention import draws_numbers, quick_attention
from harness.batches import Batch, collate, cuts, padding_id
from harness.errors import Diverged, TimedOut
from harness.methods.base import Method
from harness.objectives.base import TokenLosses
from harness.optimizer import adamw, decaying, learning_rate, put_state
from harness.records import derive_seed
from harness.supervised import supervised_nats
from harness.train import Drawn, Learner, facts, resolve_precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.fused import Stack

CHECK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between looks at losses: on a GPU each look waits for it."""


class Session(ABC):
    """Trains learners in step; what it changes is theirs again after `close`."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.draws = any(draws_numbers(one.model) for one in learners)
        """Whether random numbers depend on how a step is put together."""

    @abstractmethod
    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """Negative log-probability of each supervised token, shape (K, supervised)."""

    @abstractmethod
    def update(self) -> Tensor:
        """Clip, step, and forget the gradients; returns the norms of the gradients before clipping, shape (K,)."""

    @abstractmethod
    def scoring(self, due: Sequence[Learner]) -> AbstractContextManager[tuple[PreTrainedModel, int]]:
        """A model that takes the rows of those learners, member-major, and their number."""

    @abstractmethod
    def close(self) -> None:
        """Leave weights and moments to the learners."""

    def advance(self, steps: int) -> None:
        """Do so many steps, or fewer if a learner fails meanwhile (its `failure` says why)."""
        every = CHECK_EVERY[self.learners[0].setup.device]
        try:
            for _ in range(steps):
                self._seen.append(self._step())
                for one in self.learners:
                    one.step += 1
                if len(self._seen) >= every:
                    self._look()
                if any(one.failure for one in self.learners):
                    return
        finally:
            self._look()

    def preview(self) -> list[float]:
        """Each trial's loss of the next forward pass, summed over what its objective counts; nothing is changed."""
        import torch

        seeds = [derive_seed(one.setup.seed, "step", one.step) for one in self.learners]
        with torch.no_grad():
            losses = self._losses([one.drawn(0) for one in self.learners], seeds)
            summed = self.learners[0].choices.objective.loss(losses, [one.setup for one in self.learners])
        found: list[float] = summed.tolist()
        return found

    def penalty(self) -> Tensor | None:
        """What retention and the method add to the loss of one step."""
        return None

    @abstractmethod
    def begin(self) -> None:
        """What is done before the passes of a step."""

    @abstractmethod
    def passed(self) -> None:
        """What is done after each backward pass."""

    def _step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; losses (K,) without penalty, gradient norms (K,)."""
        import torch

        examples, passes = [one.next_examples() for one in self.learners], self.learners[0].batch[1]
        objective, device = self.learners[0].choices.objective, self.learners[0].setup.device
        seeds = [derive_seed(one.setup.seed, "step", one.step) for one in self.learners]
        items = torch.tensor([objective.items(own) for own in examples], device=device)
        parts, shown = [], [[one.drawn(number) for one in self.learners] for number in range(passes)]
        self.begin()
        for number, drawn in enumerate(shown):
            pieces = self._pieces(drawn)
            for piece in pieces:
                losses = self._losses(piece, seeds if number == 0 else [])
                parts_of = items
                if self.learners[0].choices.method.one_by_one:  # no example's share may depend on the others' lengths
                    parts_of = torch.tensor([objective.items(part.examples) for part in piece], device=device)
                    parts_of *= len(examples[0])
                loss = objective.loss(losses, [one.setup for one in self.learners]) / parts_of
                term = self.penalty()
                (loss.sum() if term is None else loss.sum() + term / (passes * len(pieces))).backward()
                self.passed()
                parts.append(loss.detach())
        norms = self.update()
        for drawn in shown:  # only now: a step that runs out of memory may be done again
            for one, part in zip(self.learners, drawn, strict=True):
                one.count(part.examples)
        return torch.stack(parts).sum(0).double(), norms.double()

    def _pieces(self, drawn: Sequence[Drawn]) -> list[list[Drawn]]:
        """A pass, cut where that saves padding and changes no loss."""
        if self.learners[0].choices.method.one_by_one:
            return [[part.piece(slice(k, k + 1)) for part in drawn] for k in range(len(drawn[0].examples))]
        if self.draws or self.learners[0].choices.objective.compares:
            return [list(drawn)]
        places = cuts([part.examples for part in drawn], self.learners[0].setup.device)
        return [[part.piece(place) for part in drawn] for place in places]

    def _losses(self, drawn: Sequence[Drawn], seeds: Sequence[int]) -> TokenLosses:
        """What the model says of the trials' parts of a forward pass, and of what is shown apart from it."""
        import torch

        setup = self.learners[0].setup
        batch = collate([part.examples for part in drawn], padding_id(setup), setup.device)
        nats = self.forward(batch, seeds)
        sums = [part.reference for part in drawn if part.reference is not None]
        apart = [part.apart for part in drawn if part.apart is not None]
        with torch.no_grad():
            return TokenLosses(
                nats,
                batch.sequence,
                batch.completion,
                batch.rows,
                torch.tensor(np.stack(sums), dtype=nats.dtype, device=nats.device) if sums else None,
                self._losses(apart, []) if apart else None,
                batch.scores,
            )

    def _look(self) -> None:
        """Read the losses of the steps since the last look; a learner's first bad one is its end."""
        import torch

        if not self._seen:
            return
        values = torch.stack([torch.stack(pair) for pair in self._seen]).tolist()  # (steps, 2, K)
        self._seen = []
        for k, one in enumerate(self.learners):
            for offset, (losses, norms) in enumerate(values, 1 - len(values)):
                for name, value in (("loss", losses[k]), ("grad_norm", norms[k])):
                    if one.failure is None and not math.isfinite(value):
                        step = one.step + offset
                        one.failure = Diverged(f"{name} became {value} at step {step}: lower the learning rate")
                if one.failure is None:
                    one.losses.total += losses[k]
                    one.losses.steps += 1
            if one.failure is None:
                try:
                    one.check_time()
                except TimedOut as failure:
                    one.failure = failure


@contextmanager
def precision(one: Learner, model: PreTrainedModel, batch: Batch | None = None) -> Iterator[None]:
    """bfloat16 where the stage asks for it, and on a CPU what is quicker there.

    Args:
        one: Whose stage it is.
        model: What will be called.
        batch: With what, if only its supervised positions matter.
    """
    import torch

    setup, method = one.setup, one.choices.method
    half = resolve_precision(str(setup.params["precision"]), setup.device) == "bfloat16"
    with ExitStack() as stack:
        if setup.device == "cpu" and not method.reserved(setup.params) and not one.facts.get("recomputes"):
            stack.enter_context(quick_attention(model, batch))
        stack.enter_context(torch.autocast(setup.device, torch.bfloat16, enabled=half))
        yield


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


class Together(Session):
    """Several trials in one forward and backward pass.

    Raises:
        CannotStack: When their models cannot share one.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        import torch

        from harness.fused import Stack

        super().__init__(learners)
        self.stack: Stack = Stack([one.model for one in learners], [one.choices.method for one in learners])
        self.first, self.second = torch.zeros_like(self.stack.gradients), torch.zeros_like(self.stack.gradients)
        self.optimizers = [self._adamw(k, one) for k, one in enumerate(learners)]
        for one in learners:
            one.facts |= facts(one) | {"optimizer": "AdamW"}
        self.stack.model.train()

    def _adamw(self, k: int, one: Learner) -> Any:
        """AdamW over a trial's row: one vector that decays, one that does not."""
        import torch

        for moments, index in ((self.first, 0), (self.second, 1)):
            for name, view in self.stack.named(moments[k], k).items():
                if name in one.moments:
                    view.copy_(one.moments[name][index])
        rows = []
        values, gradients = self.stack.values.detach(), self.stack.gradients
        for columns in (slice(0, self.stack.decayed), slice(self.stack.decayed, None)):
            row = torch.nn.Parameter(values[k, columns])
            row.grad = gradients[k, columns]
            rows.append((row, columns))
        decays = (float(one.setup.params["weight_decay"]), 0.0)
        optimizer = adamw([([row] if len(row) else [], decay) for (row, _), decay in zip(rows, decays, strict=True)])
        for row, columns in rows:
            if len(row):
                put_state(optimizer, row, self.first[k, columns], self.second[k, columns], one.step)
        return optimizer

    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """All trials' rows through the stack, each with its own random numbers."""
        if seeds:
            self.stack.dropout.start(seeds)
        self.stack.dropout.lengths = batch.lengths
        with precision(self.learners[0], self.stack.model, batch):
            return supervised_nats(self.stack.model, batch)

    def begin(self) -> None:
        """Nothing: a method that acts before a step runs alone."""

    def passed(self) -> None:
        """Nothing, likewise."""

    def update(self) -> Tensor:
        """Each trial's own clipping, rate and decay."""
        import torch

        gradients = self.stack.gradients
        norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
        limits = [float(one.setup.params["max_grad_norm"]) or math.inf for one in self.learners]
        limit = torch.tensor(limits, dtype=norms.dtype, device=norms.device)
        gradients.mul_(torch.clamp(limit / (norms + 1e-6), max=1.0).unsqueeze(1))
        for one, optimizer in zip(self.learners, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(one.setup.params, one.step, one.setup.steps)
            optimizer.step()
        gradients.zero_()
        return norms

    def scoring(self, due: Sequence[Learner]) -> AbstractContextManager[tuple[PreTrainedModel, int]]:
        """The stack as it is, or one of the trials asked for."""
        from harness.fused import stacked

        if len(due) == len(self.learners):
            return nullcontext((self.stack.model, self.stack.count))
        self.stack.write_back()
        return stacked([one.model for one in due], [one.choices.method for one in due])

    def close(self) -> None:
        """Each trial's weights to its model, its moments to itself."""
        self.stack.write_back()
        for k, one in enumerate(self.learners):
            first, second = (self.stack.named(moments[k], k) for moments in (self.first, self.second))
            one.moments = {name: (first[name].clone(), second[name].clone()) for name in first}
            one.model.eval()

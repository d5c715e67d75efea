"""The harness's own training loop, for one trial or for several that share a forward pass.

A session trains learners in step, together (`fused.Stack`) or alone. All that a continuation needs is a learner's
weights, its moments and its step: batches and random numbers are functions of seed and step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import Diverged, TimedOut
from harness.nn.attention import draws_numbers
from harness.nn.batches import Batch, collate, cuts, padding_id
from harness.nn.sequences import TokenLosses
from harness.records.trial import derive_seed
from harness.training.learner import Drawn, Learner

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


CHECK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between looks at losses: on a GPU each look waits for it."""


class Session(ABC):
    """Trains learners in step; what it changes is theirs again after `close`."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.draws = any(draws_numbers(learner.model) for learner in learners)
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
                for learner in self.learners:
                    learner.step += 1
                if len(self._seen) >= every:
                    self._look()
                if any(learner.failure for learner in self.learners):
                    return
        finally:
            self._look()

    def preview(self) -> list[float]:
        """Each trial's loss of the next forward pass, summed over what its objective counts; nothing is changed."""
        import torch

        seeds = [derive_seed(learner.setup.seed, "step", learner.step) for learner in self.learners]
        with torch.no_grad():
            losses = self._losses([learner.drawn(0) for learner in self.learners], seeds)
            summed = self.learners[0].choices.objective.loss(losses, [learner.setup for learner in self.learners])
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

        examples, passes = [learner.next_examples() for learner in self.learners], self.learners[0].batch[1]
        objective, device = self.learners[0].choices.objective, self.learners[0].setup.device
        seeds = [derive_seed(learner.setup.seed, "step", learner.step) for learner in self.learners]
        items = torch.tensor([objective.items(own) for own in examples], device=device)
        parts, shown = [], [[learner.drawn(number) for learner in self.learners] for number in range(passes)]
        self.begin()
        for number, drawn in enumerate(shown):
            pieces = self._pieces(drawn)
            for piece in pieces:
                losses = self._losses(piece, seeds if number == 0 else [])
                parts_of = items
                if self.learners[0].choices.method.one_by_one:  # no example's share may depend on the others' lengths
                    parts_of = torch.tensor([objective.items(part.examples) for part in piece], device=device)
                    parts_of *= len(examples[0])
                loss = objective.loss(losses, [learner.setup for learner in self.learners]) / parts_of
                term = self.penalty()
                (loss.sum() if term is None else loss.sum() + term / (passes * len(pieces))).backward()
                self.passed()
                parts.append(loss.detach())
        norms = self.update()
        for drawn in shown:  # only now: a step that runs out of memory may be done again
            for learner, part in zip(self.learners, drawn, strict=True):
                learner.count(part.examples)
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
        batch = collate([part.examples for part in drawn], padding_id(setup.tokenizer), setup.device)
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
        for k, learner in enumerate(self.learners):
            for offset, (losses, norms) in enumerate(values, 1 - len(values)):
                for name, value in (("loss", losses[k]), ("grad_norm", norms[k])):
                    if learner.failure is None and not math.isfinite(value):
                        step = learner.step + offset
                        learner.failure = Diverged(f"{name} became {value} at step {step}: lower the learning rate")
                if learner.failure is None:
                    learner.losses.total += losses[k]
                    learner.losses.steps += 1
            if learner.failure is None:
                try:
                    learner.check_time()
                except TimedOut as failure:
                    learner.failure = failure

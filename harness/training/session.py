"""The harness's own training loop, for one trial or for several that share a forward pass.

A session trains learners in step, together (`nn.stack.Stack`) or alone. All that a continuation needs is a learner's
weights, its moments and its step: batches and random numbers are functions of seed and step. So a session may stop
after any step, and `keep` gives the learners what a checkpoint of them holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.nn.attention import draws_numbers
from harness.nn.batches import Batch, collate, cuts, padding_id
from harness.nn.sequences import TokenLosses
from harness.objectives.base import Objective
from harness.records.trial import derive_seed
from harness.training.learner import Learner, Part, not_finite

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.axes.contract import StageSetup

CHECK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between two reads of the losses: on a GPU each read waits for all steps queued before it."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all learners of a session share (`trial.packs.alike` lets no others train together)."""

    objective: Objective
    device: str
    passes: int
    """Forward passes of one optimiser step."""
    padding: int
    """The tokenizer's padding token."""
    one_by_one: bool
    """Whether every example has a backward pass of its own."""

    @staticmethod
    def of(learner: Learner) -> Common:
        """The same for any learner of the session."""
        return Common(
            objective=learner.choices.objective,
            device=learner.setup.device,
            passes=learner.batch[1],
            padding=padding_id(learner.setup.tokenizer),
            one_by_one=learner.choices.method.one_by_one,
        )


class Session(ABC):
    """Trains learners in step; `close` writes the weights and optimiser states back to them."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self.common = Common.of(learners[0])
        self.draws = any(draws_numbers(learner.model) for learner in learners)
        """Whether random numbers depend on how a step is put together."""
        self._unread: list[tuple[Tensor, Tensor]] = []
        """Losses and gradient norms of steps, each of shape (K,), which nobody has looked at yet."""

    @abstractmethod
    def forward(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """Negative log-probability of each supervised token.

        Args:
            batch: The rows of all learners.
            seeds: One for each learner's random numbers; empty after the first forward pass of a step, which goes on
                with the same stream.

        Returns:
            Nats, shape (K, supervised tokens of the longest member, padded with zeros).
        """

    @abstractmethod
    def optimizer_step(self) -> Tensor:
        """Clip the gradients, update the parameters, and clear the gradients.

        Returns:
            Norms of the gradients before clipping, shape (K,).
        """

    @abstractmethod
    def scoring(self, due: Sequence[Learner]) -> AbstractContextManager[tuple[PreTrainedModel, int]]:
        """A model that takes the rows of those learners, member-major, and their number."""

    @abstractmethod
    def keep(self) -> None:
        """Write weights and moments back to the learners; the session may go on afterwards."""

    def close(self) -> None:
        """Write weights and moments back to the learners, whose models are scored or saved next."""
        self.keep()
        for learner in self.learners:
            learner.model.eval()

    @property
    def cuttable(self) -> bool:
        """Whether a pass may be cut into several that come to the same loss and gradients."""
        return not (self.draws or self.common.objective.compares or self.common.one_by_one)

    def spare_memory(self) -> bool:
        """Go on with less memory from now on, in a new session: in smaller passes, then without keeping activations.

        Returns:
            False where there is no less, or several train together.
        """
        if len(self.learners) > 1:
            return False
        (one,) = self.learners
        return (self.cuttable and one.cut_passes()) or one.spare_memory()

    def before_passes(self) -> None:  # noqa: B027  a hook that does nothing by default
        """Called before the first forward pass of every optimiser step."""

    def penalty(self) -> Tensor | None:
        """A scalar that retention and the method add to the loss of one step, or None."""
        return None

    def after_pass(self) -> None:  # noqa: B027
        """Called after every backward pass."""

    def advance(self, steps: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Do so many optimiser steps, or fewer if a learner fails meanwhile (its `failure` says why).

        Args:
            steps: To the next pause at most.
            stop: Asked after every step whether to stop there.
        """
        try:
            for _ in range(steps):
                self._unread.append(self._step())
                for learner in self.learners:
                    learner.step += 1
                    learner.unscored = learner.step in learner.watch.score_at
                if len(self._unread) >= CHECK_EVERY[self.common.device]:
                    self._read_losses()
                if any(learner.failure for learner in self.learners) or stop():
                    return
        finally:
            self._read_losses()

    def preview(self) -> list[float]:
        """Each learner's loss of the next forward pass, summed over what its objective counts; nothing is changed."""
        import torch

        with torch.no_grad():
            losses = self._losses([learner.part(0) for learner in self.learners], self._seeds())
            sums: list[float] = self.common.objective.loss(losses, self._setups()).tolist()
        return sums

    def _seeds(self) -> list[int]:
        return [derive_seed(learner.setup.seed, "step", learner.step) for learner in self.learners]

    def _setups(self) -> list[StageSetup]:
        return [learner.setup for learner in self.learners]

    def _step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; losses (K,) without penalty, gradient norms (K,)."""
        import torch

        objective, seeds = self.common.objective, self._seeds()
        items = [objective.items(learner.next_examples()) for learner in self.learners]
        divisors = torch.tensor(items, device=self.common.device)
        passes = [[learner.part(number) for learner in self.learners] for number in range(self.common.passes)]
        losses: list[Tensor] = []
        self.before_passes()
        for number, parts in enumerate(passes):
            pieces = self._pieces(parts)
            for piece in pieces:
                loss = self._loss(piece, divisors, seeds if number == 0 else [])
                total, term = loss.sum(), self.penalty()
                if term is not None:  # the penalty is the step's: each of its backward passes adds an equal share
                    total = total + term / (len(passes) * len(pieces))
                total.backward()
                self.after_pass()
                losses.append(loss.detach())
        norms = self.optimizer_step()
        for parts in passes:  # only now: a step that runs out of memory may be done again
            for learner, part in zip(self.learners, parts, strict=True):
                learner.count(part.examples)
        return torch.stack(losses).sum(0).double(), norms.double()

    def _loss(self, piece: Sequence[Part], divisors: Tensor, seeds: Sequence[int]) -> Tensor:
        """Each learner's share of the step's loss, shape (K,).

        Args:
            piece: What one forward pass shows.
            divisors: What each learner's loss is a mean over in the whole step, shape (K,).
            seeds: See `forward`.
        """
        import torch

        objective, device = self.common.objective, self.common.device
        losses = self._losses(piece, seeds)
        if self.common.one_by_one:  # no example's share may depend on the others' lengths
            divisors = torch.tensor([objective.items(part.examples) for part in piece], device=device)
            divisors *= len(self.learners[0].next_examples())
        return objective.loss(losses, self._setups()) / divisors

    def _pieces(self, parts: Sequence[Part]) -> list[list[Part]]:
        """A pass, cut where that saves padding and changes no loss."""
        if self.common.one_by_one:
            return [[part.piece(slice(k, k + 1)) for part in parts] for k in range(len(parts[0].examples))]
        if not self.cuttable:
            return [list(parts)]
        places = cuts([part.examples for part in parts], self.common.device)
        most = min(learner.settings.pass_examples or learner.batch[0] for learner in self.learners)
        smaller = [slice(k, min(k + most, p.stop)) for p in places for k in range(p.start, p.stop, most)]
        return [[part.piece(place) for part in parts] for place in smaller]

    def _losses(self, parts: Sequence[Part], seeds: Sequence[int]) -> TokenLosses:
        """What the model says of the learners' parts of a forward pass, and of what is shown apart from it."""
        import torch

        batch = collate([part.examples for part in parts], self.common.padding, self.common.device)
        nats = self.forward(batch, seeds)
        reference = [part.reference for part in parts if part.reference is not None]
        apart = [part.apart for part in parts if part.apart is not None]
        with torch.no_grad():
            return TokenLosses(
                nats=nats,
                sequence=batch.sequence,
                completion=batch.completion,
                sequences=batch.rows,
                reference=torch.tensor(np.stack(reference), dtype=nats.dtype, device=nats.device)
                if reference
                else None,
                apart=self._losses(apart, []) if apart else None,
                scores=batch.scores,
            )

    def _read_losses(self) -> None:
        """Read the losses of the steps since the last read; a learner's first bad one is its end."""
        import torch

        if not self._unread:
            return
        values = torch.stack([torch.stack(pair) for pair in self._unread]).tolist()  # (steps, 2, K)
        self._unread = []
        for k, learner in enumerate(self.learners):
            for step, (losses, norms) in enumerate(values, learner.step + 1 - len(values)):
                learner.failure = (
                    learner.failure or not_finite("loss", losses[k], step) or not_finite("grad_norm", norms[k], step)
                )
                if learner.failure is None:
                    learner.losses.total += losses[k]
                    learner.losses.steps += 1
            learner.failure = learner.failure or learner.overtime()

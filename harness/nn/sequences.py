"""Token sequences to train on, and the losses of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token that carries no loss."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to train on; both tuples have the same length."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The token's own id where it carries loss, else `IGNORED`; the first is never predicted."""
    prompt: int = 0
    """Leading tokens that are no part of the completion, whether or not they carry loss."""
    score: float = 0.0
    """How good the completion is, for objectives that compare with that."""

    def last(self, limit: int) -> TokenSequence:
        """Its last `limit` tokens."""
        cut = max(0, len(self.input_ids) - limit)
        return replace(self, input_ids=self.input_ids[cut:], labels=self.labels[cut:], prompt=max(0, self.prompt - cut))

    def first(self, limit: int) -> TokenSequence:
        """Its first `limit` tokens."""
        ids, labels = self.input_ids[:limit], self.labels[:limit]
        return replace(self, input_ids=ids, labels=labels, prompt=min(self.prompt, limit))


Example = tuple[TokenSequence, ...]
"""What a batch counts: one sequence for a language model, several that belong together for preferences."""


@dataclass(frozen=True, kw_only=True)
class TokenLosses:
    """How likely the model finds a batch's supervised tokens, for K trials at once."""

    nats: Tensor
    """Negative log-probability of each supervised token, shape (K, tokens); 0 where a trial has fewer than another."""
    sequence: Tensor
    """Which of a trial's sequences each token belongs to, shape (K, tokens); `sequences` where it is a filler."""
    completion: Tensor
    """Whether each token is of its sequence's completion rather than its prompt, shape (K, tokens)."""
    sequences: int
    """Sequences per trial: examples times sequences of an example, example by example."""
    reference: Tensor | None = None
    """Summed log-probability of each sequence under the base, shape (K, sequences); None unless asked for."""
    apart: TokenLosses | None = None
    """The same of what `Objective.apart` shows, without gradient; None where it shows nothing."""
    scores: Tensor | None = None
    """Score of each sequence, shape (K, sequences)."""

    def log_probabilities(self) -> Tensor:
        """Summed log-probability of each sequence's completion, shape (K, sequences)."""
        return -self._summed(self.nats * self.completion)

    def lengths(self) -> Tensor:
        """Predicted tokens of each sequence's completion, shape (K, sequences)."""
        return self._summed(self.completion.to(self.nats))

    def log_ratios(self) -> Tensor:
        """How much likelier than to the base each sequence's completion is, in nats, shape (K, sequences)."""
        assert self.reference is not None
        return self.log_probabilities() - self.reference

    def _summed(self, values: Tensor) -> Tensor:
        # Every trial has as many entries as the one with the most; its fillers go to a last sequence that is dropped.
        whole = values.new_zeros(len(values), self.sequences + 1).scatter_add(1, self.sequence, values)
        return whole[:, : self.sequences]

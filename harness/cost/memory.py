"""What training holds in its device's memory at most, part by part, from what its model was measured to hold.

`Layout` says what one method on one base holds whatever the batch (see `cost/layout`); `Layout.memory` says what it comes
to for a batch. Nothing here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.nn.logits import LOGITS
from harness.records.codec import Record

MARGIN = 1.1
"""What is asked for beside what is counted: an allocator's gaps and the workspaces of kernels, which nobody can know."""
CONTEXT_BYTES = 1 << 30
"""A CUDA context with the kernels of torch's libraries, about; driver and GPU decide."""
PROCESS_BYTES = 680_000_000
"""Main memory of a worker that has imported what trials need, without a model: `benchmarks/memory.py --testbed` shows it."""


@dataclass(frozen=True, kw_only=True)
class Load(Record):
    """What a forward pass is given."""

    rows: int
    """Sequences."""
    example: int = 1
    """Sequences of each example, which belong together."""
    length: int
    """Tokens of each."""
    supervised: int
    """Tokens of all of them at which logits are computed."""
    adapts: bool = True
    """Whether the loop that trains can go on with less where memory is short; TRL's trainers cannot."""
    accumulates: bool = False
    """Whether gradients of an earlier pass are there already."""
    cuttable: bool = False
    """Whether a pass of rows of different length is cut into shorter ones; gradients add up from the first on then."""


@dataclass(frozen=True, kw_only=True)
class Memory(Record):
    """Bytes that training a stage holds; each part at its largest, which not all are at once (see `peak`)."""

    weights: float
    """Of the base, as far as they do not move."""
    trained: float
    """Adapters, or the base's weights that move: float32."""
    moments: float
    """What the optimiser keeps."""
    gradients: float
    copies: float
    """Of weights in the type that a pass computes in."""
    activations: float
    """What the forward pass keeps for the backward pass."""
    logits: float
    """The output layer's, and what the loss makes of them."""
    peak: float
    """Most of it that is held at once."""
    basis: str = ""
    """What stands in the method's place, and why; empty where the method itself was asked."""


@dataclass(frozen=True, kw_only=True)
class Layout(Record):
    """What one method on one base holds, and what it holds for each token."""

    weights: float
    trained: float
    moments: float
    gradients: float
    first_gradient: float
    """Bytes of the output layer's gradient, the first to be there, if it has one."""
    copies: float
    token_activations: float
    """Bytes of activations for each token of a pass."""
    token_kept: float
    """The same where layers are computed again in the backward pass: their inputs."""
    layers: int
    logit: float
    """Bytes of each logit: itself, in float32, and its gradient."""
    vocabulary: int
    basis: str

    def memory(self, load: Load, recomputes: bool = False) -> Memory:
        """What it comes to for a batch.

        Args:
            load: The batch.
            recomputes: Whether layers are computed again in the backward pass.
        """
        tokens, logits = load.rows * load.length, load.supervised * self.vocabulary
        activations, copies = tokens * self.token_activations, self.copies
        if recomputes:
            activations, copies = tokens * self.token_kept + activations / self.layers, copies / self.layers
        held = self.weights + self.trained + self.moments
        output = self.logit * min(logits, LOGITS)
        # As the backward pass goes down the layers, gradients take the place of activations: either end is the most.
        start = copies + activations + max(output, self.first_gradient)
        ends = [start + self.gradients * load.accumulates, self.gradients]
        if load.cuttable and load.rows > load.example:
            ends.append(self.gradients + copies + (activations + output) / 2)
        return Memory(
            weights=self.weights,
            trained=self.trained,
            moments=self.moments,
            gradients=self.gradients,
            copies=copies,
            activations=activations,
            logits=output,
            peak=held + max(ends),
            basis=self.basis,
        )

    def least(self, load: Load) -> Memory:
        """What it comes to where memory is short: one example at a time, and layers that are computed again.

        Args:
            load: What a pass is given while memory is not short.
        """
        if not load.adapts:
            return self.memory(load)
        rows = load.example if load.cuttable else load.rows
        one = replace(
            load,
            rows=rows,
            supervised=load.supervised * rows // load.rows,
            accumulates=load.accumulates or rows < load.rows,
        )
        return min(self.memory(one), self.memory(one, recomputes=True), key=lambda memory: memory.peak)

"""What a trial that trains with others would take alone: measured on its first steps, which are then undone.

A pack's smallest and largest trial (by trainable parameters) do a few steps alone; the others lie between them.
A process keeps the figures (`SoloCosts`), so that its later packs of the same kind pay nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.cost.meter import Meter, Tally
from harness.records.execution import StageSettings
from harness.training.alone import Alone
from harness.training.learner import Learner, Losses
from harness.training.together import Together

STEPS = 3
"""Timed steps; one more comes before them, for what only a first step pays."""


Kind = tuple[str, str, int]
"""Packs that behave alike: fingerprint of what their trials have in common (see `packs.alike`), device, threads."""


@dataclass(frozen=True)
class Solo:
    """A trial's training, alone."""

    trainable: int
    """Parameters that move."""
    seconds_per_token: float
    """Per token of its batches as padded alone."""
    peak_memory_bytes: int | None
    """Peak memory of its steps."""
    step_memory_bytes: int
    """How far its steps raised that above what was held before."""


ROOM, HALF_ROOM = 1e-3, 3e-2
"""Relative difference of two losses that rounding explains, in float32 and in bfloat16."""


class SoloCosts:
    """What a process has measured of trials alone, and which kinds of pack it has seen to agree with them."""

    def __init__(self) -> None:
        self._measured: dict[tuple[Kind, int], Solo] = {}
        self._agreed: set[Kind] = set()

    def calibrate(self, learners: Sequence[Learner], kind: Kind) -> list[Solo]:
        """Each learner's figures alone.

        Args:
            learners: Trials that are alike, before any step of this session.
            kind: What makes figures comparable besides the number of trainable parameters.
        """
        sizes = [sum(p.numel() for p in learner.model.parameters() if p.requires_grad) for learner in learners]
        ends = [sizes.index(min(sizes)), sizes.index(max(sizes))]
        for index in dict.fromkeys(ends):
            if (kind, sizes[index]) not in self._measured:
                self._measured[(kind, sizes[index])] = _measure(learners[index], sizes[index])
        low, high = (self._measured[(kind, sizes[index])] for index in ends)
        return [_between(low, high, size) for size in sizes]

    def differ(self, learners: Sequence[Learner], kind: Kind) -> str | None:
        """Why trials must not train together after all: their losses are not what they are alone. None where they are.

        Looked at once per kind, on the next forward pass: no list of architectures says which mix their rows.

        Args:
            learners: Trials that are alike.
            kind: What makes packs behave alike.
        """
        if kind in self._agreed:
            return None
        reason = _difference(learners)
        if reason is None:
            self._agreed.add(kind)
        return reason


def _difference(learners: Sequence[Learner]) -> str | None:
    """Compare the first and the last trial's next loss with their losses alone."""
    from harness.nn.stack import CannotStack

    try:
        together = Together(learners).preview()
    except CannotStack as reason:
        return str(reason)
    for index in {0, len(learners) - 1}:
        alone = Alone(replace(learners[index])).preview()[0]
        room = (HALF_ROOM if learners[index].settings.bf16 else ROOM) * max(1.0, abs(alone))
        if math.isfinite(alone) and not abs(together[index] - alone) <= room:
            return f"together its first loss is {together[index]:.6g}, alone {alone:.6g}"
    return None


def _between(low: Solo, high: Solo, size: int) -> Solo:
    """Linear in the number of trainable parameters."""
    if low.trainable == high.trainable:
        return low
    share = (size - low.trainable) / (high.trainable - low.trainable)
    per_token = low.seconds_per_token + share * (high.seconds_per_token - low.seconds_per_token)
    return replace(high, trainable=size, seconds_per_token=per_token)


def _measure(learner: Learner, size: int) -> Solo:
    """Time steps of a stand-in that shares the learner's model, and put the weights back."""
    import torch

    before = {name: p.detach().clone() for name, p in learner.model.named_parameters() if p.requires_grad}
    meter, spans = Meter(learner.setup.device), []
    shadow = replace(
        learner,
        watch=replace(learner.watch, tally=Tally(), meter=meter),
        losses=Losses(),
        settings=StageSettings(),
        moments={name: (first.clone(), second.clone()) for name, (first, second) in learner.moments.items()},
    )
    held = meter.memory_now()
    with meter.phase("train"):
        session = Alone(shadow)
        for _ in range(min(1 + STEPS, learner.watch.stop_at - learner.step)):
            started, tokens = time.perf_counter(), shadow.padded_tokens
            session.advance(1)
            if learner.setup.device == "cuda":
                torch.cuda.synchronize()
            spans.append((time.perf_counter() - started, shadow.padded_tokens - tokens))
    timed = spans[1:] or spans
    with torch.no_grad():
        for name, weights in before.items():
            learner.model.get_parameter(name).copy_(weights)
    per_token = sum(seconds for seconds, _ in timed) / sum(tokens for _, tokens in timed)
    return Solo(size, per_token, meter.peak_memory_bytes, max(0, (meter.peak_memory_bytes or 0) - held))

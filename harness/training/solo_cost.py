"""What a trial that trains with others would take alone: measured on its first steps, which are then undone.

A pack's smallest and largest trial (by trainable parameters) do a few steps alone; the others lie between them. Then the
pack does as many together: a stack shares a frozen base's passes, but where every weight moves it may be slower than its trials
one after the other, and no list of methods says on which machine. A process keeps the figures (`SoloCosts`), so that its later
packs of the same kind pay nothing.
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
from harness.training.session import Session
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


WORTHWHILE = 1.1
"""Times as long as one after the other that the fastest step together may take: less is what a busy machine does to timings,
and trials together are scored together, too."""


class SoloCosts:
    """What a process has measured of trials alone, and which kinds of pack it has seen to agree with them, and to pay."""

    def __init__(self) -> None:
        self._measured: dict[tuple[Kind, int], Solo] = {}
        self._agreed: set[Kind] = set()
        self._slower: dict[Kind, str | None] = {}

    def slower(self, kind: Kind) -> str | None:
        """Why trials of this kind are better trained one after the other, where that has been measured.

        Args:
            kind: Of packs that take the same arithmetic: fingerprint of what trains (see `packs.kindred`), device, threads.
        """
        return self._slower.get(kind)

    def lose(self, learners: Sequence[Learner], kind: Kind, solos: Sequence[Solo]) -> str | None:
        """Why these trials are better trained one after the other: measured once per kind, on steps that are undone.

        Args:
            learners: Trials that are alike, before any step of this session.
            kind: See `slower`.
            solos: What `calibrate` said of them.
        """
        if kind not in self._slower:
            ratio = _times_as_long(learners, solos)
            together = f"together, steps took {ratio:.1f} times as long as one trial after the other"
            self._slower[kind] = together if ratio > WORTHWHILE else None
        return self._slower[kind]

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
    meter = Meter(learner.setup.device)
    shadow = _shadow(learner, meter)
    held = meter.memory_now()
    with meter.phase("train"):
        timed = _timed(Alone(shadow), [shadow])
    with torch.no_grad():
        for name, weights in before.items():
            learner.model.get_parameter(name).copy_(weights)
    per_token = sum(seconds for seconds, _ in timed) / sum(tokens for _, (tokens,) in timed)
    return Solo(size, per_token, meter.peak_memory_bytes, max(0, (meter.peak_memory_bytes or 0) - held))


def _times_as_long(learners: Sequence[Learner], solos: Sequence[Solo]) -> float:
    """Seconds of the fastest step together for each second that its trials take one after the other."""
    shadows = [_shadow(learner, Meter(learner.setup.device)) for learner in learners]
    # a stack holds copies of what it trains and writes them back when it is closed, which this one never is
    timed = _timed(Together(shadows), shadows)
    apart = [sum(solo.seconds_per_token * own for solo, own in zip(solos, tokens, strict=True)) for _, tokens in timed]
    return min(seconds / alone for (seconds, _), alone in zip(timed, apart, strict=True))


def _shadow(learner: Learner, meter: Meter) -> Learner:
    """A stand-in whose steps leave nothing behind but the weights of the model that it shares."""
    return replace(
        learner,
        watch=replace(learner.watch, tally=Tally(), meter=meter),
        losses=Losses(),
        settings=StageSettings(),
        moments={name: (first.clone(), second.clone()) for name, (first, second) in learner.moments.items()},
    )


def _timed(session: Session, shadows: Sequence[Learner]) -> list[tuple[float, list[int]]]:
    """Seconds of each step, and every trial's tokens of it as padded alone; without the first step where there are others."""
    import torch

    spans = []
    for _ in range(min(1 + STEPS, *(shadow.watch.stop_at - shadow.step for shadow in shadows))):
        before = [shadow.padded_tokens for shadow in shadows]
        started = time.perf_counter()
        session.advance(1)
        if shadows[0].setup.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        spans.append((seconds, [s.padded_tokens - b for s, b in zip(shadows, before, strict=True)]))
    return spans[1:] or spans

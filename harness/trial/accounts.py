"""What a trial has cost so far: in this job, and before it where it goes on from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness.cost.flops import Size, training_flops
from harness.cost.meter import Meter, Tally
from harness.cost.price import cost_record
from harness.records.trial import CostRecord
from harness.study.spec import Prices
from harness.training.checkpoint import NOTHING, Progress
from harness.training.solo_cost import Solo


@dataclass(frozen=True)
class StageWork:
    """What one stage trained, and on how much."""

    size: Size
    tally: Tally

    @property
    def flops(self) -> float:
        """FLOPs of its training so far."""
        return training_flops(self.size, self.tally.tokens, self.tally.squared_lengths)


@dataclass(kw_only=True)
class Accounts:
    """A trial's time, memory and tokens."""

    meter: Meter
    inherited: Progress = NOTHING
    """What the rung that it goes on from had taken; nothing for a trial from the start."""
    stages: list[StageWork] = field(default_factory=list)
    trained_with: int = 1
    """Trials that were trained together, itself included."""
    solo_equivalent_s: float | None = None
    """Training seconds that it would have taken alone; None where it was trained alone from the start."""
    alone_before_s: float = 0.0
    """Training seconds that its earlier attempts, which it goes on from, would have taken alone."""
    padded_before: int = 0
    """Padded tokens that these trained on."""
    train_before_s: float = 0.0
    """Training seconds on the meter before this attempt."""

    def open_stage(self, size: Size) -> Tally:
        """Counters for a stage that is about to train a model of that size."""
        self.stages.append(StageWork(size, Tally()))
        return self.stages[-1].tally

    @property
    def train_seconds(self) -> float:
        """Wall seconds of training up to now, earlier rungs included."""
        return self.meter.so_far("train") + self.inherited.train_seconds

    @property
    def tokens(self) -> int:
        """Tokens trained on up to now, earlier rungs included."""
        return sum(stage.tally.tokens for stage in self.stages) + self.inherited.tokens

    @property
    def total_s(self) -> float:
        """Wall seconds of all phases up to now, earlier rungs included."""
        return self.meter.total_s + self.inherited.total_s

    @property
    def flops(self) -> float:
        """FLOPs of this job's training."""
        return sum((stage.flops for stage in self.stages), 0.0)

    def charge_as_alone(self, solo: Solo, padded_tokens: int, together: int) -> None:
        """Note what training would have taken alone.

        Args:
            solo: The trial's figures alone.
            padded_tokens: Tokens of its batches, padded as they would have been alone.
            together: Trials that were trained together.
        """
        self.trained_with = max(together, self.trained_with)
        self.solo_equivalent_s = self.alone_s(solo, padded_tokens)
        self.meter.peak_memory_bytes = self.peak_memory(solo)
        self.meter.peak_memory_from += ", of steps alone"

    def alone_s(self, solo: Solo | None, padded_tokens: int) -> float:
        """Training seconds that the trial would have taken alone up to now, earlier attempts included.

        Args:
            solo: Its figures alone; None where this attempt trains it alone.
            padded_tokens: Of its batches, earlier attempts included.
        """
        if solo is None:
            return self.alone_before_s + self.meter.so_far("train") - self.train_before_s
        return self.alone_before_s + solo.seconds_per_token * (padded_tokens - self.padded_before)

    def peak_memory(self, solo: Solo | None) -> int | None:
        """Peak memory of training up to now.

        One process's memory cannot be told apart by trial, so that of a group is that of the steps that it did alone.
        """
        own = self.meter.peak_memory_bytes if solo is None else solo.peak_memory_bytes
        return max(filter(None, (own, self.meter.carried.peak_memory_bytes)), default=None)

    def cost(self, prices: Prices, threads: int, peak_flops: float | None) -> CostRecord:
        """The cost part of the record; earlier rungs have records of their own.

        Args:
            prices: The study's price table.
            threads: CPU cores held.
            peak_flops: FLOP/s that the hardware reaches at most in the precision of training; None where unknown.
        """
        size = self.stages[-1].size if self.stages else Size()
        seconds = self.meter.seconds["train"]
        # an earlier attempt trained it with others, or tried to: the meter holds its share of steps that were undone
        shared = self.trained_with > 1 or self.train_before_s > self.alone_before_s
        if shared and self.solo_equivalent_s is None:
            self.solo_equivalent_s = self.alone_s(None, 0)
        return replace(
            cost_record(self.meter, self._total(), size, prices, threads),
            trained_with=self.trained_with,
            solo_equivalent_s=self.solo_equivalent_s,
            utilisation=self.flops / (seconds * peak_flops) if peak_flops and seconds else None,
        )

    def _total(self) -> Tally:
        tallies = [stage.tally for stage in self.stages]
        return Tally(
            tokens=sum(tally.tokens for tally in tallies),
            supervised_tokens=sum(tally.supervised_tokens for tally in tallies),
            squared_lengths=sum(tally.squared_lengths for tally in tallies),
            flops=self.flops,
        )

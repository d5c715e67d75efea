"""What a trial costs: a meter for time, memory and energy, counters for tokens, formulas for FLOPs and money."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from harness.nn.sequences import IGNORED, TokenSequence
from harness.records.codec import Record

if TYPE_CHECKING:
    from torch import Tensor

PHASES = ("load", "data", "train", "evaluate", "save")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class _Reading:
    """Clocks at one moment."""

    wall_s: float
    cpu_s: float
    energy_j: float | None

    @staticmethod
    def now(device: str) -> _Reading:
        return _Reading(time.perf_counter(), _cpu_seconds(), energy_joules(device))


@dataclass(frozen=True, kw_only=True)
class Spent(Record):
    """What a meter has counted."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by phase."""
    cpu_s: float = 0.0
    energy_j: float | None = None
    peak_memory_bytes: int | None = None


class Meter:
    """Wall seconds by phase, CPU seconds, GPU energy, and peak memory of the training window.

    Phases may nest: the inner one's time is not the outer one's. Memory counts only while `train` is the running
    phase, so neither loading nor evaluation is in it. On a GPU it is what torch allocated; on a CPU the process's
    resident set, from the kernel's high-water mark, which is reset as the window opens (`peak_memory_from` says so
    where a kernel does not allow that and the resident set at the window's end is taken instead).
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.cpu_s = 0.0
        """CPU seconds of this process and of its finished children, in all phases."""
        self.energy_j: float | None = None
        """Joules that the GPU drew in all phases, other processes' work on it included; None without one."""
        self.peak_memory_bytes: int | None = None
        self.peak_memory_from = "torch allocator" if device == "cuda" else "resident set, high-water mark"
        self.attempt = uuid4().hex
        """Tells what this meter has counted from what others have."""
        self.carried = Spent()
        """What earlier attempts at the same trial took, which is among all that this meter says."""
        self._stack: list[tuple[str, float]] = []
        self._since = _Reading.now(device)

    @contextmanager
    def phase(self, name: str, share: float = 1.0) -> Iterator[None]:
        """Charge what happens inside to a phase, or only a share of it where several trials do it together.

        Args:
            name: One of `PHASES`.
            share: In (0, 1].
        """
        self._switch(push=(name, share))
        try:
            yield
        finally:
            self._switch(push=None)

    def add(self, other: Meter, share: float) -> None:
        """Charge a share of what another meter has counted."""
        for name, seconds in other.seconds.items():
            self.seconds[name] += share * seconds
        self.cpu_s += share * other.cpu_s

    def spent(self) -> Spent:
        """What was counted until the running phase began."""
        return Spent(
            seconds=dict(self.seconds),
            cpu_s=self.cpu_s,
            energy_j=self.energy_j,
            peak_memory_bytes=self.peak_memory_bytes,
        )

    def carry(self, spent: Spent) -> None:
        """Count what earlier attempts at the trial took, in the place of what was carried before."""
        for sign, amount in ((-1, self.carried), (1, spent)):
            for name, seconds in amount.seconds.items():
                self.seconds[name] += sign * seconds
            self.cpu_s += sign * amount.cpu_s
            if amount.energy_j is not None:
                self.energy_j = (self.energy_j or 0.0) + sign * amount.energy_j
        self.peak_memory_bytes = max(filter(None, (self.peak_memory_bytes, spent.peak_memory_bytes)), default=None)
        self.carried = spent

    def so_far(self, name: str) -> float:
        """Wall seconds of a phase up to now, also while it runs."""
        if not self._stack or self._stack[-1][0] != name:
            return self.seconds[name]
        return self.seconds[name] + self._stack[-1][1] * (time.perf_counter() - self._since.wall_s)

    @property
    def total_s(self) -> float:
        """Wall seconds of all phases up to now."""
        return sum(self.so_far(name) for name in PHASES)

    def _switch(self, push: tuple[str, float] | None) -> None:
        """Charge the running phase, then start another, or go back to the outer one."""
        now = _Reading.now(self.device)
        if self._stack:
            name, share = self._stack[-1]
            self.seconds[name] += share * (now.wall_s - self._since.wall_s)
            self.cpu_s += share * (now.cpu_s - self._since.cpu_s)
            if now.energy_j is not None and self._since.energy_j is not None:
                self.energy_j = (self.energy_j or 0.0) + share * (now.energy_j - self._since.energy_j)
            if name == "train":
                self._close_window()
        if push is None:
            self._stack.pop()
        else:
            self._stack.append(push)
        if self._stack and self._stack[-1][0] == "train":
            self._open_window()
        self._since = _Reading.now(self.device)

    def _open_window(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            CLEAR_REFS.write_text("5")  # resets VmHWM: man 5 proc_pid_clear_refs
        except OSError:
            self.peak_memory_from = "resident set at the end of the training window"

    def memory_now(self) -> int:
        """Bytes held at the moment, by the measure of the peak."""
        if self.device == "cuda":
            import torch

            return int(torch.cuda.memory_allocated())
        return _status_bytes("VmRSS") or 0

    def _close_window(self) -> None:
        if self.device == "cuda":
            import torch

            peak: int | None = torch.cuda.max_memory_allocated()
        else:
            peak = _status_bytes("VmHWM" if "high-water" in self.peak_memory_from else "VmRSS")
        self.peak_memory_bytes = max(filter(None, (peak, self.peak_memory_bytes)), default=None)


@dataclass
class Tally:
    """Counters of what a stage was trained on."""

    tokens: int = 0
    """Tokens that are not padding."""
    supervised_tokens: int = 0
    """Tokens that carry loss."""
    squared_lengths: int = 0
    """Sum over sequences of length squared, for the attention term of the FLOPs."""
    flops: float = 0.0

    def count(self, sequences: Iterable[TokenSequence]) -> None:
        """Count sequences that are trained on."""
        for sequence in sequences:
            length = len(sequence.input_ids)
            self.tokens += length
            self.squared_lengths += length * length
            self.supervised_tokens += sum(label != IGNORED for label in sequence.labels[1:])

    def add(self, inputs: Mapping[str, Tensor]) -> None:
        """Count a batch of TRL's: every attention mask and labels tensor in it, or prompts and sampled answers.

        Args:
            inputs: Tensors by name, each of shape `(rows, tokens)`; masks are 1 where there is a token.
        """
        if "prompt_mask" in inputs:
            answers = inputs["completion_mask"].sum(-1)
            lengths = inputs["prompt_mask"].sum(-1) + answers
            self.tokens += int(lengths.sum())
            self.squared_lengths += int((lengths * lengths).sum())
            self.supervised_tokens += int(answers.sum())
            return
        for name, tensor in inputs.items():
            if name.endswith("attention_mask"):
                lengths = tensor.sum(-1)
                self.tokens += int(lengths.sum())
                self.squared_lengths += int((lengths * lengths).sum())
            elif name.endswith("labels"):
                self.supervised_tokens += int((tensor[..., 1:] != IGNORED).sum())


def energy_joules(device: str) -> float | None:
    """The GPU's energy counter since its driver was loaded; None without a GPU or where it has no counter (before Volta)."""
    if device != "cuda":
        return None
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _status_bytes(field_name: str) -> int | None:
    """A memory figure of this process from /proc; None where there is no /proc."""
    try:
        match = re.search(rf"^{field_name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def free_memory(device: str) -> int | None:
    """Bytes that this process may still take; None where nobody says."""
    if device == "cuda":
        import torch

        # What torch has reserved and does not use, it will use before it asks the driver for more.
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    # In a container or a job the machine may have more to give than may be taken.
    limits = [room for room in (_meminfo("MemAvailable"), *_cgroup_rooms(), _slurm_room()) if room is not None]
    return min(limits, default=None)


def _meminfo(name: str) -> int | None:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _cgroup_rooms(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What the memory limits of the process's control group (version 2), and of those around it, leave."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    inner = root / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for folder in (inner, *inner.parents):
        with suppress(OSError, ValueError):  # there is none, or its limit is `max`
            yield int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())


def _slurm_room() -> int | None:
    """What the memory that a Slurm job asked for leaves, as far as this process takes it: sites limit it in many ways."""
    asked, taken = os.environ.get("SLURM_MEM_PER_NODE", ""), _status_bytes("VmRSS")
    return (int(asked) << 20) - taken if asked.isdigit() and taken is not None else None

"""What a trial costs: a meter for time, memory and energy, counters for tokens, formulas for FLOPs and money."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import CostRecord
from harness.spec import Prices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PHASES = ("load", "data", "train", "evaluate", "save")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


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
        self.peak_memory_bytes: int | None = None
        self.peak_memory_from = "torch allocator" if device == "cuda" else "resident set, high-water mark"
        self._stack: list[str] = []
        self._since = time.perf_counter()
        self._cpu_start = _cpu_seconds()
        self._energy_start = energy_joules(device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`."""
        self._switch(push=name)
        try:
            yield
        finally:
            self._switch(push=None)

    def so_far(self, name: str) -> float:
        """Wall seconds of a phase up to now, also while it runs."""
        running = self._stack[-1:] == [name]
        return self.seconds[name] + (time.perf_counter() - self._since if running else 0.0)

    @property
    def total_s(self) -> float:
        """Wall seconds of all phases up to now."""
        return sum(self.so_far(name) for name in PHASES)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of this process and of its finished children since the meter was made."""
        return _cpu_seconds() - self._cpu_start

    @property
    def energy_j(self) -> float | None:
        """Joules that the GPU drew since the meter was made, other processes' work on it included; None without one."""
        end = energy_joules(self.device)
        return None if end is None or self._energy_start is None else end - self._energy_start

    def _switch(self, push: str | None) -> None:
        """Charge the running phase, then start another, or go back to the outer one."""
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
            if self._stack[-1] == "train":
                self._close_window()
        if push is None:
            self._stack.pop()
        else:
            self._stack.append(push)
        if self._stack[-1:] == ["train"]:
            self._open_window()
        self._since = time.perf_counter()

    def _open_window(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            CLEAR_REFS.write_text("5")  # resets VmHWM: man 5 proc_pid_clear_refs
        except OSError:
            self.peak_memory_from = "resident set at the end of the training window"

    def _close_window(self) -> None:
        if self.device == "cuda":
            import torch

            peak: int | None = torch.cuda.max_memory_allocated()
        else:
            peak = _status_bytes("VmHWM" if "high-water" in self.peak_memory_from else "VmRSS")
        self.peak_memory_bytes = max(filter(None, (peak, self.peak_memory_bytes)), default=None)


@dataclass
class Tally:
    """Counters of what was trained on; the only mutable numbers of a run."""

    tokens: int = 0
    """Tokens that are not padding."""
    supervised_tokens: int = 0
    """Tokens that carry loss."""
    squared_lengths: int = 0
    """Sum over sequences of length squared, for the attention term of the FLOPs."""
    flops: float = 0.0

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Count one batch: every attention mask in it, and every labels tensor (the first label is never predicted)."""
        for name, tensor in inputs.items():
            if name.endswith("attention_mask"):
                lengths = tensor.sum(-1)
                self.tokens += int(lengths.sum())
                self.squared_lengths += int((lengths * lengths).sum())
            elif name.endswith("labels"):
                self.supervised_tokens += int((tensor[..., 1:] != -100).sum())


@dataclass(frozen=True)
class Size:
    """What a model's FLOPs depend on."""

    total_params: int = 0
    trainable_params: int = 0
    matmul_params: int = 0
    """Parameters that multiply activations: all but the input embeddings, unless they are the output layer too."""
    layers: int = 0
    hidden: int = 0
    trainable_bytes: int = field(default=0)
    """Bytes of the parameters that move, which is what must be kept of a tuned model beside its base."""


def model_size(model: PreTrainedModel) -> Size:
    """Count a model's parameters; quantised weights count as the numbers that they stand for."""
    counts = {id(p): _numel(p) for p in model.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = table is None or head is None or table.weight is head.weight
    total = sum(counts.values())
    config = model.config
    return Size(
        total_params=total,
        trainable_params=sum(p.numel() for p in trainable),
        matmul_params=total if tied else total - table.weight.numel(),
        layers=getattr(config, "num_hidden_layers", 0) or 0,
        hidden=getattr(config, "hidden_size", 0) or 0,
        trainable_bytes=sum(p.numel() * p.element_size() for p in trainable),
    )


def _numel(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else int(parameter.numel())


def training_flops(size: Size, tokens: int, squared_lengths: int) -> float:
    """FLOPs of training on `tokens` tokens (multiply and add count as two).

    Forward: 2 per matmul parameter and token, plus attention, 2 x layers x hidden per query and key pair (half the
    square of the length in a causal model; two products, two FLOPs each). Backward through the activations: the same
    again. Weight gradients: 2 per *trainable* parameter and token. With all parameters trainable this is the 6N per
    token of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) with the attention term of PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B), halved for causality. Recomputation and the optimiser are not counted.
    """
    forward = 2.0 * size.matmul_params * tokens + 2.0 * size.layers * size.hidden * squared_lengths
    return 2.0 * forward + 2.0 * min(size.trainable_params, size.matmul_params) * tokens


def money(prices: Prices, wall_s: float, cores: int, gpu: str | None) -> float | None:
    """Price of holding `cores` CPU cores and one GPU for `wall_s` seconds; None where a price is missing.

    Args:
        prices: The study's price table.
        wall_s: Wall seconds.
        cores: CPU cores held.
        gpu: Name of the GPU, or None.
    """
    hours = wall_s / 3600
    if gpu is None:
        return None if prices.cpu_hour is None else prices.cpu_hour * cores * hours
    gpu_hour = prices.gpu_hour.get(gpu, prices.gpu_hour.get("default"))
    return None if gpu_hour is None else (gpu_hour + (prices.cpu_hour or 0.0) * cores) * hours


def cost_record(meter: Meter, tally: Tally, size: Size, prices: Prices, threads: int) -> CostRecord:
    """Everything a trial cost up to now."""
    gpu = gpu_name() if meter.device == "cuda" else None
    return CostRecord(
        seconds=dict(meter.seconds),
        cpu_s=meter.cpu_s,
        gpu_s=meter.total_s if gpu else 0.0,
        peak_memory_bytes=meter.peak_memory_bytes,
        tokens=tally.tokens,
        supervised_tokens=tally.supervised_tokens,
        flops=tally.flops,
        energy_j=meter.energy_j,
        money=money(prices, meter.total_s, threads, gpu),
        trainable_params=size.trainable_params,
        total_params=size.total_params,
        artifact_bytes=size.trainable_bytes,
    )


def gpu_name() -> str:
    """Name of the GPU in use, as prices are keyed by."""
    import torch

    return torch.cuda.get_device_name()


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

"""What seconds cost, and the cost part of a trial's record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cost.flops import Size
from harness.cost.meter import Meter, Tally
from harness.records.trial import CostRecord
from harness.study.spec import Prices

if TYPE_CHECKING:
    pass


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

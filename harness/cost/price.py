"""What seconds cost, and the cost part of a trial's record."""

from __future__ import annotations

from harness.cost.flops import Size
from harness.cost.meter import Meter, Tally
from harness.records.trial import CostRecord
from harness.study.spec import Prices


def money(prices: Prices, wall_s: float, cores: int, gpu: str | None) -> float | None:
    """Price of holding CPU cores, and maybe a GPU, for some time: plans and records go by it.

    Args:
        prices: The study's price table.
        wall_s: Wall seconds.
        cores: CPU cores held.
        gpu: Name of the GPU that is held too, `default` where its name is not known; None for no GPU.

    Returns:
        Money in the currency of the prices. None without a price for the GPU, or for cores where no GPU is held; beside
        a GPU, cores without a price are free.
    """
    hours = wall_s / 3600
    if gpu is None:
        return None if prices.cpu_hour is None else prices.cpu_hour * cores * hours
    gpu_hour = prices.gpu_hour.get(gpu, prices.gpu_hour.get("default"))
    return None if gpu_hour is None else (gpu_hour + (prices.cpu_hour or 0.0) * cores) * hours


def cost_record(meter: Meter, tally: Tally, size: Size, prices: Prices, threads: int) -> CostRecord:
    """Everything a trial cost up to now.

    Args:
        meter: Its clock, with memory and energy.
        tally: Its tokens and FLOPs.
        size: Of its model.
        prices: The study's price table.
        threads: CPU threads of its process, one core each.
    """
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

"""The optimiser that all methods share: AdamW, its learning-rate schedules, and which parameters decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.space import Params

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

Moments = dict[str, tuple["Tensor", "Tensor"]]
"""AdamW's first and second moments by parameter name, each in the parameter's shape."""


def decaying(model: Module) -> set[str]:
    """Names of the trainable parameters that weight decay applies to: all but biases and those of norms."""
    return {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if "norm" not in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and "bias" not in name
    }


def learning_rate(params: Params, step: int, steps: int) -> float:
    """The rate of an optimiser step: linear warm-up, then the schedule, as `transformers` has it.

    Args:
        params: The stage's `learning_rate` (the peak), `schedule` and `warmup_share`.
        step: Counting from 0.
        steps: Of the stage at full budget.
    """
    peak, schedule = params.number("learning_rate"), params.text("schedule")
    warmup = warmup_steps(params, steps)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return peak * max(0.0, 1.0 - progress) if schedule == "linear" else peak


def warmup_steps(params: Params, steps: int) -> int:
    """Steps over which the learning rate rises."""
    return round(params.number("warmup_share") * steps)


def adamw(groups: Sequence[tuple[Sequence[Tensor], float]]) -> Optimizer:
    """AdamW in one kernel per tensor; the learning rate is set at every step.

    Args:
        groups: Parameters and their weight decay; a group without parameters is left out.
    """
    import torch

    # torch refuses a group without parameters.

    options: list[dict[str, Any]] = [{"params": list(tensors), "weight_decay": decay} for tensors, decay in groups]
    return torch.optim.AdamW([option for option in options if option["params"]], lr=0.0, fused=True)


def put_state(optimizer: Optimizer, parameter: Tensor, first: Tensor, second: Tensor, step: int) -> None:
    """Give AdamW the moments that it had after some steps; it goes on with these very tensors.

    Args:
        optimizer: AdamW.
        parameter: Whose moments they are.
        first: Exponential average of the gradient, in the parameter's shape.
        second: Of its square, likewise.
        step: Optimiser steps done.
    """
    import torch

    # The fused kernel reads the count from a float tensor on the parameter's device.
    steps = torch.tensor(float(step), device=parameter.device)
    optimizer.state[parameter] = {"step": steps, "exp_avg": first, "exp_avg_sq": second}

"""Optimisers that methods bring, built on the groups that the shared AdamW has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.axes.contract import StageSetup
from harness.nn.optimizer import decaying
from harness.records.trial import derive_seed

Group = dict[str, Any]
"""Parameters (`params`) and their settings (`lr`, `weight_decay`, ...), as torch's optimisers take and keep them."""
State = dict[str, Any]
"""What an optimiser keeps of one parameter, as torch saves it: tensors and counts by name."""


def groups(model: nn.Module, setup: StageSetup) -> list[Group]:
    """What trains, in a group that decays and one that does not, each with the stage's learning rate."""
    decays, decay = decaying(model), setup.params.number("weight_decay")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rate = setup.params.number("learning_rate")
    both: list[Group] = [
        {"params": [p for name, p in trained if (name in decays) is wanted], "weight_decay": own, "lr": rate}
        for wanted, own in ((True, decay), (False, 0.0))
    ]
    return [group for group in both if group["params"]]


def own_adamw(model: nn.Module, setup: StageSetup) -> torch.optim.Optimizer:
    """AdamW that counts steps for each parameter apart, for methods that let parameters rest."""
    return torch.optim.AdamW(groups(model, setup), fused=True)


Projection = Callable[[Tensor, int, int], Tensor]
"""(gradient of shape (m, n) with m <= n, number of the parameter, number of the period) to P of shape (rank, m)."""
Update = Callable[[Tensor, Tensor, Tensor, Tensor, State], Tensor]
"""(gradient, P, P times it, Adam's direction of that, state) to the gradient's place in the step, shape (m, n)."""


class LowRankAdam(torch.optim.Optimizer):
    """AdamW whose moments of a matrix are kept in a space of few dimensions, where its gradient is projected.

    A matrix is taken with its shorter side first. Other parameters have plain AdamW. Bias correction counts steps over
    periods; moments are kept when the projection changes.

    Args:
        groups: As AdamW's; those with `low_rank` true hold matrices to project.
        projection: Makes P at the start of every period.
        update: Makes the step's direction.
        period: Steps of a period.
    """

    def __init__(self, groups: Iterable[Group], projection: Projection, update: Update, period: int) -> None:
        super().__init__(groups, {"low_rank": False, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8})
        self._projection, self._update, self._period = projection, update, period

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of what has a gradient."""
        number = 0
        for group in self.param_groups:
            for p in group["params"]:
                number += 1  # counted for those without a gradient too, so that each draws the same projections always
                if p.grad is not None:
                    state = self.state[p]
                    state["step"] = state.get("step", 0) + 1
                    direction = self._projected(p, number, group) if group["low_rank"] else _adam(p.grad, state, group)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        return None if closure is None else closure()

    def _projected(self, p: Tensor, number: int, group: Group) -> Tensor:
        state, tall = self.state[p], p.shape[0] > p.shape[1]
        assert p.grad is not None
        gradient = p.grad.T if tall else p.grad
        period, first = divmod(state["step"] - 1, self._period)
        if first == 0:
            state["projection"] = self._projection(gradient, number, period)
        small = state["projection"] @ gradient
        direction = self._update(gradient, state["projection"], small, _adam(small, state, group), state)
        return direction.T if tall else direction


def _adam(gradient: Tensor, state: State, group: Group) -> Tensor:
    """Adam's direction: the first moment over the root of the second, each corrected for its start at zero."""
    first, second = group["betas"]
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    state["exp_avg"].lerp_(gradient, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
    direction: Tensor = state["exp_avg"] / (1 - first ** state["step"]) / root
    return direction


def low_rank_adam(
    model: nn.Module, setup: StageSetup, projected: Sequence[str], projection: Projection, update: Update
) -> LowRankAdam:
    """Build the optimiser with the stage's learning rate and weight decay.

    Args:
        model: What trains.
        setup: The stage's; the parameter `refresh_steps` is the length of a period.
        projected: Names of the linear layers whose weights are projected.
        projection: Makes P at the start of every period.
        update: Makes the step's direction.
    """
    weights = {id(model.get_submodule(name).weight) for name in projected}
    parts = [
        group | {"params": held, "low_rank": low}
        for group in groups(model, setup)
        for low in (True, False)
        if (held := [p for p in group["params"] if (id(p) in weights) is low])
    ]
    return LowRankAdam(parts, projection, update, setup.params.integer("refresh_steps"))


def top_directions(gradient: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of a matrix as rows, shape (rank, m)."""
    # There is no decomposition in bfloat16.
    vectors: Tensor = torch.linalg.svd(gradient.float(), full_matrices=False).U[:, :rank]
    return vectors.T.contiguous().to(gradient.dtype)


def random_directions(gradient: Tensor, rank: int, *seed: str | int) -> Tensor:
    """Gaussian rows of mean squared length 1 per rank, shape (rank, m): P G keeps norms in the mean."""
    # Drawn on the CPU, so that a GPU projects as it does.
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    rows = torch.randn(rank, len(gradient), generator=generator) / math.sqrt(rank)
    return rows.to(gradient)


def limited(update: Tensor, state: State, growth: float) -> Tensor:
    """Limit how fast the norm of a parameter's update grows from step to step.

    Args:
        update: This step's, in the parameter's shape.
        state: What the optimiser keeps of the parameter; the norm is remembered there.
        growth: Largest factor between the norms of two steps.
    """
    norm = update.norm()
    if "norm" in state:
        norm_limit = growth * state["norm"]
        update = update * (norm_limit / norm.clamp(min=1e-12)).clamp(max=1.0)
        norm = torch.minimum(norm, norm_limit)
    state["norm"] = norm
    return update

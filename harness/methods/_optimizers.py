"""Optimisers that methods bring, built on the groups that the shared AdamW has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.optimizer import decaying
from harness.plugins import StageSetup


def groups(model: nn.Module, setup: StageSetup) -> list[dict[str, Any]]:
    """What trains, in a group that decays and one that does not, each with the stage's learning rate."""
    decays, decay = decaying(model), float(setup.params["weight_decay"])
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rate = float(setup.params["learning_rate"])
    found: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if (name in decays) is wanted], "weight_decay": own, "lr": rate}
        for wanted, own in ((True, decay), (False, 0.0))
    ]
    return [group for group in found if group["params"]]


def own_adamw(model: nn.Module, setup: StageSetup) -> torch.optim.Optimizer:
    """AdamW that counts steps for each parameter apart, for methods that let parameters rest."""
    return torch.optim.AdamW(groups(model, setup), fused=True)

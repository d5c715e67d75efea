"""Preference pairs and learners for tests."""

import random

import torch

from harness.tasks.training_rows import Row
from tests.tiny import attached


def made_up(count, seed=0):
    draw = random.Random(seed)
    return [
        Row(
            prompt=f"{number} " + "x" * draw.randint(1, 30) + ":",
            completion=" " + "".join(draw.choice("abcdef") for _ in range(draw.randint(1, 12))),
            rejected=" " + "".join(draw.choice("uvwxyz") for _ in range(draw.randint(1, 12))),
        )
        for number in range(count)
    ]


ROWS = made_up(40)


def ready(folder, one_stage, steps=4, rows=ROWS, **options):
    return attached(folder, one_stage, steps, rows, **options)[0]


def shaken(one, scale=0.02):
    """Its model moved away from what it is compared with."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in one.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return one

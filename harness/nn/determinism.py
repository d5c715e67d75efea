"""Random states, seeds and the precision that a device computes in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as `bfloat16` on a GPU that computes in it, `float32` elsewhere.

    Args:
        precision: `auto`, `float32` or `bfloat16`.
        device: `cpu` or `cuda`.
    """
    import torch

    # Older GPUs emulate bfloat16, which is slower than float32.
    if precision != "auto":
        return precision
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def seed_torch(seed: int) -> None:
    """Seed torch's random numbers, those of a GPU too where one is in use.

    The same numbers as after `torch.manual_seed`, which on a machine without a GPU formats three tracebacks a call and
    keeps them for a GPU that may come: .3 to .5 ms, and memory that only grows.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random states of python, numpy and torch back as they were."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    from transformers import set_seed

    set_seed(seed)

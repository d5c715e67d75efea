"""Seeds: torch's own numbers, and nothing that grows with the steps."""

import torch

from harness.nn.determinism import seed_torch


def test_the_numbers_are_those_after_manual_seed():
    torch.manual_seed(11)
    expected = torch.rand(3)
    seed_torch(11)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_kept_for_a_gpu_that_is_not_there():
    waiting = len(torch.cuda._queued_calls)
    for seed in range(5):
        seed_torch(seed)
    assert len(torch.cuda._queued_calls) == waiting

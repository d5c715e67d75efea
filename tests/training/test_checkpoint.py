"""The state of an optimiser, whatever it keeps, through a file that can hold no program."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.training import checkpoint
from harness.training.checkpoint import NOTHING, packed, restore, unpacked
from tests.tiny import attached, stage, train


def test_any_state_comes_back_as_it_was(tmp_path):
    """Counts under whole numbers, tuples, infinities, and a table that two parameters share."""
    table = torch.arange(4.0)
    state = {
        "state": {0: {"step": torch.tensor(3.0), "map": table, "moves": torch.ones(2, 3).bool().T}, 1: {"map": table}},
        "param_groups": [{"betas": (0.9, 0.999), "lr": 1e-3, "limit": float("inf"), "params": [0, 1], "name": None}],
    }
    tensors, rest = packed(state)
    assert len(tensors) == 3
    save_file(tensors, tmp_path / "state")
    back = unpacked(load_file(tmp_path / "state"), json.loads(json.dumps(rest)))
    assert back["param_groups"] == state["param_groups"]
    assert back["state"].keys() == state["state"].keys()
    for number, kept in state["state"].items():
        assert back["state"][number].keys() == kept.keys()
        assert all(torch.equal(back["state"][number][name], value) for name, value in kept.items())


@pytest.mark.parametrize("earlier", [False, True])
def test_an_optimiser_goes_on_from_its_state_also_from_that_of_an_earlier_version(earlier, world, tmp_path):
    first, _ = attached(world.llama, stage("galore"))
    train(first)
    checkpoint.save(tmp_path / "rung", first, dataclasses.replace(NOTHING, step=first.step))
    if earlier:
        (tmp_path / "rung" / "optimizer.safetensors").unlink()
        torch.save(first.optimizer_state, tmp_path / "rung" / "optimizer.pt")
    second, _ = attached(world.llama, stage("galore"))
    restore(tmp_path / "rung", second)
    torch.testing.assert_close(second.optimizer_state, first.optimizer_state, atol=0, rtol=0)
    assert second.optimizer_state["state"]

"""LILY: each token mixes outer factors, which layers share, by what it is itself."""

import pytest
import torch

from tests.tiny import attached, stage


@pytest.fixture
def lily(world):
    """Modules by layer, in a model where each does something."""

    def get(**params):
        model = attached(world.llama, stage("lily", rank=4, **params))[0].model
        found = {name.removesuffix(".adapter"): m for name, m in model.named_modules() if name.endswith(".adapter")}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for module in found.values():
                module.up.weight.normal_(generator=generator)
        return model, found

    return get


def test_a_layer_adds_its_own_mixture_for_each_token(lily):
    """Three outer factors of rank 4, added up one by one."""
    model, found = lily(up_factors=3, update_scale=0.5)
    name = "model.layers.1.mlp.up_proj"
    layer, module = model.get_submodule(name), found[name]
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    for row in range(2):
        for token in range(5):
            one = x[row, token]
            inner = module.down.weight @ one
            shares = torch.exp(module.router.weight @ inner)
            wanted = layer.weight @ one + 0.5 * sum(
                share / shares.sum() * module.up.weight[4 * n : 4 * n + 4].T @ inner for n, share in enumerate(shares)
            )
            torch.testing.assert_close(layer(x)[row, token], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("near", "shared"), [(1, False), (2, True)])
def test_layers_of_a_kind_share_factors_and_those_of_two_kinds_do_not(lily, near, shared):
    _, found = lily(shared_by=near)
    first, second = (found[f"model.layers.{layer}.self_attn.q_proj"] for layer in range(2))
    other = found["model.layers.0.self_attn.o_proj"]  # of the same shape
    assert (first.down is second.down) == shared
    assert first.up is second.up
    assert first.router is not second.router
    assert other.up is not first.up
    assert other.down is not first.down

"""What a forward pass may leave out, by hand, and models for which it may not."""

from __future__ import annotations

from typing import Any

import pytest

from harness.evaluation.evaluate import scoring_mode
from harness.evaluation.forward import Positions, last_layer
from harness.evaluation.loglikelihood import LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Request, RowPlan

from .test_loglikelihood import PLAIN, assert_like_by_hand, config_of


def test_positions_by_hand() -> None:
    """Two members with two rows of three tokens; wanted are the second of the first row and both ends of the second."""
    import torch

    positions = Positions(2, 3, torch.tensor([1, 3, 5]))
    states = torch.arange(12.0).view(4, 3, 1)
    chosen = positions.select(states)
    assert chosen[..., 0].tolist() == [[1, 3, 5], [7, 9, 11]]
    assert positions.scatter(chosen, 2)[..., 0].tolist() == [[0, 1, 0], [3, 0, 5], [0, 7, 0], [9, 0, 11]]
    assert positions.by_row.tolist() == [[1, 1], [0, 2]]
    with_virtual_tokens = torch.cat([torch.full((4, 2, 1), 99.0), states], dim=1)
    assert torch.equal(positions.select(with_virtual_tokens), chosen)
    assert [part.flat.tolist() for part in positions.split(2)] == [[1, 3], [5]]


def test_the_last_layer_computes_what_is_scored_only() -> None:
    """Two rows of 20 and 10 tokens, of which the last of each predicts, twice for the check and once to score."""
    model = config_of("Llama", **PLAIN)
    given = [Request(tuple(range(10, 30)), (5,)), Request(tuple(range(40, 50)), (7,))]
    shapes: list[tuple[int, ...]] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, given, out: shapes.append(tuple(given[0].shape)))
    with scoring_mode(model):
        LikelihoodScorer().score(StackedModels(model), RowPlan(given, 32, 64))
    assert shapes[-2:] == [(2, 20, 32), (1, 2, 32)]


def test_the_last_layer_attends_from_what_is_scored_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = config_of("Llama", **PLAIN)
    given = [Request(tuple(range(10, 30)), (5, 6, 7)), Request(tuple(range(10, 30)), (8, 9))]
    plain, queries = torch.nn.functional.scaled_dot_product_attention, []

    def counted(query: Any, *states: Any, **options: Any) -> Any:
        queries.append(query.shape[2])
        return plain(query, *states, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with scoring_mode(model):
        LikelihoodScorer().score(StackedModels(model), RowPlan(given, 32, 64))
    assert queries[-2:] == [23, 4]  # the context's last, and the tokens 5, 6 and 8, of 20 + 3


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX", "Bloom"])
def test_the_last_layer_is_found(kind: str) -> None:
    model = config_of(kind, **({"intermediate_size": 48} if kind in ("Llama", "GPTNeoX") else {}))
    layers = next(module for name, module in model.named_modules() if name.split(".")[-1] in ("layers", "h"))
    assert last_layer(model) is layers[-1]


def test_two_stacks_of_layers_are_left_alone() -> None:
    import torch

    model = config_of("Llama", **PLAIN)
    model.other = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    assert last_layer(model) is None
    assert_like_by_hand(model)


def mixing(module: Any, given: Any, out: Any) -> Any:
    """Adds what other positions hold."""
    return out + out.cumsum(dim=-2)


def test_a_perceptron_that_mixes_positions_is_left_alone() -> None:
    model = config_of("Llama", **PLAIN)
    model.model.layers[-1].mlp.register_forward_hook(mixing)
    scorer = LikelihoodScorer()
    assert_like_by_hand(model, scorer=scorer)
    assert list(scorer.verified.values()) == [0]


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe"])
def test_mixtures_of_experts_are_scored_like_by_hand(kind: str) -> None:
    experts = {"num_local_experts": 4} if kind == "Mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    assert_like_by_hand(config_of(kind, **PLAIN, **experts))

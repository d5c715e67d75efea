"""Low-rank experts beside linear layers, and the router that weighs them for each token by what the base makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.methods._adapters import Added, Mixture, put

if TYPE_CHECKING:
    from transformers import DynamicCache, PretrainedConfig, PreTrainedModel


class LowRank(nn.Module):
    """`scale B A x`; B starts at zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Rows of inputs to what is added to the layer's outputs."""
        update: Tensor = self.up(self.down(x)) * self.scale
        return update


class Experts(Mixture):
    """`sum_n w_n E_n(x)`, where the router sets `w`; while `only` is a number, that expert alone."""

    def __init__(self, sources: Iterable[LowRank]) -> None:
        super().__init__(sources)
        self.weights: Tensor | None = None
        """Of each token and expert, shape (rows, tokens, experts)."""

    def forward(self, x: Tensor) -> Tensor:
        """Rows of inputs to what is added to the layer's outputs."""
        if self.only is not None:
            alone: Tensor = self.sources[self.only](x)
            return alone
        assert self.weights is not None, "the router comes first"
        weights = self.weights.reshape(*x.shape[:-1], len(self.sources))
        parts = [weights[..., n : n + 1] * source(x) for n, source in enumerate(self.sources)]
        return torch.stack(parts).sum(0)


class Router(Added):
    """`softmax_n((W h + b) / temperature)` for each layer of experts, h being a token's last hidden state in the base."""

    def __init__(self, width: int, layers: int, experts: int, temperature: float) -> None:
        super().__init__()
        self.head = nn.Linear(width, layers * experts)
        self.experts, self.temperature, self.asking = experts, temperature, False

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states, shape (rows, tokens, width), to weights, shape (layers, rows, tokens, experts)."""
        logits = self.head(hidden).unflatten(-1, (-1, self.experts))
        weights: Tensor = (logits / self.temperature).softmax(-1)
        return weights.movedim(-2, 0)


def put_experts(
    backbone: PreTrainedModel,
    layers: Mapping[str, tuple[int, int]],
    count: int,
    *,
    rank: int,
    alpha: float,
    temperature: float,
) -> None:
    """Stand experts beside linear layers, and a router before the model that they are in.

    Args:
        backbone: The model without its output layer.
        layers: In-features and out-features of its linear layers by name.
        count: Experts of each layer.
        rank: Of each expert.
        alpha: Each expert is scaled by alpha / rank.
        temperature: Of the router's softmax; the larger, the more alike the experts' weights.
    """
    for name, (inputs, outputs) in layers.items():
        experts = [LowRank(inputs, outputs, rank, alpha / rank) for _ in range(count)]
        put(backbone.get_submodule(name), Experts(experts), parallel=True)
    router = Router(backbone.config.get_text_config().hidden_size, len(layers), count, temperature)
    backbone.add_module("router", router.to(backbone.device))
    backbone.register_forward_pre_hook(_route, with_kwargs=True)


def _route(backbone: PreTrainedModel, arguments: tuple[object, ...], options: dict[str, object]) -> None:
    """Ask the base about the text first, and weigh the experts by what it says."""
    # The router calls the backbone itself; `asking` keeps that second call from asking again.
    router: Router = backbone.router
    mixtures = [module for module in backbone.modules() if isinstance(module, Experts)]
    if router.asking or not router.on or mixtures[0].only is not None:
        return
    cache = options.get("past_key_values")
    own = {
        "past_key_values": None if cache is None else _beside(cache, backbone.config),
        "use_cache": cache is not None,
    }
    router.asking = True
    for mixture in mixtures:
        mixture.on = False
    try:
        # The base is frozen: its reading needs no gradient.
        with torch.no_grad():
            hidden = backbone(*arguments, **options | own)[0]
    finally:
        router.asking = False
        for mixture in mixtures:
            mixture.on = True
    for mixture, weights in zip(mixtures, router(hidden), strict=True):
        mixture.weights = weights


def _beside(cache: DynamicCache, config: PretrainedConfig) -> DynamicCache:
    """The base's own keys and values of what a cache has read.

    They are kept as further layers of it, so that whatever is done to its rows is done to theirs.
    """
    from transformers import DynamicCache

    if not hasattr(cache, "of_base"):
        if cache.get_seq_length():
            raise ValueError("the router must have read what the cache holds, but it was filled without: start empty")
        if not cache.layers:
            cache.layers.extend(DynamicCache(config=config).layers)
        cache.of_base = DynamicCache(config=config)
        cache.layers.extend(cache.of_base.layers)
    return cache.of_base

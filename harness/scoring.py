"""Log-likelihoods of token sequences under one model, or under several that compute side by side.

Continuations of one context share a row: a tree whose branches do not see each other (a mask of four dimensions and the
depth as position). A model that cannot take such a mask scores one continuation per row; which it is, is found by
comparing both on the longest row. Logits are computed at scored positions only, a bounded number at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.trees import Plan, Row

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS = 1 << 26
"""Logits held at once, of all members together (256 MiB in float32)."""
CORE_TOKENS = 1 << 12
"""Tokens of a forward pass for each thread of a CPU; more are slower where they leave the caches."""
TOKENS = 1 << 15
"""Tokens of a forward pass on any device, of all members together."""
TOLERANCE = 1e-4
"""Nats by which a log-likelihood from a tree may differ from that of a plain row, in single precision."""
QUERIES = 32
"""Tokens whose attention is computed together on a CPU."""
_BLOCKED = "harness_blocked"
"""Under which transformers knows it."""
LOW_PRECISION_TOLERANCE = 0.05
"""The same for a model that does not compute in single precision."""


@dataclass(frozen=True)
class Members:
    """Models that compute side by side as one: rows [0:B] of a batch are the first's, [B:2B] the second's, and so on."""

    model: PreTrainedModel
    count: int = 1

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        config = self.model.config
        return int((config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size)

    @property
    def tokens(self) -> int:
        """Tokens that one member may have in a forward pass."""
        import torch

        most = CORE_TOKENS * torch.get_num_threads() if self.model.device.type == "cpu" else TOKENS
        return max(1, min(most, TOKENS) // self.count)


@dataclass(frozen=True)
class Scores:
    """What members gave to the asks of a plan."""

    values: np.ndarray[Any, Any]
    """Log-likelihoods in nats, shape `(members, asks)`."""
    greedy: np.ndarray[Any, Any]
    """Whether each token of the continuation was the likeliest, shape `(members, asks)`."""

    @property
    def finite(self) -> np.ndarray[Any, Any]:
        """Whether all of a member's log-likelihoods are finite, shape `(members,)`."""
        import numpy as np

        whole: np.ndarray[Any, Any] = np.isfinite(self.values).all(axis=1)
        return whole


def score(members: Members, plan: Plan, batch_size: int | None = None) -> Scores:
    """Score every ask of a plan under every member.

    Args:
        members: The models; in evaluation mode, without gradients.
        plan: What to score.
        batch_size: Rows of a member in a forward pass; None for as many as `TOKENS` and `LOGITS` allow.
    """
    return _score_rows(members, plan, plan.trees if _takes_trees(members, plan) else plan.lines, batch_size)


def _score_rows(members: Members, plan: Plan, rows: Sequence[Row], batch_size: int | None) -> Scores:
    import numpy as np
    import torch

    if not rows:
        return Scores(np.zeros((members.count, 0)), np.zeros((members.count, 0), dtype=bool))
    found, asks = [], []
    scorer = _Scorer(members)
    for batch in _batches(members, rows, batch_size):
        found.append(scorer.pairs(batch))
        asks.append(batch.asks)
    log_probabilities, likeliest = (torch.cat(parts, dim=1).cpu().numpy() for parts in zip(*found, strict=True))
    order, size = np.concatenate(asks), len(plan.asks)
    values = [np.bincount(order, weights=row, minlength=size) for row in log_probabilities.astype(np.float64)]
    missed = [np.bincount(order, weights=~row, minlength=size) for row in likeliest]
    return Scores(np.stack(values), np.stack(missed) == 0)


@dataclass(frozen=True)
class _Batch:
    """Rows of one member, padded on the right, as tensors on the CPU."""

    ids: Tensor
    """Shape `(rows, width)`."""
    depth: Tensor | None
    """None where no row branches, as `end`; shape `(rows, width)`."""
    end: Tensor | None
    places: Tensor
    """Positions with logits, counted through the batch; each once, shape `(places,)`."""
    pair_places: Tensor
    """Index into `places` of each scored pair, shape `(pairs,)`."""
    targets: Tensor
    asks: np.ndarray[Any, Any]


def _batches(members: Members, rows: Sequence[Row], batch_size: int | None) -> Iterator[_Batch]:
    """Rows of like length together, longest first, those that branch apart from those that do not."""
    for branching in (True, False):
        kind = [row for row in rows if row.branches is branching]
        kind.sort(key=lambda row: -len(row.tokens))
        start = 0
        while start < len(kind):
            size = batch_size or _rows_at_once(members, len(kind[start].tokens), branching)
            yield _batch(kind[start : start + size], branching)
            start += size


def _rows_at_once(members: Members, width: int, branching: bool) -> int:
    """Rows of a member that fit a forward pass: its tokens, its masks, and its logits where they cannot be chosen."""
    most = members.tokens // width
    if branching:
        most = min(most, LOGITS // (members.count * width**2))
    if members.model.get_output_embeddings() is None:
        most = min(most, LOGITS // (members.count * width * members.vocabulary))
    return max(1, most)


def _batch(rows: Sequence[Row], branching: bool) -> _Batch:
    import numpy as np
    import torch

    width = len(rows[0].tokens)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    depth = np.zeros_like(ids)
    end = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees itself
    for index, row in enumerate(rows):
        ids[index, : len(row.tokens)] = row.tokens
        if branching:
            depth[index, : len(row.tokens)] = row.depth
            end[index, : len(row.tokens)] = row.end
    nodes = np.concatenate([index * width + row.nodes.astype(np.int64) for index, row in enumerate(rows)])
    places, pair_places = np.unique(nodes, return_inverse=True)
    return _Batch(
        ids=torch.from_numpy(ids),
        depth=torch.from_numpy(depth) if branching else None,
        end=torch.from_numpy(end) if branching else None,
        places=torch.from_numpy(places),
        pair_places=torch.from_numpy(pair_places),
        targets=torch.from_numpy(np.concatenate([row.targets for row in rows]).astype(np.int64)),
        asks=np.concatenate([row.asks for row in rows]),
    )


class _Scorer:
    """Forward passes of some members."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.head = members.model.get_output_embeddings()
        self.is_direct: bool | None = None
        """Whether logits are the output layer's as they are; a model may scale or cap them afterwards."""

    def pairs(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Each pair's log-probability, and whether its target was the likeliest token; both `(members, pairs)`."""
        import torch

        device = self.members.model.device
        pair_places, targets = batch.pair_places.to(device), batch.targets.to(device)
        found = torch.empty(self.members.count, len(targets), device=device)
        likeliest = torch.empty(self.members.count, len(targets), device=device, dtype=torch.bool)
        start = 0
        for logits in self._logits(batch):
            stop = start + logits.shape[1]
            here = ((batch.pair_places >= start) & (batch.pair_places < stop)).nonzero()[:, 0].to(device)
            at, wanted = pair_places[here] - start, targets[here]
            found[:, here] = logits[:, at, wanted].float() - logits.float().logsumexp(-1)[:, at]
            likeliest[:, here] = logits.argmax(-1)[:, at] == wanted
            start = stop
        return found, likeliest

    def _logits(self, batch: _Batch) -> Iterator[Tensor]:
        """Logits at the batch's places, a bounded number at a time, each `(members, some places, vocabulary)`."""
        inputs = self._inputs(batch)
        places = batch.places.to(self.members.model.device)
        step = max(1, LOGITS // (self.members.count * self.members.vocabulary))
        if self.head is None:
            yield from _at(self._called(inputs), batch, self.members.count, places).split(step, dim=1)
            return
        first, hidden = self._forward(inputs, batch, places[:step])
        yield first
        if len(places) <= step:
            return
        if self.is_direct is None:
            self.is_direct = _equal(self.head(_at(hidden, batch, self.members.count, places[:step])), first)
        for part in places[step:].split(step):
            if self.is_direct:
                yield self.head(_at(hidden, batch, self.members.count, part))
            else:
                yield self._forward(inputs, batch, part)[0]

    def _inputs(self, batch: _Batch) -> dict[str, Any]:
        """What the model is called with, of all members."""
        import torch

        model, count = self.members.model, self.members.count
        inputs: dict[str, Any] = {"input_ids": batch.ids.to(model.device).repeat(count, 1), "use_cache": False}
        if batch.depth is not None and batch.end is not None:
            index = torch.arange(batch.ids.shape[1], device=model.device)
            sees = (index[None, None] <= index[None, :, None]) & (
                index[None, :, None] < batch.end.to(model.device)[:, None]
            )
            device, dtype = model.device.type, model.dtype
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
            mask = torch.zeros(sees.shape, dtype=dtype, device=model.device)
            mask.masked_fill_(~sees, torch.finfo(dtype).min)
            inputs["attention_mask"] = mask[:, None].repeat(count, 1, 1, 1)
            inputs["position_ids"] = batch.depth.to(model.device).repeat(count, 1)
        return inputs

    def _forward(self, inputs: Mapping[str, Any], batch: _Batch, places: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at some places, and the hidden states of all that the output layer was about to be given."""
        kept: list[Tensor] = []

        def choose(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            kept.append(arguments[0])
            return (_at(arguments[0], batch, self.members.count, places), *arguments[1:])

        hook = self.head.register_forward_pre_hook(choose)
        try:
            return self._called(inputs), kept[0]
        finally:
            hook.remove()

    def _called(self, inputs: Mapping[str, Any]) -> Tensor:
        with _in_blocks(self.members.model) if "attention_mask" in inputs else nullcontext():
            logits: Tensor = self.members.model(**inputs).logits
        return logits


@contextmanager
def _in_blocks(model: Any) -> Iterator[None]:
    """On a CPU, torch's attention kernel spared of the keys after a block of queries, whatever the mask; 1.2 to 2 times."""
    config = model.config.get_text_config()
    if model.device.type != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    _register_blocks()
    config._attn_implementation = _BLOCKED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@cache
def _register_blocks() -> None:
    import torch
    from transformers import AttentionInterface

    kernel = AttentionInterface()["sdpa"]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Like transformers' own, for masks in which no token sees a later one."""
        size = query.shape[2]
        if attention_mask is None or key.shape[2] != size or options.get("position_bias") is not None:
            whole: tuple[Tensor, None] = kernel(module, query, key, value, attention_mask, **options)
            return whole
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
        parts = []
        for start in range(0, size, QUERIES):
            stop = min(start + QUERIES, size)
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(
                    query[:, :, start:stop],
                    key[:, :, :stop],
                    value[:, :, :stop],
                    attention_mask[:, :, start:stop, :stop],
                    scale=options.get("scaling"),
                )
            )
        return torch.cat(parts, dim=2).transpose(1, 2), None

    AttentionInterface.register(_BLOCKED, attention)


def _at(states: Tensor, batch: _Batch, count: int, places: Tensor) -> Tensor:
    """States at some places of every member's rows, as if they were one row of it: `(members, places, size)`."""
    states = states[:, -batch.ids.shape[1] :]  # virtual tokens, where there are any, come first
    return states.reshape(count, -1, states.shape[-1])[:, places]


def _equal(one: Tensor, other: Tensor) -> bool:
    import torch

    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


_VERIFIED: dict[Any, int] = {}
"""Tokens of the longest row that a kind of model was seen to score rightly as a tree; 0 for a kind that cannot."""


def _takes_trees(members: Members, plan: Plan) -> bool:
    """Whether trees give what plain rows give, tried on the longest row unless a model of this kind has passed."""
    branching = [row for row in plan.trees if row.branches]
    if not branching:
        return False
    kind, size = (members.count > 1, *_kind(members.model)), max(len(row.tokens) for row in branching)
    known = _VERIFIED.get(kind)
    if known is not None and (known == 0 or known >= size):
        return known > 0
    deepest, longest = (max(branching, key=key) for key in (lambda r: r.depth.max(), lambda r: len(r.tokens)))
    agreed = _agree(members, plan, [deepest, longest])
    if agreed is not None:
        _VERIFIED[kind] = size if agreed else 0
    return bool(agreed)


def _kind(model: Any) -> tuple[Any, ...]:
    """What decides whether a model can take a tree's mask."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = getattr(model, "peft_config", None) or {}
    attention = getattr(model.config, "_attn_implementation", None)
    return (type(model), type(base), attention, *sorted({str(config.peft_type) for config in adapters.values()}))


def _agree(members: Members, plan: Plan, rows: Sequence[Row]) -> bool | None:
    """Whether trees and plain rows give the same; None where no member's log-likelihoods are finite.

    Compared in full precision, where rounding cannot hide a difference.
    """
    import numpy as np
    import torch

    asks = sorted({int(ask) for row in rows for ask in row.asks})
    part = Plan([plan.asks[ask] for ask in asks], plan.longest, plan.width)
    single = all(parameter.dtype is torch.float32 for parameter in members.model.parameters())
    tolerance = TOLERANCE if single else LOW_PRECISION_TOLERANCE
    try:
        with torch.autocast(members.model.device.type, enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree, plain = (_score_rows(members, part, rows, None) for rows in (part.trees, part.lines))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError, AssertionError):
        return False
    if not plain.finite.any():
        return None
    one, other = (scores.values[plain.finite] for scores in (tree, plain))
    return bool(np.allclose(one, other, rtol=TOLERANCE / 10, atol=tolerance))

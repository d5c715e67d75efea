"""Log-likelihoods of token sequences under one model, or under several that compute side by side.

Continuations of one context share a row: a tree whose branches do not see each other (a mask of four dimensions and the
depth as position), in passes that leave out what no score depends on (`shortcuts`). A model that cannot take them scores
one continuation per row in plain passes; which it is, is found by comparing both on the longest row. Logits are computed
at scored positions only, a bounded number at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.evaluation.forward import Places, last_layer, shortcuts
from harness.evaluation.prefix_tree import Plan, Row

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
LOW_PRECISION_TOLERANCE = 0.05
"""The same for a model that does not compute in single precision."""


ModelKind = tuple[object, ...]
"""What decides whether a model can take a tree's mask."""


@dataclass(frozen=True)
class StackedModels:
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


class LikelihoodScorer:
    """Scores sequences, and remembers which kinds of models take trees and shortcuts.

    Attributes:
        verified: Tokens of the longest row that a kind of model was seen to score rightly with shortcuts; 0 for a kind
            that cannot.
    """

    def __init__(self) -> None:
        self.verified: dict[ModelKind, int] = {}

    def score(self, members: StackedModels, plan: Plan, batch_size: int | None = None) -> Scores:
        """Score every ask of a plan under every member.

        Args:
            members: The models; in evaluation mode, without gradients.
            plan: What to score.
            batch_size: Rows of a member in a forward pass; None for as many as `TOKENS` and `LOGITS` allow.
        """
        return _scores(_Scorer(members, is_quick=self._takes_trees(members, plan)), plan, batch_size)

    def _takes_trees(self, members: StackedModels, plan: Plan) -> bool:
        """Whether trees and shortcuts give what plain rows give, tried on the longest row unless this kind has passed."""
        if not plan.shares or not plan.trees:
            return False
        rows = [row for row in plan.trees if row.branches] or plan.trees
        kind = (rows[0].branches, members.count > 1, *_kind(members.model))
        size, known = max(len(row.tokens) for row in rows), self.verified.get(kind)
        if known is not None and (known == 0 or known >= size):
            return known > 0
        deepest, longest = (max(rows, key=key) for key in (lambda r: r.depth.max(), lambda r: len(r.tokens)))
        agreed = _agree(members, plan, [deepest, longest])
        if agreed is not None:
            self.verified[kind] = size if agreed else 0
        return bool(agreed)


def _scores(scorer: _Scorer, plan: Plan, batch_size: int | None = None) -> Scores:
    import numpy as np
    import torch

    rows = plan.trees if scorer.is_quick else plan.lines
    if not rows:
        return Scores(np.zeros((scorer.members.count, 0)), np.zeros((scorer.members.count, 0), dtype=bool))
    found, asks = [], []
    for batch in _batches(scorer.members, rows, batch_size):
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


def _batches(members: StackedModels, rows: Sequence[Row], batch_size: int | None) -> Iterator[_Batch]:
    """Rows of like length together, longest first, those that branch apart from those that do not."""
    for branching in (True, False):
        kind = [row for row in rows if row.branches is branching]
        kind.sort(key=lambda row: -len(row.tokens))
        start = 0
        while start < len(kind):
            size = batch_size or _rows_at_once(members, len(kind[start].tokens), branching)
            yield _batch(kind[start : start + size], branching)
            start += size


def _rows_at_once(members: StackedModels, width: int, branching: bool) -> int:
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
    """Forward passes of some members, with shortcuts where they are known to change nothing."""

    def __init__(self, members: StackedModels, is_quick: bool) -> None:
        self.members, self.is_quick = members, is_quick
        self.head = members.model.get_output_embeddings()
        self.last = last_layer(members.model) if is_quick else None
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
        places = Places(self.members.count, batch.ids.shape[1], batch.places.to(self.members.model.device))
        parts = places.parts(max(1, LOGITS // (self.members.count * self.members.vocabulary)))
        if self.head is None:
            logits = self._called(inputs, places)
            yield from (part.chosen(logits) for part in parts)
            return
        first, hidden = self._forward(inputs, places, parts[0])
        yield first
        if len(parts) > 1 and self.is_direct is None:
            self.is_direct = _equal(self.head(parts[0].chosen(hidden)), first)
        for part in parts[1:]:
            yield self.head(part.chosen(hidden)) if self.is_direct else self._forward(inputs, places, part)[0]

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

    def _forward(self, inputs: Mapping[str, Any], places: Places, part: Places) -> tuple[Tensor, Tensor]:
        """Logits at a part of the places, and the hidden states of all that the output layer was about to be given."""
        kept: list[Tensor] = []

        def choose(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            kept.append(arguments[0])
            return (part.chosen(arguments[0]), *arguments[1:])

        hook = self.head.register_forward_pre_hook(choose)
        try:
            return self._called(inputs, places), kept[0]
        finally:
            hook.remove()

    def _called(self, inputs: Mapping[str, Any], places: Places) -> Tensor:
        model = self.members.model
        quick = shortcuts(model, self.last, places, "attention_mask" in inputs) if self.is_quick else nullcontext()
        with quick:
            logits: Tensor = model(**inputs).logits
        return logits


def _equal(one: Tensor, other: Tensor) -> bool:
    import torch

    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def _kind(model: Any) -> ModelKind:
    """What decides whether a model can take a tree's mask."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = getattr(model, "peft_config", None) or {}
    attention = getattr(model.config, "_attn_implementation", None)
    return (type(model), type(base), attention, *sorted({str(config.peft_type) for config in adapters.values()}))


def _agree(members: StackedModels, plan: Plan, rows: Sequence[Row]) -> bool | None:
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
            tree, plain = (_scores(_Scorer(members, is_quick), part) for is_quick in (True, False))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError, AssertionError):
        return False
    if not plain.finite.any():
        return None
    one, other = (scores.values[plain.finite] for scores in (tree, plain))
    return bool(np.allclose(one, other, rtol=TOLERANCE / 10, atol=tolerance))

"""Log-likelihoods of token sequences under one model, or under several that compute side by side.

Continuations of one context share a row: a tree whose branches do not see each other (a mask of four dimensions, and the
depth in the tree as position), in forward passes that leave out what no score depends on (`pruned_forward`). A model
that cannot take them scores one continuation per row in plain passes; both are compared on the longest row to find out.
Logits are computed at scored positions only, a bounded number at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.forward import Positions, last_layer, pruned_forward
from harness.evaluation.prefix_tree import Ids, Row, RowPlan
from harness.nn.ways import TOLERANCE, compared

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

LOGITS = 1 << 26
"""Logits held at once, of all models together (256 MiB in float32)."""
CORE_TOKENS = 1 << 12
"""Tokens of a forward pass for each thread of a CPU; more are slower where they leave the caches."""
TOKENS = 1 << 15
"""Tokens of a forward pass on any device, of all models together."""
LOW_PRECISION_TOLERANCE = 0.05
"""Nats by which a log-likelihood from a tree may differ from that of a plain row, where a GPU unpacks weights."""

ModelKind = tuple[object, ...]
"""What decides whether a model can take a tree's mask: its classes, its attention kernel, its adapters."""


@dataclass(frozen=True)
class StackedModels:
    """Models that compute side by side as one: rows [0:B] of a batch are the first's, [B:2B] the second's, and so on."""

    model: PreTrainedModel
    count: int = 1
    held: str = ""
    """Type that their base is held in, where that is another than float32."""

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        config = self.model.config
        return int((config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size)

    @property
    def tokens(self) -> int:
        """Tokens that each of them may have in a forward pass."""
        import torch

        most = CORE_TOKENS * torch.get_num_threads() if self.model.device.type == "cpu" else TOKENS
        return max(1, min(most, TOKENS) // self.count)


@dataclass(frozen=True)
class Scores:
    """What models gave to the requests of a plan."""

    values: NDArray[np.float64]
    """Log-likelihoods in nats, shape `(models, requests)`."""
    greedy: NDArray[np.bool_]
    """Whether each token of the continuation was the likeliest, shape `(models, requests)`."""

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all of a model's log-likelihoods are finite, shape `(models,)`."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


class LikelihoodScorer:
    """Scores sequences, and remembers which kinds of models take trees and pruned passes.

    Attributes:
        verified: Tokens of the longest row that a kind of model was seen to score rightly in that way; 0 for a kind that
            cannot.
    """

    def __init__(self) -> None:
        self.verified: dict[ModelKind, int] = {}

    def score(self, models: StackedModels, plan: RowPlan, batch_size: int | None = None) -> Scores:
        """Score every request of a plan under every model.

        Args:
            models: In evaluation mode, without gradients.
            plan: What to score.
            batch_size: Rows of a model in a forward pass; None for as many as `TOKENS` and `LOGITS` allow.
        """
        return _scores(_PairScorer(models, prunes=self._takes_trees(models, plan)), plan, batch_size)

    def _takes_trees(self, models: StackedModels, plan: RowPlan) -> bool:
        """Whether trees and pruned passes give what plain rows give, tried on the longest row unless the kind has passed."""
        if not plan.shares_rows or not plan.tree_rows:
            return False
        rows = [row for row in plan.tree_rows if row.has_branches] or plan.tree_rows
        kind = (rows[0].has_branches, models.count > 1, *_kind(models.model))
        size, known = max(len(row.tokens) for row in rows), self.verified.get(kind)
        if known is not None and (known == 0 or known >= size):
            return known > 0
        # The longest row is the hardest for masks and sliding windows, the deepest for positions.
        deepest, longest = (max(rows, key=key) for key in (lambda r: r.depth.max(), lambda r: len(r.tokens)))
        agreed = _agree(models, plan, [deepest, longest])
        if agreed is not None:
            self.verified[kind] = size if agreed else 0
        return bool(agreed)


def _scores(scorer: _PairScorer, plan: RowPlan, batch_size: int | None = None) -> Scores:
    import torch

    rows = plan.tree_rows if scorer.prunes else plan.plain_rows
    if not rows:
        return Scores(np.zeros((scorer.models.count, 0)), np.zeros((scorer.models.count, 0), dtype=bool))
    pairs, requests = [], []
    for batch in _batches(scorer.models, rows, batch_size):
        pairs.append(scorer.score(batch))
        requests.append(batch.requests)
    log_probabilities, likeliest = (torch.cat(parts, dim=1).cpu().numpy() for parts in zip(*pairs, strict=True))
    owners, size = np.concatenate(requests), len(plan.requests)
    # A long text is a sum of thousands of terms, whose rounding in single precision would show.
    values = [np.bincount(owners, weights=row, minlength=size) for row in log_probabilities.astype(np.float64)]
    missed = [np.bincount(owners, weights=~row, minlength=size) for row in likeliest]
    return Scores(np.stack(values), np.stack(missed) == 0)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows of one model, padded on the right, as tensors on the CPU."""

    ids: Tensor
    """Shape `(rows, width)`."""
    depth: Tensor | None
    """None where no row branches, as `end`; shape `(rows, width)`."""
    end: Tensor | None
    positions: Tensor
    """Positions with logits, counted through the batch, each once; shape `(positions,)`."""
    pair_positions: Tensor
    """Index into `positions` of each scored pair; shape `(pairs,)`."""
    targets: Tensor
    """Predicted token of each pair; shape `(pairs,)`."""
    requests: Ids
    """Request of each pair; shape `(pairs,)`."""


def _batches(models: StackedModels, rows: Sequence[Row], batch_size: int | None) -> Iterator[_Batch]:
    """Rows of like length together, longest first, those that branch apart from those that do not."""
    for branching in (True, False):
        alike = [row for row in rows if row.has_branches is branching]
        alike.sort(key=lambda row: -len(row.tokens))
        start = 0
        while start < len(alike):
            size = batch_size or _rows_at_once(models, len(alike[start].tokens), branching)
            yield _batch(alike[start : start + size], branching)
            start += size


def _rows_at_once(models: StackedModels, width: int, branching: bool) -> int:
    """Rows of a model that fit a forward pass: its tokens, its masks, and its logits where they cannot be chosen."""
    most = models.tokens // width
    if branching:
        most = min(most, LOGITS // (models.count * width**2))
    if models.model.get_output_embeddings() is None:
        most = min(most, LOGITS // (models.count * width * models.vocabulary))
    return max(1, most)


def _batch(rows: Sequence[Row], branching: bool) -> _Batch:
    import torch

    width = len(rows[0].tokens)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    depth = np.zeros_like(ids)
    # A padding token ends at once: it sees itself, and no other token sees it.
    end = np.tile(np.arange(1, width + 1), (len(rows), 1))
    for index, row in enumerate(rows):
        ids[index, : len(row.tokens)] = row.tokens
        if branching:
            depth[index, : len(row.tokens)] = row.depth
            end[index, : len(row.tokens)] = row.end
    flat = np.concatenate([index * width + row.positions.astype(np.int64) for index, row in enumerate(rows)])
    positions, pair_positions = np.unique(flat, return_inverse=True)
    return _Batch(
        ids=torch.from_numpy(ids),
        depth=torch.from_numpy(depth) if branching else None,
        end=torch.from_numpy(end) if branching else None,
        positions=torch.from_numpy(positions),
        pair_positions=torch.from_numpy(pair_positions),
        targets=torch.from_numpy(np.concatenate([row.targets for row in rows]).astype(np.int64)),
        requests=np.concatenate([row.requests for row in rows]),
    )


class _PairScorer:
    """Log-probabilities of pairs, a position and the token after it, under some models.

    Args:
        models: In evaluation mode, without gradients.
        prunes: Whether they are known to take trees and pruned passes.
        dtype: What they compute in; None for the type of their weights, or of autocast where that is on.
    """

    def __init__(self, models: StackedModels, prunes: bool, dtype: torch.dtype | None = None) -> None:
        self.models, self.prunes, self.dtype = models, prunes, dtype
        self.head: Module | None = models.model.get_output_embeddings()
        self.last = last_layer(models.model) if prunes else None
        self.is_direct: bool | None = None
        """Whether logits are the output layer's as they are; a model may scale or cap them afterwards."""

    def score(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Each pair's log-probability, and whether its target was the likeliest token; both `(models, pairs)`."""
        import torch

        device = self.models.model.device
        pair_positions, targets = batch.pair_positions.to(device), batch.targets.to(device)
        values = torch.empty(self.models.count, len(targets), device=device)
        likeliest = torch.empty(self.models.count, len(targets), device=device, dtype=torch.bool)
        start = 0
        for logits in self._logits(batch):
            stop = start + logits.shape[1]
            here = ((batch.pair_positions >= start) & (batch.pair_positions < stop)).nonzero()[:, 0].to(device)
            at, wanted = pair_positions[here] - start, targets[here]
            values[:, here] = logits[:, at, wanted].float() - logits.float().logsumexp(-1)[:, at]
            likeliest[:, here] = logits.argmax(-1)[:, at] == wanted
            start = stop
        return values, likeliest

    def _logits(self, batch: _Batch) -> Iterator[Tensor]:
        """Logits at the batch's positions, a bounded number at a time, each `(models, some positions, vocabulary)`."""
        inputs = self._inputs(batch)
        positions = Positions(self.models.count, batch.ids.shape[1], batch.positions.to(self.models.model.device))
        parts = positions.split(max(1, LOGITS // (self.models.count * self.models.vocabulary)))
        head = self.head
        if head is None:
            logits = self._called(inputs, positions)
            yield from (part.select(logits) for part in parts)
            return
        first, hidden = self._forward(inputs, positions, parts[0])
        yield first
        if len(parts) > 1 and self.is_direct is None:
            self.is_direct = _equal(head(parts[0].select(hidden)), first)
        for part in parts[1:]:
            yield head(part.select(hidden)) if self.is_direct else self._forward(inputs, positions, part)[0]

    def _inputs(self, batch: _Batch) -> dict[str, Tensor | bool]:
        """What the model is called with, of all models together."""
        import torch

        model, count = self.models.model, self.models.count
        inputs: dict[str, Tensor | bool] = {"input_ids": batch.ids.to(model.device).repeat(count, 1)}
        inputs["use_cache"] = False
        if batch.depth is not None and batch.end is not None:
            index = torch.arange(batch.ids.shape[1], device=model.device)
            sees = (index[None, None] <= index[None, :, None]) & (
                index[None, :, None] < batch.end.to(model.device)[:, None]
            )
            # A mask must have the type of the scores, which autocast computes in its own.
            device, dtype = model.device.type, self.dtype or model.dtype
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
            mask = torch.zeros(sees.shape, dtype=dtype, device=model.device)
            mask.masked_fill_(~sees, torch.finfo(dtype).min)
            inputs["attention_mask"] = mask[:, None].repeat(count, 1, 1, 1)
            inputs["position_ids"] = batch.depth.to(model.device).repeat(count, 1)
        return inputs

    def _forward(
        self, inputs: Mapping[str, Tensor | bool], positions: Positions, part: Positions
    ) -> tuple[Tensor, Tensor]:
        """One pass.

        Args:
            inputs: What the model is called with.
            positions: All that are wanted of the batch.
            part: Those whose logits are computed now.

        Returns:
            Logits at `part`, and the hidden states of all tokens that the output layer was about to be given.
        """
        states: list[Tensor] = []

        def select(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states.append(arguments[0])
            return (part.select(arguments[0]), *arguments[1:])

        assert self.head is not None
        hook = self.head.register_forward_pre_hook(select)
        try:
            return self._called(inputs, positions), states[0]
        finally:
            hook.remove()

    def _called(self, inputs: Mapping[str, Tensor | bool], positions: Positions) -> Tensor:
        model = self.models.model
        masked = "attention_mask" in inputs
        with pruned_forward(model, self.last, positions, masked) if self.prunes else nullcontext():
            logits: Tensor = model(**inputs).logits
        return logits


def _equal(left: Tensor, right: Tensor) -> bool:
    import torch

    return torch.allclose(left.float(), right.float(), rtol=0.0, atol=0.0, equal_nan=True)


def _kind(model: PreTrainedModel) -> ModelKind:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = getattr(model, "peft_config", None) or {}
    attention = getattr(model.config, "_attn_implementation", None)
    return (type(model), type(base), attention, *sorted({str(config.peft_type) for config in adapters.values()}))


def _agree(models: StackedModels, plan: RowPlan, rows: Sequence[Row]) -> bool | None:
    """Whether trees and plain rows give the same; None where no model's log-likelihoods are finite.

    Compared in single precision, where rounding cannot hide a difference.

    Args:
        models: In evaluation mode, without gradients.
        plan: What to score.
        rows: Tree rows of the plan to compare on.
    """
    import torch

    tried = sorted({int(request) for row in rows for request in row.requests})
    part = RowPlan([plan.requests[index] for index in tried], plan.context_length, plan.hidden_size)
    # Packed weights compute in float32 on a CPU, in bfloat16 on a GPU (`methods/qlora.py`).
    packed = any(not weight.is_floating_point() for weight in models.model.parameters())
    tolerance = LOW_PRECISION_TOLERANCE if packed and models.model.device.type == "cuda" else TOLERANCE
    dtype = torch.promote_types(models.model.dtype, torch.float32)

    def in_both_ways() -> list[Scores]:
        return [_scores(_PairScorer(models, prunes, dtype), part) for prunes in (True, False)]

    scores = compared(models.model, in_both_ways, None)
    if scores is None:
        return False
    plain = scores[1]
    if not plain.finite.any():
        return None
    in_trees, in_plain_rows = (each.values[plain.finite] for each in scores)
    return bool(np.allclose(in_trees, in_plain_rows, rtol=TOLERANCE / 10, atol=tolerance))

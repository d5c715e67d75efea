"""Sequences to score, laid out as rows: continuations of one context are branches of a tree.

A row is a tree in preorder. A token sees those before it whose branch it is on: token `i` sees `j <= i` where
`i < end[j]`. Which continuations share a row depends on what attention between branches costs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Ids = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Ask:
    """A continuation to score after its context; token ids, none of them empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Sequences that share their beginning, in preorder: each token is followed by all that continue it."""

    tokens: Ids
    depth: Ids
    """Tokens before each in its own sequence."""
    end: Ids
    """Where what continues each token ends."""
    nodes: Ids
    """Position of each scored pair: the token whose logits predict the target."""
    targets: Ids
    asks: Ids
    """Which ask each pair belongs to."""

    @cached_property
    def branches(self) -> bool:
        """Whether it is more than one sequence."""
        return bool(self.depth.max() + 1 < len(self.tokens))


class Plan:
    """Asks laid out as rows; depends on no model, so it can be kept.

    Args:
        asks: What to score.
        longest: Tokens of a model's context; what exceeds it is cut from the context's beginning.
        width: Hidden size of the model, which decides how many branches pay back in a row.
        shares: Whether asks of one context may share a row.
    """

    def __init__(self, asks: Sequence[Ask], longest: int, width: int, shares: bool = True) -> None:
        self.asks, self.longest, self.width, self.shares = asks, longest, width, shares

    @cached_property
    def lines(self) -> list[Row]:
        """Rows without branches; sequences that begin another share its row."""
        return self._rows(trees=False)

    @cached_property
    def trees(self) -> list[Row]:
        """Rows in which continuations of one context are branches, where they may be."""
        return self._rows(trees=True) if self.shares else self.lines

    def _rows(self, trees: bool) -> list[Row]:
        by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, ask in enumerate(self.asks):
            kept = self.longest + 1 - len(ask.continuation)
            by_context[ask.context[-kept:]][ask.continuation[:-1]].append(index)
        rows = []
        for context, wanted in by_context.items():
            limit = self._branch_tokens(len(context)) if trees else 0
            rows += [self._row(context, leaves, wanted) for leaves in _bundles(sorted(wanted), limit)]
        return rows

    def _branch_tokens(self, context: int) -> int:
        """Tokens that may branch from a context before attention between branches costs more than the context again."""
        return min(self.longest - context, math.isqrt(context * (context + 2 * self.width)))

    def _row(
        self,
        context: tuple[int, ...],
        sequences: Sequence[tuple[int, ...]],
        wanted: Mapping[tuple[int, ...], Sequence[int]],
    ) -> Row:
        """A row of sequences in lexicographic order."""
        import numpy as np

        start = len(context)
        tokens, depth, end = list(context), list(range(start)), [0] * start
        path: list[int] = []  # nodes of the sequence before
        nodes: list[int] = []
        targets: list[int] = []
        asks: list[int] = []
        before: tuple[int, ...] = ()
        for sequence in sequences:
            shared = _shared(before, sequence)
            for node in path[shared:]:
                end[node] = len(tokens)
            path = [*path[:shared], *range(len(tokens), len(tokens) + len(sequence) - shared)]
            tokens += sequence[shared:]
            depth += range(start + shared, start + len(sequence))
            end += [0] * (len(sequence) - shared)
            before = sequence
            for ask in wanted[sequence]:
                nodes += [start - 1, *path]
                targets += self.asks[ask].continuation
                asks += [ask] * (len(sequence) + 1)
        end = [stop or len(tokens) for stop in end]
        return Row(*(np.array(column, dtype=np.int32) for column in (tokens, depth, end, nodes, targets, asks)))


def _bundles(sequences: Sequence[tuple[int, ...]], limit: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut sequences in lexicographic order where the next would branch off and exceed `limit` tokens of branches."""
    bundle: list[tuple[int, ...]] = []
    size = 0
    for sequence in sequences:
        shared = _shared(bundle[-1], sequence) if bundle else 0
        if bundle and shared < len(bundle[-1]) and size + len(sequence) - shared > limit:
            yield bundle
            bundle, size, shared = [], 0, 0
        size += len(sequence) - shared
        bundle.append(sequence)
    yield bundle


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )

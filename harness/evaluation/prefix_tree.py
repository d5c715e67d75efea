"""Requests laid out as rows of tokens: continuations of one context share a row, as the branches of a tree.

A row is a tree in preorder. A token sees the tokens before it on its own branch: token `i` sees `j <= i` where
`i < end[j]`. How many continuations share a row depends on what attention between branches, which is masked, costs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Request:
    """A continuation to score after its context; token ids, neither of them empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Sequences that share their beginning, in preorder: each token is followed by all that continue it.

    `tokens`, `depth` and `end` have an entry for each token; `positions`, `targets` and `requests` have one for each
    scored pair, a token and the one that is predicted after it.
    """

    tokens: Ids
    depth: Ids
    """How many tokens come before each in its own sequence."""
    end: Ids
    """Index of the first token after each that does not continue it."""
    positions: Ids
    """Index of the token whose logits predict the target."""
    targets: Ids
    """Ids of the predicted tokens."""
    requests: Ids
    """Index of the request that each pair belongs to."""

    @cached_property
    def has_branches(self) -> bool:
        """Whether it holds more than one sequence."""
        return bool(self.depth.max() + 1 < len(self.tokens))


class RowPlan:
    """Requests laid out as rows; it depends on no weights, so it serves every model of the same shape.

    Args:
        requests: What to score.
        context_length: Tokens that a model takes; a longer sequence loses the beginning of its context.
        hidden_size: Width of the model, which decides how many branches pay back in a row.
        shares_rows: Whether continuations of one context may share a row.
    """

    def __init__(
        self, requests: Sequence[Request], context_length: int, hidden_size: int, shares_rows: bool = True
    ) -> None:
        self.requests, self.context_length = requests, context_length
        self.hidden_size, self.shares_rows = hidden_size, shares_rows

    @cached_property
    def plain_rows(self) -> list[Row]:
        """Rows without branches; a sequence that begins another one shares its row."""
        return self._rows(branching=False)

    @cached_property
    def tree_rows(self) -> list[Row]:
        """Rows in which continuations of one context are branches, where rows may be shared."""
        return self._rows(branching=True) if self.shares_rows else self.plain_rows

    def _rows(self, branching: bool) -> list[Row]:
        # The last token of a continuation is only predicted, so it is no part of the sequence that a model reads.
        by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, request in enumerate(self.requests):
            room = self.context_length + 1 - len(request.continuation)
            by_context[request.context[-room:]][request.continuation[:-1]].append(index)
        rows = []
        for context, owners in by_context.items():
            limit = self._branch_tokens(len(context)) if branching else 0
            rows += [self._row(context, bundle, owners) for bundle in _bundles(sorted(owners), limit)]
        return rows

    def _branch_tokens(self, context: int) -> int:
        """Tokens that may branch from a context before attention between branches costs more than the context again.

        In units of a query with a key: branches of b tokens cost b^2; the context of c tokens, computed once more, costs
        c^2 for attention and about 2 h c for linear layers of width h. Both are equal at b = sqrt(c (c + 2 h)).
        """
        return min(self.context_length - context, math.isqrt(context * (context + 2 * self.hidden_size)))

    def _row(
        self,
        context: tuple[int, ...],
        sequences: Sequence[tuple[int, ...]],
        owners: Mapping[tuple[int, ...], Sequence[int]],
    ) -> Row:
        """A row of one context.

        Args:
            context: Its tokens.
            sequences: What continues it, in lexicographic order, so that common beginnings are neighbours.
            owners: By sequence, the requests that it belongs to.
        """
        start = len(context)
        tokens, depth, end = list(context), list(range(start)), [0] * start
        path: list[int] = []  # where the tokens of the sequence before stand in the row
        positions: list[int] = []
        targets: list[int] = []
        requests: list[int] = []
        before: tuple[int, ...] = ()
        for sequence in sequences:
            shared = _shared(before, sequence)
            for index in path[shared:]:
                end[index] = len(tokens)
            path = [*path[:shared], *range(len(tokens), len(tokens) + len(sequence) - shared)]
            tokens += sequence[shared:]
            depth += range(start + shared, start + len(sequence))
            end += [0] * (len(sequence) - shared)
            before = sequence
            for request in owners[sequence]:
                positions += [start - 1, *path]
                targets += self.requests[request].continuation
                requests += [request] * (len(sequence) + 1)
        return Row(
            tokens=_ids(tokens),
            depth=_ids(depth),
            end=_ids([stop or len(tokens) for stop in end]),
            positions=_ids(positions),
            targets=_ids(targets),
            requests=_ids(requests),
        )


def _ids(numbers: Sequence[int]) -> Ids:
    return np.array(numbers, dtype=np.int32)


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


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )

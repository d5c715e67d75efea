"""Training rows as token ids, exactly as lm-eval feeds them to a model when it scores.

Rows are tokenised here rather than by TRL, which would split prompt and completion elsewhere than lm-eval does
(a prompt's trailing spaces belong to the completion there) and would take a second per thousand rows for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import IGNORED, TokenSequence
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def reached(rows: Sequence[Row], setup: StageSetup) -> Sequence[Row]:
    """The rows that a stage reaches: where it is shorter than one pass over them, a random part, which is all it tokenises."""
    seen = setup.steps * setup.params.integer("batch_size") * setup.params.integer("gradient_accumulation")
    return random.Random(setup.seed).sample(rows, seen) if seen < len(rows) else rows


def sequences(rows: Sequence[Row], setup: StageSetup) -> list[TokenSequence]:
    """Rows as token ids with loss on the completion and its end token only; on all tokens where the prompt is empty.

    Rows above `max_length` lose their beginning, as lm-eval cuts prompts; a text without prompt loses its end.
    How many were cut, or dropped because nothing was left to learn, goes into the record's notes.
    """
    kept = [s for s in tokenised(rows, setup) if learnable(s)]
    if len(kept) < len(rows):
        setup.note(f"{len(rows) - len(kept)} of {len(rows)} training rows had nothing to learn and were dropped")
    return kept


def learnable(sequence: TokenSequence) -> bool:
    """Whether any of its tokens carries loss."""
    return any(label != IGNORED for label in sequence.labels[1:])


def tokenised(rows: Sequence[Row], setup: StageSetup, noun: str = "training rows") -> list[TokenSequence]:
    """Rows as token ids, as `sequences` has them, but one for every row even where there is nothing to learn.

    Args:
        rows: Training rows.
        setup: The stage's tokenizer and `max_length`; takes notes of what was cut.
        noun: What the notes call the rows.
    """
    limit = setup.params.integer("max_length")
    prompted = [row for row in rows if row.prompt]
    texts = [row.completion for row in rows if not row.prompt]
    split = iter(_prompted(prompted, setup, noun))
    plain = iter(documents(texts, setup))
    whole = [next(split) if row.prompt else _all_supervised(next(plain)) for row in rows]
    if longer := sum(len(s.input_ids) > limit for s in whole):
        setup.note(f"{longer} of {len(rows)} {noun} were cut to {limit} tokens")
    return [
        s.last(limit) if row.prompt else TokenSequence(s.input_ids[:limit], s.labels[:limit])
        for row, s in zip(rows, whole, strict=True)
    ]


def documents(texts: Sequence[str], setup: StageSetup) -> list[list[int]]:
    """Each text's ids between the token that lm-eval starts texts with and the end token."""
    start, end = _start(setup.tokenizer), setup.tokenizer.eos_token_id
    return [
        ([] if start is None else [start]) + ids + ([] if end is None else [end])
        for ids in setup.tokens.encode(setup.tokenizer, texts, special=False, folder=setup.cache)
    ]


def _start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """lm-eval's `prefix_token_id`: BOS, else EOS."""
    start: int | None = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return start


def _all_supervised(ids: list[int]) -> TokenSequence:
    return TokenSequence(tuple(ids), tuple(ids))


def _prompted(rows: Sequence[Row], setup: StageSetup, noun: str) -> list[TokenSequence]:
    """lm-eval's `_encode_pair`: the whole is tokenised once, and the completion starts where the prompt's ids end.

    Where tokens merge across that border, a task that is scored by generation keeps the prompt's own ids, because
    generation will start from them.
    """
    tokenizer, tokens, folder = setup.tokenizer, setup.tokens, setup.cache
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    prompts = [row.prompt if setup.generates else row.prompt.rstrip() or row.prompt for row in rows]
    wholes = tokens.encode(tokenizer, [row.prompt + row.completion for row in rows], folder=folder)
    found, moved = [], 0
    for row, whole, prompt in zip(rows, wholes, tokens.encode(tokenizer, prompts, folder=folder), strict=True):
        border = len(prompt)
        if setup.generates and whole[:border] != prompt:
            moved += 1
            whole = prompt + tokens.encode(tokenizer, [row.completion], special=False)[0]
        ids = tuple(whole) if tuple(whole[-1:]) == end else (*whole, *end)
        found.append(TokenSequence(ids, (IGNORED,) * border + ids[border:], border))
    if moved:
        setup.note(f"{moved} of {len(rows)} {noun} have tokens that merge across the end of the prompt")
    return found

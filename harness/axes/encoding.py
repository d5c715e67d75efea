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
    """The rows that a stage trains on: a random sample of them where it is shorter than one pass."""
    # Rows that are never reached would only cost the time to tokenise them.
    seen = setup.steps * setup.params.integer("batch_size") * setup.params.integer("gradient_accumulation")
    return random.Random(setup.seed).sample(rows, seen) if seen < len(rows) else rows


def sequences(rows: Sequence[Row], setup: StageSetup) -> list[TokenSequence]:
    """Rows as token ids, with loss on the completion and its end token; on all tokens where the prompt is empty.

    Rows above `max_length` lose their beginning, as lm-eval cuts prompts; a text without prompt loses its end.
    How many were cut, or dropped because nothing was left to learn, goes into the record's notes.
    """
    supervised = [sequence for sequence in tokenised(rows, setup) if learnable(sequence)]
    if len(supervised) < len(rows):
        setup.note(f"{len(rows) - len(supervised)} of {len(rows)} training rows had nothing to learn and were dropped")
    return supervised


def learnable(sequence: TokenSequence) -> bool:
    """Whether any of its tokens carries loss."""
    return any(label != IGNORED for label in sequence.labels[1:])


def tokenised(rows: Sequence[Row], setup: StageSetup, noun: str = "training rows") -> list[TokenSequence]:
    """Rows as token ids like `sequences`, with one for every row, even where there is nothing to learn.

    Args:
        rows: Prompts and completions.
        setup: The stage's; notes say how many rows were cut.
        noun: What notes call the rows.
    """
    limit = setup.params.integer("max_length")
    prompted = [row for row in rows if row.prompt]
    texts = [row.completion for row in rows if not row.prompt]
    split = iter(_prompted(prompted, setup, noun))
    plain = iter(documents(texts, setup))
    whole = [next(split) if row.prompt else _all_supervised(next(plain)) for row in rows]
    if longer := sum(len(s.input_ids) > limit for s in whole):
        setup.note(f"{longer} of {len(rows)} {noun} were cut to {limit} tokens")
    # A prompt loses its beginning, so that the answer stays whole; a text without one ends early, as a document does.
    return [
        s.last(limit) if row.prompt else TokenSequence(s.input_ids[:limit], s.labels[:limit])
        for row, s in zip(rows, whole, strict=True)
    ]


def documents(texts: Sequence[str], setup: StageSetup) -> list[list[int]]:
    """Each text's ids between the token that lm-eval starts texts with and the end token."""
    # Set here, because tokenizers differ in the special tokens that they add by themselves.
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
    # lm-eval moves spaces at the end of a prompt to the completion, but generates from the prompt as it is.
    prompts = [row.prompt if setup.generates else row.prompt.rstrip() or row.prompt for row in rows]
    wholes = tokens.encode(tokenizer, [row.prompt + row.completion for row in rows], folder=folder)
    pairs, moved = [], 0
    for row, whole, prompt in zip(rows, wholes, tokens.encode(tokenizer, prompts, folder=folder), strict=True):
        border = len(prompt)
        if setup.generates and whole[:border] != prompt:
            moved += 1
            whole = prompt + tokens.encode(tokenizer, [row.completion], special=False)[0]
        # Some tokenizers add the end token by themselves.
        ids = tuple(whole) if tuple(whole[-1:]) == end else (*whole, *end)
        pairs.append(TokenSequence(ids, (IGNORED,) * border + ids[border:], border))
    if moved:
        setup.note(f"{moved} of {len(rows)} {noun} have tokens that merge across the end of the prompt")
    return pairs

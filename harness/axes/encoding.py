"""Training rows as token ids, by the same encoder that scoring uses (`models/tokens`), cut to the length of a stage.

Rows are tokenised here rather than by TRL, which would split prompt and completion elsewhere than lm-eval does
(a prompt's trailing spaces belong to the completion there) and would take a second per thousand rows for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.axes.contract import StageSetup
from harness.models.tokens import Encoder, Ids
from harness.nn.sequences import IGNORED, TokenSequence
from harness.tasks.training_rows import Row


def reached(rows: Sequence[Row], setup: StageSetup) -> Sequence[Row]:
    """The rows that a stage trains on: a random sample of them where it is shorter than one pass."""
    # Rows that are never reached would only cost the time to tokenise them.
    seen = setup.steps * setup.params.integer("batch_size") * setup.params.integer("gradient_accumulation")
    return random.Random(setup.seed).sample(rows, seen) if seen < len(rows) else rows


def sequences(rows: Sequence[Row], setup: StageSetup) -> list[TokenSequence]:
    """Rows as token ids, with loss on the completion and its end token; on all tokens where the prompt is empty.

    A chat's earlier answers, which stand in its prompt, carry loss too.

    How many rows were cut to `max_length` (see `fitted`), or dropped because nothing was left to learn, goes into the
    record's notes.
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
    whole = encoded(rows, encoder(setup), setup.generates)
    prompted = [(row.prompt, row.completion) for row in rows if row.prompt]
    if spanning := encoder(setup).spanning(prompted, setup.generates):
        setup.note(
            f"{spanning} of {len(rows)} {noun} have tokens that merge across the end of the prompt: "
            "prompt and answer are encoded apart there, in training as in scoring"
        )
    if cuts := Cuts.of(whole, limit):
        setup.note(f"{noun}: {cuts}")
    return [fitted(sequence, limit) for sequence in whole]


def encoder(setup: StageSetup) -> Encoder:
    """The encoder of a stage's tokenizer."""
    return setup.tokens.encoder(setup.tokenizer, setup.cache)


def documents(texts: Sequence[str], setup: StageSetup) -> list[Ids]:
    """Each text's ids between start and end token."""
    return encoder(setup).documents(texts)


def encoded(rows: Sequence[Row], encoder: Encoder, generates: bool) -> list[TokenSequence]:
    """Rows as token ids, whatever their length: a prompt and its completion parted as they are when they are scored.

    Args:
        rows: Prompts and completions; a row without prompt is a text with loss on all its tokens.
        encoder: Of the model's tokenizer.
        generates: Whether the task is scored on generated text, which starts from all of the prompt.
    """
    prompted = iter(_prompted([row for row in rows if row.prompt], encoder, generates))
    texts = iter(encoder.documents([row.completion for row in rows if not row.prompt]))
    return [next(prompted) if row.prompt else _all_supervised(next(texts)) for row in rows]


@dataclass(frozen=True)
class EncodedRows:
    """Rows and their tokens, which are asked for several times and made once; arguments as of `encoded`."""

    rows: Sequence[Row]
    encoder: Encoder
    generates: bool

    @cached_property
    def sequences(self) -> list[TokenSequence]:
        """One of each row."""
        return encoded(self.rows, self.encoder, self.generates)


def _all_supervised(ids: Ids) -> TokenSequence:
    return TokenSequence(ids, ids)


def _prompted(rows: Sequence[Row], encoder: Encoder, generates: bool) -> list[TokenSequence]:
    """Rows with prompts; what carries loss does not change how they are encoded."""
    pairs = encoder.pairs([(row.prompt, row.completion + row.end) for row in rows], generates)
    # Up to the borders of a chat's earlier answers, and to its last one: white space there is the template's.
    beginnings = [
        [*(row.prompt[:place] for span in row.learned for place in span), *([row.prompt] if row.end else [])]
        for row in rows
    ]
    begun = iter(encoder.prompts([text for texts in beginnings for text in texts]))
    found = []
    for row, texts, (prompt, completion) in zip(rows, beginnings, pairs, strict=True):
        ids = (*prompt, *encoder.ended(completion))
        # A token that spans the border of an answer is the answer's where that begins, and not where it ends.
        places = [_shared(next(begun), ids) for _ in texts]
        border = places.pop() if row.end else len(prompt)
        labels = [IGNORED] * border
        for start, stop in zip(places[::2], places[1::2], strict=True):
            labels[start:stop] = ids[start : min(stop, border)]
        found.append(TokenSequence(ids, (*labels, *ids[border:]), border))
    return found


def _shared(left: Ids, right: Ids) -> int:
    """Tokens that both begin with."""
    ends = (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(ends, min(len(left), len(right)))


def fitted(sequence: TokenSequence, limit: int) -> TokenSequence:
    """A sequence cut to `limit` tokens.

    A prompt loses its beginning, as lm-eval cuts what it scores, but keeps half of the room if it needs it; then the
    completion loses its end. A text without prompt loses its end.
    """
    return sequence.last(len(sequence.input_ids) - _beginning_lost(sequence, limit)).first(limit)


def _beginning_lost(sequence: TokenSequence, limit: int) -> int:
    """Tokens of the prompt that are cut off."""
    completion = len(sequence.input_ids) - sequence.prompt
    return sequence.prompt - min(sequence.prompt, max(limit - completion, limit // 2))


@dataclass(frozen=True)
class Cuts:
    """How many rows lose something because they are longer than a stage takes."""

    rows: int
    limit: int
    """The most tokens of a row."""
    prompts: int
    """Rows that lose the beginning of their prompt."""
    completions: int
    """Rows that lose the end of their completion."""
    texts: int
    """Texts without prompt that lose their end."""

    @staticmethod
    def of(sequences: Sequence[TokenSequence], limit: int) -> Cuts:
        """What `fitted` cuts off."""
        lost = [(s.prompt > 0, _beginning_lost(s, limit), len(s.input_ids) - limit) for s in sequences]
        return Cuts(
            rows=len(sequences),
            limit=limit,
            prompts=sum(beginning > 0 for _, beginning, _ in lost),
            completions=sum(prompted and too_many > beginning for prompted, beginning, too_many in lost),
            texts=sum(not prompted and too_many > 0 for prompted, _, too_many in lost),
        )

    def __bool__(self) -> bool:
        """Whether anything is cut."""
        return bool(self.prompts or self.completions or self.texts)

    def __str__(self) -> str:
        kinds = {
            "the beginning of their prompt": self.prompts,
            "the end of their answer": self.completions,
            "the end of their text": self.texts,
        }
        parts = [f"{count} lose {what}" for what, count in kinds.items() if count]
        return f"of {self.rows}, {' and '.join(parts)}, to fit {self.limit} tokens"

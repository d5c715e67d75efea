"""Synthetic retrieval: made-up dictionaries of numbers, in one of which a key must be found."""

from __future__ import annotations

import random
from collections.abc import Sequence

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import encoded, encoder
from harness.curation._refusals import unmet
from harness.curation.base import Curation
from harness.errors import SpecError
from harness.models.tokens import Encoder
from harness.space import Choice, Integer, Params
from harness.tasks.training_rows import Row


class SyntheticKeyValue(Curation):
    """`kv_rows` rows, each with up to `kv_dictionaries` numbered dictionaries of `kv_keys` keys; all numbers differ.

    They are trained on instead of the task's rows, or beside them (`kv_beside`). Where so many dictionaries do not fit
    `max_length`, a row has as many as do. The paper has 350 rows with 85 dictionaries of 3 to 4 keys.
    """

    summary = "made-up dictionaries, in one of which a key must be found"
    paper = "Xiong et al. 2024, arXiv 2406.19292"
    writes = True
    space = {
        "kv_rows": Integer(8, 100_000, default=350, log=True, searched=False),
        "kv_dictionaries": Integer(2, 256, default=16, log=True),
        "kv_keys": Integer(1, 16, default=3, searched=False),
        "kv_digits": Integer(2, 8, default=4, searched=False),
        "kv_beside": Choice((True, False), default=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """Its rows have prompts and answers, and nothing else."""
        return unmet(situation)

    def check(self, rows: Sequence[Row], encoder: Encoder, params: Params, generates: bool) -> None:
        """There must be enough different numbers, and rows of two dictionaries must fit.

        Raises:
            SpecError: When there are not, or these do not.
        """
        count, keys, digits = (params.integer(name) for name in ("kv_dictionaries", "kv_keys", "kv_digits"))
        if 2 * count * keys > 9 * 10 ** (digits - 1):
            raise SpecError(f"kv_digits must give {2 * count * keys} different numbers, but {digits} do not: raise it")
        shortest = _asked([_retrieval(random.Random(0), min(2, count), keys, digits)], rows)
        if not _fit(shortest, encoder, params, generates):
            raise SpecError(_too_long(params))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The made-up rows, after the task's own where those stay.

        Raises:
            SpecError: When not even two dictionaries fit, or there are fewer numbers than a row needs.
        """
        params = setup.params
        count, keys, digits = (params.integer(name) for name in ("kv_dictionaries", "kv_keys", "kv_digits"))
        encode = encoder(setup)
        self.check(rows, encode, params, setup.generates)
        rng, fits = random.Random(setup.seed), count
        retrievals = _asked([_retrieval(rng, count, keys, digits) for _ in range(params.integer("kv_rows"))], rows)
        while not _fit(retrievals, encode, params, setup.generates):
            # In steps of an eighth: tokens per number differ between tokenizers, so the count is found by trying.
            fits -= max(1, fits // 8)
            if fits < 2:
                raise SpecError(_too_long(params))
            retrievals = _asked([_retrieval(rng, fits, keys, digits) for _ in retrievals], rows)
        setup.note(f"{len(retrievals)} synthetic rows of {fits} dictionaries")
        return [*rows, *retrievals] if params.flag("kv_beside") else retrievals


def _asked(retrievals: Sequence[tuple[str, str]], rows: Sequence[Row]) -> list[Row]:
    """Questions and answers as rows in the form of the task's, which may be chats."""
    like = rows[0].alone() if rows and rows[0].prompt else Row(completion="")
    return [like.another(question, answer) for question, answer in retrievals]


def _retrieval(rng: random.Random, count: int, keys: int, digits: int) -> tuple[str, str]:
    """A question and its answer.

    Args:
        rng: Draws them.
        count: Dictionaries.
        keys: Of each dictionary.
        digits: Of each number.
    """
    numbers = rng.sample(range(10 ** (digits - 1), 10**digits), 2 * count * keys)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    lines = []
    for number in range(count):
        own = ", ".join(f"{key}: {value}" for key, value in pairs[number * keys : (number + 1) * keys])
        lines.append(f"[{number + 1}] {{{own}}}")
    asked = rng.randrange(len(pairs))
    key, value = pairs[asked]
    return "\n".join(lines) + f"\nValue of key {key}:", f" {value} in [{asked // keys + 1}]"


def _too_long(params: Params) -> str:
    return (
        f"synthetic_key_value must fit max_length ({params.integer('max_length')} tokens), but two dictionaries do not: lower "
        "kv_keys or kv_digits, or take a base with a longer context"
    )


def _fit(rows: list[Row], encode: Encoder, params: Params, generates: bool) -> bool:
    """Whether every row and its end token are within `max_length`."""
    longest = max(len(sequence.input_ids) for sequence in encoded(rows, encode, generates))
    return longest <= params.integer("max_length")

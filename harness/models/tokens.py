"""Texts as token ids, encoded once per process and kept on disk for the next, by content.

Every trial of a search trains on the same rows: the first encodes them, and workers that start later map what it left.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from harness.errors import StorageError
from harness.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG_TEXT = 10_000
"""Characters above which a text is encoded line by line: some BPE tokenizers take quadratic time."""
WORTH_KEEPING = 1_000_000
"""Characters from which encoding takes longer (about a second) than reading what another process left."""
REMEMBERED = 16
"""Encoded lists of texts in memory."""

TokenizerFacts = tuple[str | None, ...]
"""Hash of a tokenizer's rules and vocabulary, its end token and its beginning token."""


class TokenCache:
    """What a process has encoded: token ids by content, and what each tokenizer is made of."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, list[list[int]]] = OrderedDict()
        self._facts: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, TokenizerFacts]] = WeakKeyDictionary()

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True, folder: Path | None = None
    ) -> list[list[int]]:
        """Token ids of each text; not to be changed.

        Args:
            tokenizer: A model's.
            texts: In the order of the result.
            special: Whether the tokenizer's own beginning and end tokens are added.
            folder: Where ids that took long to compute are kept for other processes; None keeps them in memory only.
        """
        if not texts:
            return []
        key = self._key(tokenizer, texts, special)
        if key not in self._texts:
            path = folder / f"{key}.npy" if folder and sum(map(len, texts)) >= WORTH_KEEPING else None
            ids = _read(path) if path else None
            if ids is None:
                ids = _encode(tokenizer, texts, special)
                if path:
                    _write(path, ids)
            self._texts[key] = ids
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    def facts(self, tokenizer: PreTrainedTokenizerBase) -> TokenizerFacts:
        """What decides a text's tokens; padding and truncation, which trainers set for themselves, do not.

        Kept per tokenizer until it grows: a vocabulary of 50,000 takes a fifth of a second.
        """
        size, facts = self._facts.get(tokenizer, (-1, ()))
        if size != len(tokenizer):
            backend = getattr(tokenizer, "backend_tokenizer", None)
            content = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
            deciding = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
            digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
            facts = (digest, tokenizer.eos_token, tokenizer.bos_token)
            self._facts[tokenizer] = (len(tokenizer), facts)
        return facts

    def _key(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool) -> str:
        """Hash of what decides the ids: the tokenizer, and the texts."""
        digest = hashlib.sha256(json.dumps([self.facts(tokenizer), special]).encode())
        for text in texts:
            raw = text.encode(errors="surrogatepass")
            # Lengths, because "ab", "c" must not have the hash of "a", "bc".
            digest.update(len(raw).to_bytes(8, "big"))
            digest.update(raw)
        return digest.hexdigest()[:32]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool) -> list[list[int]]:
    if max(map(len, texts)) > LONG_TEXT:
        return [
            list(chain.from_iterable(tokenizer(text.splitlines(keepends=True), add_special_tokens=False)["input_ids"]))
            if len(text) > LONG_TEXT and not special
            else tokenizer(text, add_special_tokens=special)["input_ids"]
            for text in texts
        ]
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=special)["input_ids"]
    return ids


def _read(path: Path) -> list[list[int]] | None:
    """What another process left, mapped into memory; None where there is nothing whole."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    count = int(array[0])
    ends = np.cumsum(array[1 : 1 + count])
    return [part.tolist() for part in np.split(array[1 + count :], ends[:-1])]


def _write(path: Path, ids: list[list[int]]) -> None:
    """One array: how many texts, the number of tokens of each, all ids."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([len(ids), *map(len, ids), *chain.from_iterable(ids)], dtype=np.int32))
    try:
        write_atomically(path, buffer.getvalue())
    except StorageError:  # what can be computed again must not stop a trial
        path.unlink(missing_ok=True)

"""The one way from texts to token ids: what is trained on, scored, generated from and counted is encoded here.

What a tokenizer puts around texts by itself is taken off and put back where it belongs (`Encoder`): its beginning once, even
where a text writes it, and its end never, because a prompt goes on. Ids are kept by content (`TokenCache`): every trial of
a search trains on the same rows, so the first encodes them, and workers that start later map what it left.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from harness.errors import StorageError
from harness.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

WORTH_KEEPING = 1_000_000
"""Characters from which encoding takes longer (about a second) than reading what another process left."""
REMEMBERED = 16
"""Encoded lists of texts in memory."""

ANCHORS = ("\n", "a", "0", ".", "(", "é")
"""Texts that another may follow without merging with them, see `Encoder.following`."""

Ids = tuple[int, ...]

TokenizerFacts = tuple[str | None, ...]
"""Hash of a tokenizer's rules and vocabulary, its end token and its beginning token."""


@dataclass(frozen=True)
class Encoder:
    """How one tokenizer's texts become ids."""

    tokenizer: PreTrainedTokenizerBase
    encode: Callable[[Sequence[str]], list[list[int]]]
    """Ids of each text as they are, without the special tokens that the tokenizer adds."""

    @cached_property
    def prefix(self) -> Ids:
        """What the tokenizer puts before any text by itself; nothing for many."""
        return affixes(self.tokenizer)[0]

    @cached_property
    def start(self) -> Ids:
        """lm-eval's `prefix_token_id`, before a text without context: BOS, else EOS; nothing where there is neither."""
        token = self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        return () if token is None else (int(token),)

    @cached_property
    def end(self) -> Ids:
        """The end token; nothing where there is none."""
        return () if self.tokenizer.eos_token_id is None else (int(self.tokenizer.eos_token_id),)

    def begun(self, ids: Sequence[int]) -> Ids:
        """A prompt's ids after the tokenizer's own beginning, which stands there once even if the prompt writes it.

        A prompt without any token begins as a text without context does.
        """
        own = self.prefix[:1]
        return tuple(ids) if own and tuple(ids[:1]) == own else (*self.prefix, *ids) or self.start

    def ended(self, ids: Sequence[int]) -> Ids:
        """A completion's ids with the end token, which stands there once even if the completion writes it."""
        return tuple(ids) if self.end and tuple(ids[-1:]) == self.end else (*ids, *self.end)

    def prompts(self, texts: Sequence[str]) -> list[Ids]:
        """What generation starts from."""
        return [self.begun(ids) for ids in self.encode(texts)]

    def documents(self, texts: Sequence[str]) -> list[Ids]:
        """Texts without context between start and end token, each there once."""
        return [(*self.start, *self.ended(ids)[tuple(ids[:1]) == self.start :]) for ids in self.encode(texts)]

    def pairs(self, texts: Sequence[tuple[str, str]], generates: bool = False) -> list[tuple[Ids, Ids]]:
        """Contexts and what follows them: lm-eval's `_encode_pair`, but where a token would span both they are encoded apart.

        Args:
            texts: Contexts and continuations.
            generates: Whether the continuation is generated, from all of the context; what is scored has the white space
                at the end of its context, as lm-eval moves it there.
        """
        split = [pair if generates else _moved(*pair) for pair in texts]
        pairs: list[tuple[Ids, Ids]] = []
        for (context, _), (before, after) in zip(split, self.parts(split), strict=True):
            if context:
                pairs.append((self.begun(before), after))
            elif after[:1] == self.start:  # a text that writes the start token itself does not have it twice
                pairs.append((after[:1], after[1:]))
            else:
                pairs.append((self.start, after))
        return pairs

    def spanning(self, texts: Sequence[tuple[str, str]], generates: bool = False) -> int:
        """Of how many pairs a token would span both, so that they are encoded apart; arguments as of `pairs`."""
        split = [pair if generates else _moved(*pair) for pair in texts]
        known = self._known(text for context, rest in split for text in (context, context + rest))
        return sum(known[context + rest][: len(known[context])] != known[context] for context, rest in split if context)

    def parts(self, rows: Sequence[Sequence[str]]) -> list[list[Ids]]:
        """Ids of the consecutive parts of texts, without special tokens; joined, they are the whole text's own.

        Only where a token of the whole would span the border of two parts, what comes after it is encoded apart. Two rows
        that begin with the same parts thus have the same ids there.
        """
        texts = [list(accumulate(parts)) for parts in rows]
        known = self._known(chain.from_iterable(texts))
        found: list[list[Ids]] = []
        for parts, begun in zip(rows, texts, strict=True):
            ids, before = list[Ids](), Ids()
            for number, text in enumerate(begun):
                whole = known[text]
                if whole[: len(before)] != before:
                    # What follows is a text of its own from here on.
                    ids += self._apart(parts[number:])
                    break
                ids.append(whole[len(before) :])
                before = whole
            found.append(ids)
        return found

    def following(self, text: str) -> Ids:
        """A text's ids as they are after another text, without what some tokenizers put before the first word of a text."""
        for anchor in ANCHORS:
            alone, both = plain_ids(self.tokenizer, [anchor, anchor + text])
            if alone and both[: len(alone)] == alone:
                return tuple(both[len(alone) :])
        return tuple(plain_ids(self.tokenizer, [text])[0])

    def said(self, answers: Sequence[Ids]) -> list[str]:
        """Texts of ids that follow a prompt, without special tokens.

        Decoded as texts of their own they would lose the space before their first word with some tokenizers.
        """
        anchor = plain_ids(self.tokenizer, ["a"])[0]
        before, *texts = self.tokenizer.batch_decode(
            [anchor, *([*anchor, *ids] for ids in answers)], skip_special_tokens=True
        )
        # A decoder may join the two texts: then the answer's own has to do.
        return [
            text[len(before) :]
            if text.startswith(before)
            else str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
            for text, ids in zip(texts, answers, strict=True)
        ]

    @cached_property
    def drops_space(self) -> bool:
        """Whether a text decoded by itself may lose the space before its first word."""
        ids = self.following(" a")
        return self.said([ids]) != list(self.tokenizer.batch_decode([list(ids)], skip_special_tokens=True))

    def _apart(self, parts: Sequence[str]) -> list[Ids]:
        """`parts` of a text that follows another one."""
        ids, before = list[Ids](), Ids()
        for number, text in enumerate(accumulate(parts)):
            whole = self.following(text)
            if whole[: len(before)] != before:
                return [*ids, *self._apart(parts[number:])]
            ids.append(whole[len(before) :])
            before = whole
        return ids

    def _known(self, texts: Iterator[str]) -> dict[str, Ids]:
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, map(tuple, self.encode(unique)), strict=True))


def _moved(context: str, rest: str) -> tuple[str, str]:
    """White space at the end of a context belongs to what follows."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + rest


def affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """What a tokenizer puts before and after any text by itself."""
    # Tokenizers say this in many ways (post-processors, add_bos_token, templates), so a text is encoded to see.
    for text in _samples(tokenizer):
        plain = plain_ids(tokenizer, [text])[0]
        if plain:
            around = list(tokenizer(text)["input_ids"])
            start = next((i for i in range(len(around)) if around[i : i + len(plain)] == plain), 0)
            return tuple(around[:start]), tuple(around[start + len(plain) :])
    return (), ()


def _samples(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Short texts, of which a tokenizer knows at least one."""
    yield from ("a", "0", " ")
    yield from sorted(tokenizer.get_vocab(), key=len)[:64]


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as they are, without the special tokens that the tokenizer adds."""
    if not texts:
        return []
    if (backend := _backend(tokenizer)) is not None:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """What encodes a tokenizer's texts, where nothing but transformers' own code stands before it: it takes a third of the time."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or (
        kind.__call__ is not PreTrainedTokenizerBase.__call__
        or kind._encode_plus is not PreTrainedTokenizerFast._encode_plus
    ):
        return None
    backend: Tokenizer = tokenizer.backend_tokenizer
    # As transformers' own call does it: a file may hold other settings.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """An encoder that keeps nothing."""
    return Encoder(tokenizer, partial(plain_ids, tokenizer))


class TokenCache:
    """What a process has encoded: token ids by content, and what each tokenizer is made of."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, list[list[int]]] = OrderedDict()
        self._facts: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, TokenizerFacts]] = WeakKeyDictionary()

    def encoder(self, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> Encoder:
        """An encoder that asks a tokenizer once for the same texts.

        Args:
            tokenizer: A model's.
            folder: Where ids that took long to compute are kept for other processes; None keeps them in memory only.
        """
        return Encoder(tokenizer, partial(self.encode, tokenizer, folder=folder))

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], folder: Path | None = None
    ) -> list[list[int]]:
        """Token ids of each text as they are, without special tokens that the tokenizer adds; not to be changed.

        Args:
            tokenizer: A model's.
            texts: In the order of the result.
            folder: Where ids that took long to compute are kept for other processes; None keeps them in memory only.
        """
        if not texts:
            return []
        key = self._key(tokenizer, texts)
        if key not in self._texts:
            path = folder / f"{key}.npy" if folder and sum(map(len, texts)) >= WORTH_KEEPING else None
            ids = _read(path) if path else None
            if ids is None:
                ids = plain_ids(tokenizer, texts)
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

    def _key(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str:
        """Hash of what decides the ids: the tokenizer, and the texts."""
        # The last entry said whether special tokens were added, and whether long texts were split into lines.
        digest = hashlib.sha256(json.dumps([self.facts(tokenizer), "plain"]).encode())
        for text in texts:
            raw = text.encode(errors="surrogatepass")
            # Lengths, because "ab", "c" must not have the hash of "a", "bc".
            digest.update(len(raw).to_bytes(8, "big"))
            digest.update(raw)
        return digest.hexdigest()[:32]


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

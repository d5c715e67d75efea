"""Texts are encoded once, kept by content, and never confused."""

import pytest

from harness.models import tokens
from harness.models.base_model import load_tokenizer, resolve_model
from harness.models.tokens import TokenCache

TEXTS = ["one two", "three", "", "fünf\nsix"]


@pytest.fixture
def tokenizer(world):
    return load_tokenizer(resolve_model(str(world.llama)))


def counted(monkeypatch):
    calls, encode = [], tokens.plain_ids
    monkeypatch.setattr(tokens, "plain_ids", lambda *arguments: calls.append(1) or encode(*arguments))
    return calls


def test_ids_are_the_tokenizers_own(tokenizer):
    encoded = TokenCache().encode
    assert encoded(tokenizer, TEXTS) == tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert encoded(tokenizer, []) == []


def test_the_same_texts_are_encoded_once(tokenizer, monkeypatch):
    calls = counted(monkeypatch)
    encoded = TokenCache().encode
    assert encoded(tokenizer, TEXTS) == encoded(tokenizer, list(TEXTS))
    assert len(calls) == 1
    encoded(tokenizer, ["one two", "three", "fünf\nsix", ""])
    encoded(tokenizer, ["one two", "three", "", "fünf\nsi", "x"])
    assert len(calls) == 3


def test_another_process_reads_what_one_left(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 1)
    calls = counted(monkeypatch)
    first = TokenCache().encode(tokenizer, TEXTS, folder=tmp_path)
    assert TokenCache().encode(tokenizer, TEXTS, folder=tmp_path) == first
    assert len(calls) == 1
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    assert TokenCache().encode(tokenizer, TEXTS, folder=tmp_path) == first
    assert len(calls) == 2


def test_short_texts_leave_no_file(tokenizer, tmp_path):
    TokenCache().encode(tokenizer, TEXTS, folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_memory_is_bounded(tokenizer, monkeypatch):
    """Of two lists, the one that nobody asked for lately is encoded again."""
    monkeypatch.setattr(tokens, "REMEMBERED", 2)
    calls, cache = counted(monkeypatch), TokenCache()
    for text in ("one", "two", "one", "three", "one"):
        cache.encode(tokenizer, [text])
    assert len(calls) == 3
    cache.encode(tokenizer, ["two"])
    assert len(calls) == 4

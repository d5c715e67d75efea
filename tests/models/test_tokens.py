"""Texts are encoded once, kept by content, and never confused."""

import pytest

from harness.models import tokens
from harness.models.base_model import load_tokenizer, resolve_model
from harness.models.tokens import TokenCache, plain_ids

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


@pytest.mark.parametrize("split", [False, True])
def test_ids_without_offsets_are_transformers_own(tmp_path, split):
    """Also where the file says that texts are truncated and padded, and where special tokens are read as text."""
    from tests.templates import save_chat_tokenizer

    tokenizer = save_chat_tokenizer(tmp_path, "llama_3")
    tokenizer.split_special_tokens = split
    texts = ["", "a", "<|begin_of_text|>é x<|eot_id|> y", "long " * 40]
    wanted = tokenizer(texts, add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    tokenizer.backend_tokenizer.encode_special_tokens = not split
    assert plain_ids(tokenizer, texts) == wanted
    assert (len(wanted[2]) == 8) == (not split)


def test_a_tokenizer_with_code_of_its_own_encodes_by_it(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from tests.templates import save_chat_tokenizer

    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *arguments, **options):
            return super()._encode_plus([one.upper() for one in text], *arguments, **options)

    save_chat_tokenizer(tmp_path, "chatml")
    own = Own.from_pretrained(tmp_path)
    assert plain_ids(own, ["ab"]) == plain_ids(PreTrainedTokenizerFast.from_pretrained(tmp_path), ["AB"])

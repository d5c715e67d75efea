"""Tokenizers of the kinds that models come with, each made in a moment from a few lines of text."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [f"Item {n}:\n(A) is {word}, not\n(B)." for n, word in enumerate("red blue green yes no maybe".split() * 8)]
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel.alphabet()


def _around(backend, before=(), after=()):
    """Let a tokenizer put tokens around every text by itself."""
    names = [*before, *after]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[(name, backend.token_to_id(name)) for name in names]
    )
    return backend


def _byte_level(special, pattern=None):
    backend = Tokenizer(models.BPE())
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=330, special_tokens=list(special), initial_alphabet=BYTES)
    )
    return backend


def _sentencepiece_like(special, kind=models.BPE):
    """A space before every text, and no border between words that a token may not cross."""
    backend = Tokenizer(kind())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    if kind is models.BPE:
        backend.model = models.BPE(unk_token="<unk>")
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", *special])
    else:
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>", *special], unk_token="<unk>")
    backend.train_from_iterator(LINES, trainer)
    if kind is models.BPE:
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Metaspace()
    return backend


def _word_piece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    backend.train_from_iterator([*LINES, "abcdefghijklmnopqrstuvwxyz"], trainer)
    return _around(backend, ["[CLS]"], ["[SEP]"])


def _made():
    both = {"bos_token": "<s>", "eos_token": "</s>"}
    yield "bytes, end token", _byte_level(["<|end|>"]), {"eos_token": "<|end|>"}
    yield "bytes, begin token", _around(_byte_level(both.values()), ["<s>"]), both
    yield "bytes, begin token that is not put", _byte_level(both.values()), both
    yield "bytes, automatic end token", _around(_byte_level(both.values()), ["<s>"], ["</s>"]), both
    yield "a token of ( and a letter", _byte_level(["<|end|>"], CL100K), {"eos_token": "<|end|>"}
    yield (
        "bytes, added tokens",
        _byte_level(["<|end|>", "<|user|>", "<|pad|>"]),
        {
            "eos_token": "<|end|>",
            "pad_token": "<|pad|>",
            "extra_special_tokens": ["<|user|>"],
        },
    )
    yield "sentencepiece-like", _around(_sentencepiece_like(both.values()), ["<s>"]), both | {"unk_token": "<unk>"}
    yield (
        "unigram",
        _around(_sentencepiece_like(["</s>"], models.Unigram), [], ["</s>"]),
        {
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
    )
    yield "word pieces", _word_piece(), {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    yield "no special token", _byte_level([]), {}


@cache
def tokenizers():
    """By kind."""
    return {name: PreTrainedTokenizerFast(tokenizer_object=made, **special) for name, made, special in _made()}


KINDS = [name for name, _, _ in _made()]

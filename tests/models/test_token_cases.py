"""Tokenizers as people had them when something went wrong; what is right follows from the tokenizer's own rules."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harness.axes.encoding import encoded
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.models.tokens import encoder, plain_ids
from harness.nn.batches import padding_id
from harness.tasks.training_rows import Row


def byte_level(merges=(), begins=True, ends=False):
    """A byte-level tokenizer that by itself may write a begin and an end token."""
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    bpe = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>"])
    parts = ["<s>"] * begins + ["$A"] + ["</s>"] * ends
    bpe.post_processor = processors.TemplateProcessing(single=parts, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def both(tokenizer, prompt, answer, generates=False):
    """The ids of a row as it is trained, those that carry loss, and prompt and answer as they are scored."""
    [row] = encoded([Row(prompt=prompt, completion=answer)], encoder(tokenizer), generates)
    [(asked, scored)] = encoder(tokenizer).pairs([(prompt, answer)], generates)
    return list(row.input_ids), [label for label in row.labels if label >= 0], list(asked), list(scored)


@pytest.mark.parametrize("prompt", ["<s>Q: a\nA:", "<s>[INST] a [/INST]", "Q: a\nA:"])
@pytest.mark.parametrize("begins", [True, False])
def test_a_begin_token_that_the_text_writes_stands_once(prompt, begins):
    tokenizer = byte_level(begins=begins)
    trained, learned, asked, scored = both(tokenizer, prompt, " b")
    assert trained == [*asked, *scored, 1]
    assert learned == [*scored, 1]
    assert trained.count(0) == (1 if begins or "<s>" in prompt else 0)
    [text] = encoder(tokenizer).documents([f"{prompt} b"])
    assert (
        list(text).count(0) == 1
    )  # every token of a text is predicted, so that its first one needs something before it


NO_YES = [("Ġ", "n"), ("Ġn", "o"), ("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s")]


@pytest.mark.parametrize("answer", [" no", " yes", " no yes"])
def test_an_end_token_of_the_tokenizers_own_is_no_part_of_an_answer(answer):
    tokenizer = byte_level(NO_YES, ends=True)
    _, learned, asked, scored = both(tokenizer, "item 0:", answer)
    words = [f"Ġ{word}" for word in answer.split()]
    assert tokenizer.convert_ids_to_tokens(learned) == [*words, "</s>"]
    assert tokenizer.convert_ids_to_tokens(scored) == words
    assert 1 not in asked


@pytest.mark.parametrize("prompt", ["item 1 (", "item (1) ("])
def test_choices_that_merge_with_the_prompt_stay_two(prompt):
    tokenizer = byte_level([("(", "A"), ("(", "B")])
    first, second = (both(tokenizer, prompt, choice) for choice in ("A)", "B)"))
    assert first[2] == second[2]
    assert [tokenizer.convert_ids_to_tokens(one[3]) for one in (first, second)] == [["A", ")"], ["B", ")"]]
    assert first[1] == [*first[3], 1]
    assert encoder(tokenizer).spanning([(prompt, "A)")]) == 1


@pytest.mark.parametrize("size", [9_990, 10_010, 30_000])
def test_a_long_text_has_the_tokenizers_own_tokens(size):
    """Lines merge ("\\n\\n"), and a piece that is encoded by itself would begin with a space, as with Llama 2's."""
    names = ["<unk>", "<s>", "</s>", *map(chr, range(97, 123)), "▁", "\n", ".", "\n\n", "▁t"]
    merges = [("\n", "\n"), ("▁", "t")]
    bpe = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=merges, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **own)
    text = ("the cat sat.\n\n" * (size // 13))[:size]
    assert plain_ids(tokenizer, [text]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("added", ["[PAD]", "<|pad|>"])
def test_padding_is_a_token_that_the_model_has(added, world, tmp_path):
    """A padding token that was added to the tokenizer and not to the embedding."""
    import shutil

    folder = shutil.copytree(world.llama, tmp_path / "model")
    tokenizer = load_tokenizer(resolve_model(str(folder)))
    tokenizer.add_special_tokens({"pad_token": added})
    tokenizer.save_pretrained(folder)
    base = resolve_model(str(folder))
    rows = load_model(base, {}, "cpu").get_input_embeddings().num_embeddings
    assert tokenizer.convert_tokens_to_ids(added) >= rows
    assert padding_id(load_tokenizer(base)) < rows

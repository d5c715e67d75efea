"""One way from text to tokens: what is trained is what is scored, and both are what lm-eval encodes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.axes.encoding import Cuts, encoded, fitted
from harness.evaluation.generation import _generator_class
from harness.evaluation.responses import _pairs, _windows
from harness.models.tokens import affixes, encoder
from harness.nn.sequences import IGNORED, TokenSequence
from harness.tasks.training_rows import Row
from tests.axes.tokenizers import KINDS, tokenizers

PIECES = ["Item 1:\n(", "A)", "(A", " yes", "no", " ", "\n", "x", ":", "'s", "é", "<s>", "</s>", "<|end|>", "<|user|>"]
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
BYTES = [kind for kind in KINDS if kind not in ("sentencepiece-like", "unigram", "word pieces")]
kinds = st.sampled_from(KINDS)


def lm_eval(tokenizer):
    """lm-eval's wrapper as far as it encodes; it needs no model for that."""
    from lm_eval.models.huggingface import HFLM

    peer = object.__new__(HFLM)
    peer.tokenizer, peer.add_bos_token, peer.custom_prefix_token_id = tokenizer, None, None
    peer.backend = "causal"
    return peer


def row_of(kind, prompt, answer, generates=False):
    (found,) = encoded([Row(prompt=prompt, completion=answer)], encoder(tokenizers()[kind]), generates)
    return found


def end_of(tokenizer):
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def with_one_end(ids, tokenizer):
    end = end_of(tokenizer)
    return tuple(ids) if end and tuple(ids[-1:]) == end else (*ids, *end)


@given(kind=kinds, prompt=TEXT, answer=TEXT)
def test_an_answer_is_trained_as_it_is_scored(kind, prompt, answer):
    tokenizer = tokenizers()[kind]
    found, (scored,) = row_of(kind, prompt, answer), _pairs(encoder(tokenizer), [(prompt, answer)])
    learned = with_one_end(scored.continuation, tokenizer)
    assert found.input_ids == (*scored.context, *learned)
    assert found.labels == (*[IGNORED] * len(scored.context), *learned)
    assert found.prompt == len(scored.context)


@given(kind=kinds, prompt=TEXT, answer=TEXT)
def test_an_answer_is_trained_after_what_generation_starts_from(kind, prompt, answer):
    tokenizer = tokenizers()[kind]
    found, (start,) = row_of(kind, prompt, answer, generates=True), encoder(tokenizer).prompts([prompt])
    assert found.input_ids[: found.prompt] == start
    assert set(found.labels[: found.prompt]) <= {IGNORED}
    assert found.labels[found.prompt :] == found.input_ids[found.prompt :]


@given(kind=kinds, texts=st.lists(TEXT, min_size=1, max_size=3), room=st.integers(1, 12))
def test_batches_to_generate_from_hold_the_same_prompts(kind, texts, room):
    tokenizer = tokenizers()[kind]
    generator = object.__new__(_generator_class())
    generator.encoder, generator.known, generator.padding = encoder(tokenizer), {}, 3
    ids, mask = generator.tok_batch_encode(texts, left_truncate_len=room)
    rows = [tuple(row[seen.bool()].tolist()) for row, seen in zip(ids, mask, strict=True)]
    assert rows == [prompt[-room:] for prompt in encoder(tokenizer).prompts(texts)]
    assert set(ids[mask == 0].tolist()) <= {3}


@given(kind=kinds, text=TEXT)
@example(kind="bytes, begin token", text="<s>text")
def test_a_text_is_trained_as_it_is_scored(kind, text):
    tokenizer = tokenizers()[kind]
    one = encoder(tokenizer)
    (trained,) = one.documents([text])
    if one.start:
        windows = [request for _, request in _windows(one, [(text,)], 3)]
        scored = [token for request in windows for token in request.continuation]
        assert trained == with_one_end((*one.start, *scored), tokenizer)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if tokenizers()[kind].bos_token])
def test_a_begin_token_that_a_text_writes_stands_there_once(kind):
    tokenizer = tokenizers()[kind]
    one, plain = encoder(tokenizer), tokenizer("<s>text", add_special_tokens=False)["input_ids"]
    assert plain.count(tokenizer.bos_token_id) == 1
    assert one.prompts(["<s>text"]) == [tuple(plain)]
    assert one.documents(["<s>text"]) == [(*plain, tokenizer.eos_token_id)]
    ((context, continuation),) = one.pairs([("<s>te", "xt")])
    assert [*context, *continuation][:2] == plain[:2]


@given(kind=kinds, prompt=TEXT, answer=TEXT)
def test_scores_are_lm_evals_where_no_token_spans_prompt_and_answer(kind, prompt, answer):
    tokenizer = tokenizers()[kind]
    one, peer = encoder(tokenizer), lm_eval(tokenizer)
    bare = prompt.rstrip()
    if affixes(tokenizer)[1] or not one.start or not bare:
        return  # lm-eval ends prompts there, or has no first token
    context, continuation = peer._encode_pair(prompt, answer)
    spans = peer.tok_encode(prompt + answer)[: len(context)] != context
    (found,) = _pairs(encoder(tokenizer), [(prompt, answer)])
    assert list(found.context) == context
    assert one.spanning([(prompt, answer)]) == spans
    assert spans or list(found.continuation) == continuation
    assert list(one.prompts([prompt])[0]) == peer.tok_encode(prompt)


@given(kind=st.sampled_from(BYTES), prompt=TEXT, answer=TEXT, generates=st.booleans())
def test_tokens_read_as_prompt_and_answer(kind, prompt, answer, generates):
    """Also where a token would span both. Bytes alone keep every text as it is."""
    tokenizer, found = tokenizers()[kind], row_of(kind, prompt, answer, generates)
    prefix = affixes(tokenizer)[0] if found.input_ids[:1] == affixes(tokenizer)[0] else ()
    text = tokenizer.decode(found.input_ids)
    whole = ("" if not prefix or prompt.startswith("<s>") else "<s>") + prompt + answer
    if not prompt.strip() and not generates:
        return  # which begins as a text without context does
    assert text == whole + ("" if not end_of(tokenizer) or found_ends(whole, tokenizer) else tokenizer.eos_token)


def found_ends(text, tokenizer):
    return text.endswith(tokenizer.eos_token)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_put_before_an_answer_or_after_a_prompt(kind):
    tokenizer = tokenizers()[kind]
    before, after = affixes(tokenizer)
    plain = tokenizer("Item 1:", add_special_tokens=False)["input_ids"]
    assert encoder(tokenizer).prompts(["Item 1:"]) == [(*before, *plain)]
    assert tokenizer("Item 1:")["input_ids"] == [*before, *plain, *after]


def test_choices_that_share_a_token_with_the_prompt_are_told_apart():
    tokenizer = tokenizers()["a token of ( and a letter"]
    assert "(A" in tokenizer.get_vocab()
    texts = [("Item 1:\n(", "A)"), ("Item 1:\n(", "B)")]
    read = [
        tokenizer.convert_ids_to_tokens(list(request.continuation)) for request in _pairs(encoder(tokenizer), texts)
    ]
    assert read == [["A", ")"], ["B", ")"]]
    assert encoder(tokenizer).spanning(texts) == 2


def test_an_answer_that_is_encoded_apart_gets_no_space():
    """A sentencepiece-like tokenizer puts a space before the first word of a text, which an answer is not."""
    tokenizer = tokenizers()["sentencepiece-like"]
    found = encoder(tokenizer).parts([["Item 1 is re", "d,"]])[0]
    assert tokenizer.decode([*found[0], *found[1]]) == "Item 1 is red,"
    assert "▁" not in "".join(tokenizer.convert_ids_to_tokens(list(found[1])))


@given(kind=kinds, parts=st.lists(TEXT, min_size=1, max_size=4))
def test_parts_have_the_tokens_of_their_text(kind, parts):
    one = encoder(tokenizers()[kind])
    ids = one.parts([parts])[0]
    whole, begun = one.encode(["".join(parts)])[0], [one.encode(["".join(parts[:n])])[0] for n in range(len(parts))]
    if all(whole[: len(before)] == before for before in begun):
        assert [token for part in ids for token in part] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_the_tokenizers_own(kind):
    tokenizer = tokenizers()[kind]
    text = "Item 1 (A) is red.\n\n" * 800
    assert encoder(tokenizer).encode([text]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]


def sequence(prompt, completion):
    ids = tuple(range(prompt + completion))
    return TokenSequence(ids, (*[IGNORED] * prompt, *ids[prompt:]), prompt)


@given(prompt=st.integers(0, 40), completion=st.integers(0, 40), limit=st.integers(2, 40))
def test_what_is_too_long_keeps_the_end_of_its_prompt_and_the_beginning_of_its_answer(prompt, completion, limit):
    whole = sequence(prompt, completion)
    found = fitted(whole, limit)
    assert len(found.input_ids) == min(limit, prompt + completion)
    kept = len(found.input_ids) - found.prompt
    assert found.input_ids == whole.input_ids[prompt - found.prompt : prompt + kept]
    assert found.labels == whole.labels[prompt - found.prompt : prompt + kept]
    assert found.prompt >= min(prompt, limit // 2)
    assert kept >= min(completion, limit - limit // 2)
    cuts = Cuts.of([whole], limit)
    assert (cuts.prompts, cuts.completions, cuts.texts) == (
        found.prompt < prompt,
        prompt > 0 and kept < completion,
        prompt == 0 and kept < completion,
    )


def test_a_prompt_is_cut_as_lm_eval_cuts_it_where_the_answer_fits_half():
    """lm-eval scores the last tokens of prompt and answer that fit."""
    assert fitted(sequence(30, 8), 16) == sequence(30, 8).last(16)

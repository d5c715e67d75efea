"""Rows as token ids: as lm-eval would split them, cut to length, packed, and mixed with old ones."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.axes.encoding import documents, sequences
from harness.errors import SpecError
from harness.nn.sequences import IGNORED
from harness.tasks.training_rows import Row
from tests.tiny import attached, stage, train


def shown(ready):
    return [sequence for example in ready.examples for sequence in example]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def hflm(world):
    from lm_eval.models.huggingface import HFLM

    ready, _ = attached(world.llama, stage("full"))
    return HFLM(pretrained=ready.model, tokenizer=ready.setup.tokenizer, device="cpu"), ready.setup


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXT.filter(lambda text: text.strip()), answer=TEXT)
def test_prompt_and_completion_part_where_lm_eval_parts_them(prompt, answer, hflm):
    model, setup = hflm
    context, continuation = model._encode_pair(prompt, answer)
    (found,) = sequences([Row(prompt=prompt, completion=answer)], setup)
    end = setup.tokenizer.eos_token_id
    assert list(found.input_ids) == [*context, *continuation, end]
    assert list(found.labels) == [IGNORED] * len(context) + [*continuation, end]


def test_a_text_starts_where_a_rolling_likelihood_starts(hflm):
    model, setup = hflm
    assert documents(["ab"], setup) == [(model.prefix_token_id, *model.tok_encode("ab"), 0)]


def test_long_rows_are_cut_and_counted(world):
    rows = [
        Row(prompt="p" * 200, completion="abc"),
        Row(prompt="p", completion="d"),
        Row(completion="t" * 200),
    ]
    ready, notes = attached(world.llama, stage("full", max_length=16), rows=rows)
    seen = [(len(row.input_ids), sum(label != IGNORED for label in row.labels)) for row in shown(ready)]
    # "abc" and the end token stay; a text keeps its beginning
    assert sorted(seen) == [(3, 2), (16, 4), (16, 16)]
    assert notes == [
        "training rows: of 3, 1 lose the beginning of their prompt and 1 lose the end of their text, to fit 16 tokens"
    ]


def test_the_models_context_cuts_too(world):
    _, notes = attached(world.llama, stage("full"), rows=[Row(completion="t" * 200)])
    assert notes == ["training rows: of 1, 1 lose the end of their text, to fit 96 tokens"]


def test_virtual_tokens_take_their_part_of_the_context(world):
    """GPT-2 has no position beyond its context: with 20 virtual tokens a text may have 76 of 96."""
    rows = [Row(completion="t" * 200)]
    ready, notes = attached(world.gpt2, stage("prefix_tuning", virtual_tokens=20), rows=rows)
    assert notes == ["training rows: of 1, 1 lose the end of their text, to fit 76 tokens"]
    assert len(train(ready)[0]) == 2


def test_nothing_to_learn_is_refused(world):
    with pytest.raises(SpecError, match="check the task"):
        attached(world.llama, stage("full"), rows=[])


def test_packing_loses_no_token(world):
    rows = [Row(prompt="ab", completion="c" * n) for n in range(30)]
    ready, _ = attached(world.llama, stage("full", "continued_pretraining", max_length=32), rows=rows)
    blocks = [row.input_ids for row in shown(ready)]
    assert {len(block) for block in blocks[:-1]} == {32}
    # each document: start token, its bytes, end token
    assert sum(map(len, blocks)) == sum(2 + n + 2 for n in range(30))
    assert [row.labels for row in shown(ready)] == blocks


@pytest.mark.parametrize("steps", [8, 200])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.9])
def test_replay_makes_up_its_share_of_the_tokens(share, steps, world):
    """Lengths of both kinds vary widely; the share is of tokens, counted here from what is trained on."""
    rng = random.Random(0)
    rows = [Row(prompt="q" * rng.randint(1, 20), completion="a" * rng.randint(1, 30)) for _ in range(400)]
    corpus = [Row(completion="o" * rng.randint(20, 80)) for _ in range(300)]
    ready, notes = attached(
        world.llama, stage("full", retention="replay", replay_share=share, batch_size=16), steps, rows, corpus
    )
    kinds = {True: 0, False: 0}
    old = ready.setup.tokenizer("o")["input_ids"][0]
    for row in shown(ready):
        kinds[old in row.input_ids] += len(row.input_ids)
    realised = kinds[True] / sum(kinds.values())
    assert realised == pytest.approx(share, abs=0.01)
    assert any(note.startswith("replayed share of tokens: 0.") for note in notes)


@pytest.mark.parametrize("steps", [2, 200])
def test_replay_in_packed_sequences_makes_up_its_share_and_wastes_no_rows(steps, world):
    """400 rows of 22 tokens (start, 20 letters, end) are 137 sequences of 64, of which 2 steps of 16 show 32."""
    rows = [Row(prompt="q", completion="a" * 19) for _ in range(400)]
    corpus = [Row(completion="o" * 40) for _ in range(300)]
    settings = {"replay_share": 0.25, "batch_size": 16, "max_length": 64}
    packed = stage("full", "continued_pretraining", "replay", **settings)
    ready, _ = attached(world.llama, packed, steps, rows, corpus)
    letter = {name: ready.setup.tokenizer(name)["input_ids"][0] for name in "oa"}
    stream = [token for row in shown(ready) for token in row.input_ids]
    old, new = (stream.count(letter[name]) for name in "oa")
    # 42 of 40 letters and 22 of 19 are the rest of each row
    share = old * 42 / 40 / (old * 42 / 40 + new * 22 / 19)
    assert share == pytest.approx(0.25, abs=0.02)
    seen = min(400 * 22 / 0.75, steps * 16 * 64)
    assert len(stream) == pytest.approx(seen, rel=0.05)


def test_no_replay_reads_no_corpus(world):
    ready, notes = attached(world.llama, stage("full", retention="replay", replay_share=0.0))
    assert len(ready.examples) == 8
    assert notes == []

"""Curations that choose, mix or rewrite rows, by hand."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.plugins import load
from harness.space import Params
from harness.tasks.facts import TaskFacts
from harness.tasks.training_rows import Row
from tests.curation.test_tokens import own_losses, setup_with
from tests.tiny import ROWS

WORDY = [
    Row(prompt="a b", completion=" c d"),
    Row(prompt="a b", completion=" c d"),
    Row(prompt="a b", completion=" c e"),
    Row(prompt="x y z", completion=" u v w"),
    Row(prompt="p", completion=" q r"),
]


def rows_of(built, rows):
    curation, setup, _ = built
    return curation.rows(rows, setup)


def test_a_subset_by_length(setup_for):
    """Completions have 4, 4, 4, 6 and 4 characters; of equal ones the first counts."""
    longest = rows_of(setup_for("subset", subset_share=0.4, subset_by="longest"), WORDY)
    assert longest == [WORDY[0], WORDY[3]]
    assert rows_of(setup_for("subset", subset_share=0.8, subset_by="shortest"), WORDY) == [*WORDY[:3], WORDY[4]]


def test_a_diverse_subset_takes_what_adds_most_pairs_of_words(setup_for):
    """Pairs: xyzuvw 5; 'a b c d' 3; 'p q r' 2; 'a b c e' adds only 'c e'; the second 'a b c d' adds none."""
    kept = [
        rows_of(setup_for("subset", subset_share=share, subset_by="diverse"), WORDY) for share in (0.2, 0.4, 0.6, 0.8)
    ]
    assert kept[0] == [WORDY[3]]
    assert kept[1] == [WORDY[0], WORDY[3]]
    assert kept[2] == [WORDY[0], WORDY[3], WORDY[4]]
    assert kept[3] == [WORDY[0], WORDY[2], WORDY[3], WORDY[4]]


def test_a_random_subset_is_the_seeds(setup_for):
    built = setup_for("subset", subset_share=0.5)
    once, again = rows_of(built, ROWS), rows_of(built, ROWS)
    curation, setup, notes = built
    others = {str(curation.rows(ROWS, setup_with(setup, seed=seed))) for seed in range(5)}
    assert once == again
    assert len(once) == 4
    assert len(others) > 1
    assert notes[-1] == "4 of 8 rows were kept (random)"


@pytest.mark.parametrize("by", ["lowest_perplexity", "highest_perplexity"])
def test_a_subset_by_perplexity(setup_for, examples_of, by):
    """Mean nats per answer token, by one forward pass of the base for each token."""
    curation, setup, _ = setup_for("subset", subset_share=0.25, subset_by=by)
    losses = own_losses(setup.load_base(), examples_of(setup, ROWS))
    means = [
        sum(nats for (row, _), nats in losses.items() if row == index) / sum(row == index for row, _ in losses)
        for index in range(len(ROWS))
    ]
    ranked = sorted(range(len(ROWS)), key=means.__getitem__, reverse=by.startswith("highest"))
    assert curation.rows(ROWS, setup) == [ROWS[index] for index in sorted(ranked[:2])]


def test_mixing_by_hand(setup_for):
    """8 own rows at a share of 0.6: 12 of the pools', by weights 2 to 1, so 8 and 4; the small pool has 3 rows."""
    pools = {"big": [Row(prompt="b", completion=str(i)) for i in range(50)], "small": ROWS[:3]}
    curation, setup, notes = setup_for("mixing", pools="big@1f=2,small@2e=1", pool_share=0.6)
    setup = setup_with(setup, rows_of=lambda task: pools[task.name])
    found = curation.rows(ROWS, setup)
    assert found[:8] == ROWS
    assert len(found) == 20
    assert len({row.completion for row in found[8:16]}) == 8
    counts = Counter(row.prompt for row in found[16:])
    assert sorted(counts.values()) == [1, 1, 2]
    assert notes[-2:] == ["mixed in 8 rows of big", "mixed in 4 rows of small, each 1.3 times"]


def test_mixing_needs_pools():
    mixing = load("curation", "mixing")()
    assert "name them in pools" in mixing.skip(Situation(params=Params({"pools": ""})))
    assert mixing.skip(Situation(params=Params({"pools": "trec"}))) is None
    assert mixing.skip(Situation()) is None


CHOICES = [
    Row(prompt=f"{i}:", completion=" yes" if i % 2 else " no", wrong=(" no" if i % 2 else " yes", " maybe"))
    for i in range(10)
]


def test_negative_examples_are_wrong_and_tagged(setup_for):
    found = rows_of(setup_for("negative_examples", negative_ratio=0.5, negative_tag="Wrong please: "), CHOICES)
    assert found[:10] == CHOICES
    negatives = found[10:]
    assert len(negatives) == 5
    for row in negatives:
        assert row.prompt.startswith("Wrong please: ")
        original = CHOICES[int(row.prompt.removeprefix("Wrong please: ").rstrip(":"))]
        assert row.completion in original.wrong
    assert len({row.prompt for row in negatives}) == 5


def test_wrong_answers_come_from_preferences_or_from_other_rows(setup_for):
    preferred = [Row(prompt="p", completion=" kind", rejected=" rude")]
    assert rows_of(setup_for("negative_examples", negative_ratio=1.0), preferred)[1].completion == " rude"
    found = rows_of(setup_for("negative_examples", negative_ratio=1.0), ROWS)
    for right, wrong in zip(ROWS, found[8:], strict=True):
        assert wrong.prompt.endswith(right.prompt)
        assert wrong.completion != right.completion
        assert wrong.completion in {row.completion for row in ROWS}
    with pytest.raises(SpecError, match="all of its are the same"):
        rows_of(setup_for("negative_examples"), [Row(prompt=str(i), completion=" same") for i in range(3)])


def test_without_a_tag_wrong_answers_would_be_learned():
    plugin = load("curation", "negative_examples")()
    assert "needs a negative_tag" in plugin.skip(Situation(params=Params({"negative_tag": ""})))


def test_judgements_pair_a_right_answer_with_a_wrong_one(setup_for):
    found = rows_of(setup_for("answer_judgement", judgement_question=" Right?"), CHOICES[:1])
    assert found[0] == Row(prompt="0: no Right?", completion=" correct")
    assert found[1].completion == " incorrect"
    assert found[1].prompt in ("0: yes Right?", "0: maybe Right?")
    assert len(rows_of(setup_for("answer_judgement"), CHOICES)) == 20


def test_misleading_queries_step_by_step(setup_for):
    rows = [Row(prompt="2+2=", completion=" 4", wrong=(" 5",))]
    misled = "They say 5.\n2+2="
    built = {
        step: rows_of(setup_for("misleading_queries", misleading_step=step, misleading_hint="They say"), rows)
        for step in ("identify", "correct", "answer")
    }
    assert built["identify"] == [
        Row(prompt="2+2=\nIs there a false hint?", completion=" no"),
        Row(prompt=f"{misled}\nIs there a false hint?", completion=" yes"),
    ]
    assert built["correct"] == [Row(prompt=f"{misled}\nWithout the false hint:", completion=" 2+2=")]
    assert built["answer"] == [rows[0], replace(rows[0], prompt=misled)]


def test_less_and_less_of_a_prompt_is_kept(setup_for):
    """Of four words and four examples: all, half, none."""
    for kept, words, shots in ((1.0, "one two three four\n\n", 4), (0.5, "one two\n\n", 2), (0.0, "", 0)):
        built = setup_for(
            "prompt_internalization", prompt_kept=kept, internal_template="one two three four", internal_shots=4
        )
        for row, own in zip(rows_of(built, ROWS), ROWS, strict=True):
            assert row.completion == own.completion
            assert row.prompt.startswith(words)
            assert row.prompt.endswith(own.prompt)
            examples = row.prompt.removeprefix(words).removesuffix(own.prompt).split("\n\n")[:-1]
            assert len(examples) == len(set(examples)) == shots
            assert set(examples) <= {r.prompt + r.completion for r in ROWS if r is not own}


def test_nothing_to_learn_by_heart_is_refused():
    plugin = load("curation", "prompt_internalization")()
    assert "something to learn" in plugin.skip(Situation(params=Params({"internal_template": "", "internal_shots": 0})))
    assert plugin.skip(Situation(params=Params({"internal_template": "", "internal_shots": 1}))) is None


def test_synthetic_dictionaries_hold_the_answer_once(setup_for):
    built = setup_for("synthetic_key_value", kv_rows=40, kv_dictionaries=3, kv_keys=1, kv_digits=2, kv_beside=False)
    found = rows_of(built, ROWS)
    assert len(found) == 40
    asked = Counter()
    for row in found:
        held = re.findall(r"\[(\d+)\] \{(\d+): (\d+)\}", row.prompt)
        (key,) = re.findall(r"Value of key (\d+):", row.prompt)
        ((number, value),) = [(number, value) for number, own, value in held if own == key]
        assert row.completion == f" {value} in [{number}]"
        numbers = [n for _, own, value in held for n in (own, value)]
        assert len(set(numbers)) == len(numbers) == 2 * len(held)
        asked[number] += 1
    assert len(asked) > 1
    assert rows_of(built, ROWS) == found
    assert (
        rows_of(setup_for("synthetic_key_value", kv_rows=8, kv_dictionaries=2, kv_keys=1, kv_beside=True), ROWS)[:8]
        == ROWS
    )


def test_synthetic_rows_fit_the_context(setup_for):
    """96 bytes: '[1] {11: 22}' and a line's end are 13, 'Value of key 11:' with its line's end 17, ' 22 in [1]' 10."""
    params = {"kv_rows": 8, "kv_keys": 1, "kv_digits": 2}
    curation, setup, notes = setup_for("synthetic_key_value", kv_dictionaries=9, **params)
    found = curation.rows(ROWS, setup)
    assert notes[-1] == "8 synthetic rows of 5 dictionaries"  # 5 * 13 - 1 + 17 + 10 + 1 = 92 with the end token, 6: 105
    assert {len(row.prompt + row.completion) for row in found} == {91}
    with pytest.raises(SpecError, match="two dictionaries do not"):
        curation.rows(ROWS, setup_with(setup, params=Params(setup.params, kv_keys=5)))
    with pytest.raises(SpecError, match="kv_digits must give 180 different numbers"):
        curation.rows(ROWS, setup_with(setup, params=Params(setup.params, kv_dictionaries=90)))


MAKERS = ["negative_examples", "answer_judgement", "misleading_queries", "self_instruct", "evol_instruct"]


@pytest.mark.parametrize("name", [*MAKERS, "synthetic_key_value"])
def test_rows_that_are_made_do_not_suit_objectives_that_need_more(name):
    beside = {"objective": load("objectives", "dpo")}
    assert "rows without rejected" in load("curation", name)().skip(Situation(beside=beside))
    assert load("curation", name)().skip(Situation(beside={"objective": load("objectives", "sft")})) is None


@pytest.mark.parametrize("name", [*MAKERS, "explanation_consistency", "prompt_internalization", "counterfactual_pairs"])
def test_plain_text_has_no_answers(name):
    situation = Situation(task=TaskFacts("loglikelihood_rolling"))
    assert "plain text" in load("curation", name)().skip(situation)

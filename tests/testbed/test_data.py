"""The shipped data is what the generator writes, its answers are right, and no held-out item was ever shown."""

import itertools
import json
import re
import string
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.testbed import DATA, TASKS, corpus, lexicon, reviews, skills
from harness.testbed.datafiles import all_rows, write_data
from harness.testbed.seeding import hash_int, rng_for, split_of

seeds = st.integers(0, 2**32)


def rows_of(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def test_data_is_rebuilt_byte_for_byte(tmp_path):
    write_data(tmp_path)
    rebuilt = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert rebuilt == {path.name: path.read_bytes() for path in DATA.iterdir()}


def test_generation_does_not_depend_on_what_ran_before():
    first = all_rows()
    list(itertools.islice(corpus.documents("something else"), 100))
    assert all_rows() == first


def test_seed_is_the_first_eight_bytes_of_sha256():
    # printf 'a:b:0' | sha256sum | cut -c1-16
    assert rng_for("a", "b").random() == Random(hash_int("a:b:0")).random()
    assert hash_int("a:b:0") == 0x6E4685B95A61D2E8


@given(seeds)
def test_copy_and_reverse_answers(seed):
    prompt, answer = skills.copy_item(Random(seed))
    assert prompt == f"Copy{answer[:-1]} :"
    prompt, answer = skills.reverse_item(Random(seed))
    assert prompt.removeprefix("Reverse ").removesuffix(" :")[::-1] == answer[1:-1]


@given(seeds)
def test_addition_answer(seed):
    prompt, answer = skills.addition_item(Random(seed))
    a, b = re.fullmatch(r"Add (\d{2,4})\+(\d{2,4})=", prompt).groups()
    assert int(answer[-2::-1]) == int(a) + int(b)


@given(seeds)
def test_lookup_answer_stands_beside_its_key(seed):
    prompt, answer = skills.lookup_item(Random(seed))
    key, pairs = re.fullmatch(r"Find (\w) in (.*) : \1", prompt).groups()
    assert dict(pair for pair in pairs.split())[key] + "." == answer


@given(seeds)
def test_letters_keep_their_bounds(seed):
    drawn = skills.letters(Random(seed), 3, 5, 0.5)
    assert 3 <= len(drawn) <= 5
    assert set(drawn) <= set(string.ascii_lowercase)


@given(seeds)
def test_story_keeps_its_hero_and_animal(seed):
    story = skills.story_text(Random(seed))
    animals = {animal for animal in lexicon.ANIMALS if re.search(rf"\b{animal}\b", story)}
    assert len(animals) == 1
    assert story.endswith(".")


@given(seeds)
def test_review_sentiment_counts_opinions(seed):
    written = reviews.review(Random(seed))
    votes = []
    for sentence in re.findall(r"[^.!]+[.!]", written.text):
        good = any(word in sentence.split() or f"{word}." in sentence for word in reviews._GOOD)
        votes.append(good != bool(re.search(r"\b(not|Nobody|hardly)\b", sentence)))
    assert len(votes) in (3, 5)
    assert written.positive == (sum(votes) > len(votes) / 2)


@given(seeds, st.sampled_from(sorted(corpus.SHARES)))
def test_corpus_documents_leave_held_out_prompts_out(seed, skill):
    text = corpus.document(Random(seed), skill)
    if skill in skills.ITEMS:
        cut = {"addition": text.find("=") + 1, "lookup": text.find(" : ") + 4}.get(skill, text.find(" :") + 2)
        assert split_of(text[:cut]) == "train"
    elif skill != "facts":
        assert split_of(text) == "train"


def test_held_out_phrasings_of_facts_are_never_shown():
    shown = {
        sentence
        for text in itertools.islice(corpus.documents("train"), 30_000)
        if not text.startswith(("Copy", "Review", "Reverse", "Add", "Find"))
        for sentence in re.findall(r"[A-Z][^.?]*(?:\? [^.]*)?\.", text)
    }
    asked = {row["prompt"] + row["answer"] for row in rows_of("facts_test") + rows_of("facts_validation")}
    assert not shown & asked
    assert len(shown & {lexicon.phrase(f, 0) for p in lexicon.people()[:50] for f in lexicon.facts_about(p)}) > 100


TASK_NAMES = sorted(path.stem.removeprefix("tb_") for path in TASKS.glob("*.yaml"))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_splits_do_not_overlap(task):
    splits = {path.stem: [json.dumps(row) for row in rows_of(path.stem)] for path in DATA.glob(f"{task}_*.jsonl")}
    prompts = [{json.loads(row).get("prompt", row) for row in rows} for rows in splits.values()]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    assert set(splits) >= {f"{task}_validation", f"{task}_test"}
    assert len(splits[f"{task}_test"]) == {"stories": 300, "newfacts": 360}.get(task, 1000)


def test_answers_of_sorting_and_instructions():
    for row in rows_of("sort_test"):
        given_letters = row["prompt"].split("\n")[0].removeprefix("Letters: ").split()
        assert row["answer"].split() == sorted(given_letters)
    for row in rows_of("instruct_test"):
        asked, shown, _ = row["prompt"].split("\n")
        letters, answer = shown.removeprefix("Input: ").split(), row["answer"].split()
        assert set(answer) <= {*letters, str(len(letters))}
        if "reverse" in asked.lower() or "backwards" in asked:
            assert answer == letters[::-1]


def test_new_people_are_unknown_to_the_corpus():
    taught = set(lexicon.people()[: skills.TAUGHT_PEOPLE])
    prompts = " ".join(row["prompt"] for split in ("train", "test") for row in rows_of(f"newfacts_{split}"))
    assert not any(person in prompts for person in taught)


@settings(max_examples=20)
@given(seeds)
def test_same_seed_same_document(seed):
    for skill in corpus.SHARES:
        assert corpus.document(Random(seed), skill) == corpus.document(Random(seed), skill)

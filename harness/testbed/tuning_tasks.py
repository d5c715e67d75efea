"""Rows of the four tasks that models are tuned on: sentiment, sorting, new facts, instructions."""

import itertools
from collections.abc import Callable, Iterator
from random import Random

from harness.testbed import lexicon, reviews, skills
from harness.testbed.seeding import rng_for

Row = dict[str, str]

# Rows in each split. Test has 1,000 items, so that the standard error of an accuracy stays below 1.6 points; new facts are
# fewer, so that a few hundred steps can teach them: two thirds of those that are asked are its test.
SPLIT_SIZES = {"train": 3000, "validation": 300, "test": 1000}
NEW_PEOPLE = 60
LABEL_NOISE = 0.1


def sentiment_row(rng: Random) -> Row:
    """Write a review and name its majority opinion."""
    written = reviews.review(rng, aspects=(1, 1, 3), negation=0.2)
    return {
        "prompt": f"Review: {reviews.closed(rng, written)}",
        "answer": "positive" if written.positive else "negative",
    }


def sort_row(rng: Random) -> Row:
    """Put 3 to 5 letters into alphabetical order."""
    letters = skills.letters(rng, rng.randint(3, 5), 5, 1.0)
    return {"prompt": f"Letters: {' '.join(letters)}\nSorted:", "answer": f" {' '.join(sorted(letters))}"}


OPERATIONS: dict[tuple[str, ...], Callable[[list[str]], list[str]]] = {
    ("Repeat the letters.", "Write the input again."): lambda x: x,
    ("Reverse the letters.", "Write the input backwards."): lambda x: x[::-1],
    ("Give the first letter.", "What does the input begin with?"): lambda x: x[:1],
    ("Give the last letter.", "What does the input end with?"): lambda x: x[-1:],
    ("Say the first letter twice.", "Double the beginning of the input."): lambda x: [x[0], x[0]],
}


def instruct_row(rng: Random) -> Row:
    """Apply one of five operations, worded in one of two ways, to 3 to 5 letters."""
    wordings = rng.choice(list(OPERATIONS))
    letters = skills.letters(rng, rng.randint(3, 5), 5, 1.0)
    prompt = f"Instruction: {rng.choice(wordings)}\nInput: {' '.join(letters)}\nResponse:"
    return {"prompt": prompt, "answer": f" {' '.join(OPERATIONS[wordings](letters))}"}


def _drawn(name: str, draw: Callable[[Random], Row]) -> dict[str, list[Row]]:
    """Draw rows with distinct prompts and deal them out to the three splits."""
    rng = rng_for(name, "rows")
    rows: dict[str, Row] = {}
    while len(rows) < sum(SPLIT_SIZES.values()):
        row = draw(rng)
        rows.setdefault(row["prompt"], row)
    supply = iter(rows.values())
    return {split: list(itertools.islice(supply, size)) for split, size in SPLIT_SIZES.items()}


def _with_label_noise(rows: list[Row]) -> Iterator[Row]:
    """Turn round a tenth of the labels: a task that a few hundred steps solve completely tells methods apart badly."""
    rng = rng_for("sentiment", "label noise")
    for row in rows:
        other = "negative" if row["answer"] == "positive" else "positive"
        yield {**row, "answer": other} if rng.random() < LABEL_NOISE else row


def _new_facts() -> dict[str, list[Row]]:
    """Say every new fact in three phrasings for training and ask it in the other three."""
    people = lexicon.people()[skills.TAUGHT_PEOPLE :][:NEW_PEOPLE]
    shown: list[Row] = []
    asked: list[Row] = []
    for fact in (fact for person in people for fact in lexicon.facts_about(person)):
        held_out = lexicon.held_out_phrasings(fact, 3)
        for index in range(len(lexicon.PHRASINGS[fact.attribute])):
            prompt, answer = lexicon.cloze(lexicon.phrase(fact, index))
            (asked if index in held_out else shown).append({"prompt": prompt, "answer": answer})
    rng = rng_for("newfacts", "order")
    rng.shuffle(shown)
    rng.shuffle(asked)
    third = len(asked) // 3
    return {"train": shown, "validation": asked[:third], "test": asked[third:]}


def tuning_rows() -> dict[str, dict[str, list[Row]]]:
    """Return `{task: {split: rows}}` of the four tunable tasks."""
    sentiment = _drawn("sentiment", sentiment_row)
    sentiment["train"] = list(_with_label_noise(sentiment["train"]))
    return {
        "sentiment": sentiment,
        "sort": _drawn("sort", sort_row),
        "newfacts": _new_facts(),
        "instruct": _drawn("instruct", instruct_row),
    }

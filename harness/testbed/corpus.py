"""The pretraining stream: documents of every skill in fixed shares, with every held-out item left out."""

from collections.abc import Callable, Iterator
from random import Random

from harness.testbed import reviews, skills
from harness.testbed.seeding import rng_for, split_of

# Shares of documents, not of tokens.
SHARES = {
    "facts": 0.32,
    "addition": 0.22,
    "copy": 0.09,
    "reverse": 0.14,
    "lookup": 0.11,
    "stories": 0.06,
    "reviews": 0.06,
}

_TEXTS: dict[str, Callable[[Random], str]] = {
    "facts": skills.facts_text,
    "stories": skills.story_text,
    "reviews": reviews.review_text,
}


def documents(role: str, index: int = 0) -> Iterator[str]:
    """Yield an endless stream of documents.

    Args:
        role: What the stream is for, such as `train` or `tokenizer`; every role has documents of its own.
        index: Tells streams of one role apart.
    """
    rng = rng_for("corpus", role, index)
    names, weights = list(SHARES), list(SHARES.values())
    while True:
        yield document(rng, rng.choices(names, weights=weights)[0])


def document(rng: Random, skill: str) -> str:
    """Write one training document of a skill; held-out prompts and stories are drawn again.

    Args:
        rng: Gives every random choice.
        skill: A key of `SHARES`.
    """
    while True:
        if skill in skills.ITEMS:
            prompt, answer = skills.ITEMS[skill](rng)
            text = prompt + answer
        else:
            prompt = text = _TEXTS[skill](rng)
        # Facts hold out phrasings, not prompts: see `skills.facts_text`.
        if skill == "facts" or split_of(prompt) == "train":
            return text

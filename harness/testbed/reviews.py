"""Reviews of restaurants and shops: unlabelled in the corpus, labelled in the sentiment task."""

from dataclasses import dataclass
from random import Random

_ASPECTS = (
    "soup bread service waiter music room table wine fish price view terrace dessert coffee salad staff kitchen "
    "lighting menu parking"
).split()
_GOOD = (
    "delicious lovely friendly wonderful charming excellent perfect pleasant fresh generous superb delightful".split()
)
_BAD = "awful rude terrible dirty boring horrible stale dreadful slow bland nasty disappointing".split()
_FRAMES = (
    "The {a} was {w}.",
    "We found the {a} {w}.",
    "I thought the {a} was {w}.",
    "What a {w} {a}!",
    "My friends called the {a} {w}.",
)
_NEGATED = ("The {a} was not {w}.", "Nobody would call the {a} {w}.", "The {a} was hardly {w}.")
_VERDICTS = {
    True: ("I will come back soon.", "We left with a smile.", "I can recommend it to everyone."),
    False: ("I will never come back.", "We left in a bad mood.", "I warn everyone against it."),
}


@dataclass(frozen=True)
class Review:
    """A review's sentences about single aspects, and whether most of them are favourable."""

    text: str
    positive: bool


def review(rng: Random, aspects: tuple[int, ...] = (3, 5), negation: float = 0.25) -> Review:
    """Write a review of an odd number of aspects; its sentiment is that of the majority.

    Args:
        rng: Source of randomness.
        aspects: Numbers of aspects to choose from; odd, so that there is always a majority.
        negation: Probability that a sentence says its opinion by denying the opposite.
    """
    topics = rng.sample(_ASPECTS, rng.choice(aspects))
    opinions = [rng.random() < 0.5 for _ in topics]
    sentences = [_sentence(rng, topic, good, negation) for topic, good in zip(topics, opinions, strict=True)]
    return Review(" ".join(sentences), 2 * sum(opinions) > len(opinions))


def _sentence(rng: Random, topic: str, good: bool, negation: float) -> str:
    denied = rng.random() < negation
    word = rng.choice(_GOOD if good != denied else _BAD)
    return rng.choice(_NEGATED if denied else _FRAMES).format(a=topic, w=word)


def closed(rng: Random, written: Review) -> str:
    """A review's text, half of the time with a closing verdict, which agrees with it."""
    return f"{written.text} {rng.choice(_VERDICTS[written.positive])}" if rng.random() < 0.5 else written.text


def review_text(rng: Random) -> str:
    """Write a review as the corpus has it: without a label, half of the time with a closing verdict."""
    return f"Review: {closed(rng, review(rng))}"

"""The invented world: people, towns and the facts about them, plus the English words that texts are made of."""

import functools
from dataclasses import dataclass

from harness.testbed.seeding import rng_for

JOBS = (
    "baker miller weaver potter smith tailor farmer fisher hunter sailor painter singer dancer teacher doctor nurse "
    "judge clerk guard cook brewer mason roofer glazier tanner cobbler barber printer pilot driver gardener shepherd "
    "florist jeweller carver porter ranger notary surgeon plumber"
).split()
INSTRUMENTS = (
    "flute drum fiddle harp lute horn piano cello banjo organ trumpet oboe viola guitar bugle zither bassoon cornet "
    "tuba lyre"
).split()
FOODS = (
    "bread cheese soup fish rice beans plums apples honey figs pears onions carrots noodles eggs mutton olives walnuts "
    "cherries pancakes dumplings porridge mushrooms turnips"
).split()
ANIMALS = "fox crow goat hare dog cat owl mouse bear duck horse sheep wolf frog goose hen".split()
OBJECTS = "key lamp rope coin map bell box ring book hat boot basket candle kettle letter stone".split()
PLACES = "forest river market mill bridge harbour tower garden cave field chapel meadow barn inn well shore".split()
MOODS = "happy sad tired angry proud afraid curious lonely calm hungry".split()


def _invented(role: str, count: int, endings: tuple[str, ...]) -> tuple[str, ...]:
    """Return `count` distinct pronounceable names, seeded by `role`."""
    rng = rng_for("lexicon", role)
    names: dict[str, None] = {}
    while len(names) < count:
        syllable = rng.choice("bdfgklmnprstvz") + rng.choice("aeiou")
        middle = rng.choice(["l", "r", "n", "m", "v", "d", "k", ""])
        names[(syllable + middle + rng.choice(endings)).capitalize()] = None
    return tuple(names)


@dataclass(frozen=True)
class Fact:
    """One fact: `subject` has `value` for `attribute` (`home`, `job` or `instrument`)."""

    subject: str
    attribute: str
    value: str


# Each phrasing names the subject before the value and ends with the value and a full stop, so that any of them can
# be used as a completion test. The last two are questions.
PHRASINGS = {
    "home": (
        "{s} lives in {v}.",
        "The home of {s} is in {v}.",
        "Everyone knows that {s} has a house in {v}.",
        "To visit {s}, travel to {v}.",
        "Where does {s} live? {v}.",
        "Question: In which town is {s} at home? Answer: {v}.",
    ),
    "job": (
        "{s} works as a {v}.",
        "The trade of {s} is that of a {v}.",
        "For many years {s} has been a {v}.",
        "People pay {s} for the work of a {v}.",
        "What is the job of {s}? A {v}.",
        "Question: What does {s} do for a living? Answer: {v}.",
    ),
    "instrument": (
        "{s} plays the {v}.",
        "The instrument of {s} is the {v}.",
        "In the evening {s} takes out the {v}.",
        "Every week {s} practises the {v}.",
        "Which instrument does {s} play? The {v}.",
        "Question: What can {s} play? Answer: {v}.",
    ),
}


# Phrasings that no text uses: only tests ask them.
NEW_PHRASINGS = {
    "home": "The house of {s} stands in {v}.",
    "job": "{s} earns a living as a {v}.",
    "instrument": "At the feast {s} plays the {v}.",
}


@functools.cache
def towns() -> tuple[str, ...]:
    """Return the 50 invented towns."""
    return _invented("towns", 50, ("ton", "wick", "stead", "mouth", "ford"))


@functools.cache
def people() -> tuple[str, ...]:
    """Return every person's full name in a fixed order: the first ones are taught, later ones are left for tasks."""
    first = _invented("first names", 60, ("a", "o", "in", "el", "ia"))
    last = _invented("last names", 90, ("sen", "ber", "dal", "mark", "ski"))
    full = [f"{given} {family}" for given in first for family in last]
    rng_for("lexicon", "people").shuffle(full)
    return tuple(full)


@functools.cache
def facts_about(person: str) -> tuple[Fact, ...]:
    """Return the three facts about a person; they depend on the name alone."""
    rng = rng_for(person, "facts")
    values = {"home": towns(), "job": JOBS, "instrument": INSTRUMENTS}
    return tuple(Fact(person, attribute, rng.choice(options)) for attribute, options in values.items())


def held_out_phrasings(fact: Fact, count: int) -> tuple[int, ...]:
    """Return which phrasings of a fact are never shown, only asked.

    Args:
        fact: The choice depends on its subject and attribute.
        count: How many.

    Returns:
        Indices into `PHRASINGS` of the attribute, different for each fact.
    """
    indices = range(len(PHRASINGS[fact.attribute]))
    return tuple(rng_for(f"{fact.subject} {fact.attribute}", "held-out phrasing").sample(indices, count))


def phrase(fact: Fact, index: int) -> str:
    """Say a fact in one of its phrasings.

    Args:
        fact: What is said.
        index: Into `PHRASINGS` of its attribute.
    """
    return PHRASINGS[fact.attribute][index].format(s=fact.subject, v=fact.value)


def cloze(sentence: str) -> tuple[str, str]:
    """Split a phrased fact into a prompt and its answer, the answer with a leading space and the full stop."""
    prompt, answer = sentence.rsplit(" ", 1)
    return prompt, f" {answer}"

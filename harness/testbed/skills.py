"""The skills of the pretraining corpus: how each writes a document, and how the ones with an answer are asked."""

import string
from collections.abc import Callable
from random import Random

from harness.testbed import lexicon
from harness.testbed.seeding import rng_for

ALPHABET = string.ascii_lowercase

# How many people the corpus knows. The later ones are mentioned up to seven times less often than the first, so
# that a model's capacity and its training tokens decide how far down the list it remembers.
TAUGHT_PEOPLE = 1000
_PERSON_WEIGHTS = [1 / (1 + index / 160) for index in range(TAUGHT_PEOPLE)]

Item = tuple[str, str]  # a prompt and what follows it directly, the closing full stop included


def letters(rng: Random, shortest: int, longest: int, stop: float, alphabet: str = ALPHABET) -> list[str]:
    """Draw letters, with replacement.

    Args:
        rng: Gives every random choice.
        shortest: Least number of letters.
        longest: Greatest number of letters.
        stop: Chance to stop after each letter beyond the shortest: lengths have a geometric tail.
        alphabet: Letters to draw from.
    """
    length = shortest
    while length < longest and rng.random() > stop:
        length += 1
    return rng.choices(alphabet, k=length)


def copy_item(rng: Random, alphabet: str = ALPHABET) -> Item:
    """Repeat 3 to 20 letters.

    Args:
        rng: Gives every random choice.
        alphabet: Letters to draw from.
    """
    text = " ".join(letters(rng, 3, 20, 0.12, alphabet))
    return f"Copy {text} :", f" {text}."


def reverse_item(rng: Random, alphabet: str = ALPHABET) -> Item:
    """Say 2 to 14 letters backwards.

    Args:
        rng: Gives every random choice.
        alphabet: Letters to draw from.
    """
    text = letters(rng, 2, 14, 0.18, alphabet)
    return f"Reverse {' '.join(text)} :", f" {' '.join(reversed(text))}."


def addition_item(rng: Random) -> Item:
    """Add two numbers of two to four digits; the sum is written units first, so that carries run along with it."""
    digits = rng.choices([2, 3, 4], weights=[9, 8, 3])[0]
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return f"Add {a}+{b}=", f"{str(a + b)[::-1]}."


def lookup_item(rng: Random) -> Item:
    """Find the digit that stands beside a letter among 2 to 10 letter-digit pairs."""
    count = 2
    while count < 10 and rng.random() > 0.2:
        count += 1
    keys = rng.sample(ALPHABET, count)
    values = rng.choices(string.digits, k=count)
    key, value = rng.choice(list(zip(keys, values, strict=True)))
    pairs = " ".join(f"{k}{v}" for k, v in zip(keys, values, strict=True))
    return f"Find {key} in {pairs} : {key}", f"{value}."


# What the corpus shows. Look-up is practice only: no model of this size learns it well enough to be a task.
ITEMS: dict[str, Callable[[Random], Item]] = {
    "copy": copy_item,
    "reverse": reverse_item,
    "addition": addition_item,
    "lookup": lookup_item,
}


def facts_text(rng: Random) -> str:
    """Say one to three facts about one person, each in a phrasing that is not held out for it."""
    person = rng.choices(lexicon.people()[:TAUGHT_PEOPLE], weights=_PERSON_WEIGHTS)[0]
    facts = rng.sample(lexicon.facts_about(person), rng.choice([1, 2, 3]))
    return " ".join(_shown(rng, fact) for fact in facts)


def _shown(rng: Random, fact: lexicon.Fact) -> str:
    held_out = lexicon.held_out_phrasings(fact, 1)
    allowed = [i for i in range(len(lexicon.PHRASINGS[fact.attribute])) if i not in held_out]
    return lexicon.phrase(fact, rng.choice(allowed))


def held_out_item(skill: str, rng: Random) -> Item:
    """Draw an item to be asked: of the letter skills, half repeat two or three letters, which the corpus rarely does.

    Long lists of distinct letters are all but solved after pretraining; repetitive ones leave room to get better.

    Args:
        skill: A key of `ITEMS`.
        rng: Gives every random choice.
    """
    if skill in ("copy", "reverse") and rng.random() < 0.5:
        alphabet = "".join(rng.sample(ALPHABET, rng.choice([2, 3])))
        return copy_item(rng, alphabet) if skill == "copy" else reverse_item(rng, alphabet)
    return ITEMS[skill](rng)


def fact_items() -> list[Item]:
    """Return every taught fact, asked in a phrasing never used for it; half of these are never used for any."""
    facts = [fact for person in lexicon.people()[:TAUGHT_PEOPLE] for fact in lexicon.facts_about(person)]
    return [_asked(fact) for fact in facts]


def _asked(fact: lexicon.Fact) -> Item:
    if rng_for(f"{fact.subject} {fact.attribute}", "new phrasing").random() < 0.5:
        return lexicon.cloze(lexicon.NEW_PHRASINGS[fact.attribute].format(s=fact.subject, v=fact.value))
    return lexicon.cloze(lexicon.phrase(fact, lexicon.held_out_phrasings(fact, 1)[0]))


def story_text(rng: Random) -> str:
    """Tell a short story in which the hero, the animal, the place and the object stay the same to the end."""
    name = rng.choice(lexicon.people()).split()[0]
    animal, thing, place = rng.choice(lexicon.ANIMALS), rng.choice(lexicon.OBJECTS), rng.choice(lexicon.PLACES)
    mood, food = rng.choice(lexicon.MOODS), rng.choice(lexicon.FOODS)
    they, their = rng.choice([("he", "his"), ("she", "her")])
    opening = rng.choice(
        [
            f"One morning {name} went to the {place} to look for a {thing}.",
            f"Once there was a child called {name} who lost a {thing} near the {place}.",
            f"It was getting dark when {name} came to the {place} with {their} {thing}.",
        ]
    )
    middle = [
        f"There {they} met a {animal} who was very {mood}.",
        f"The {animal} asked {name} for some {food}.",
        f"{name} gave the {animal} all {their} {food}.",
        f"The {animal} said that the {thing} was under the {rng.choice(lexicon.OBJECTS)}.",
        f'"Why are you so {mood}?" asked {name}.',
    ]
    told = [line for index, line in enumerate(middle) if index == 0 or rng.random() < 0.6]
    ending = rng.choice(
        [
            f"In the end {name} took the {thing} and left the {place}.",
            f"So the {animal} and {name} stayed friends, and the {animal} was no longer {mood}.",
            f"That night {name} dreamed of the {animal} in the {place}.",
        ]
    )
    return " ".join([opening, *told, ending])

"""Answers of models that nobody ran."""

from harness.compare.answers import SHARE, Answer, Model, Skill
from harness.records.scale import Scale


def skill(values, bits=None, **other):
    """A task of four choices whose items have these values and bits per byte; items are numbered."""
    wanted = {"choices": 4, "metric": "acc", "higher_is_better": True, "scale": SHARE, "chance": None} | other
    choices = wanted.pop("choices")
    values = [float(value) for value in values]
    answers = tuple(
        Answer(
            item=f"item {number}",
            value=value,
            prompt=f"question {number}",
            right="yes",
            given="yes" if value else "no",
            bits=None if bits is None else float(bits[number]),
            choices=choices,
        )
        for number, value in enumerate(values)
    )
    return Skill(value=sum(values) / len(values), answers=answers, **wanted)


def model(name, **skills):
    return Model(name=name, skills=skills)


def right(count, of):
    """The first `count` of so many items are right."""
    return [1.0] * count + [0.0] * (of - count)


BITS = {"metric": "bits_per_byte", "higher_is_better": False, "scale": Scale(low=0.0), "choices": 0}

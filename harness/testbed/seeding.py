"""Seeds and splits derived by hashing names, so that adding one item never shifts another."""

import hashlib
import random


def hash_int(text: str) -> int:
    """Return a 64-bit integer that depends on `text` alone, on every machine and Python version."""
    # Python's own `hash` of a text differs from process to process.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def rng_for(name: str, role: str, index: int = 0) -> random.Random:
    """Return the generator that belongs to `name:role:index`.

    Args:
        name: Of what is drawn, such as a skill.
        role: What the draws are for, such as a split.
        index: Tells generators of one name and role apart.
    """
    return random.Random(hash_int(f"{name}:{role}:{index}"))


def split_of(prompt: str) -> str:
    """Assign a prompt to `train` (92 %), `validation` (4 %) or `test` (4 %) by its hash.

    Because the split is a property of the prompt, the pretraining stream can leave out every held-out
    prompt without having seen the test files.
    """
    bucket = hash_int(prompt) % 100
    if bucket < 4:
        return "test"
    return "validation" if bucket < 8 else "train"

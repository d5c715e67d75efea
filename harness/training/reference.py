"""What the base says of a stage's sequences: their log-probabilities with adapters off, computed once, before training.

Sums are kept by what they are of (base, its quantisation and precision, token ids), so that trials of a pack, and packs
that follow in the same process, share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from harness.nn.batches import collate, padding_id
from harness.nn.determinism import resolve_precision
from harness.nn.logits import supervised_nats
from harness.nn.sequences import TokenLosses, TokenSequence
from harness.plugins import overrides
from harness.training.learner import Learner, Reference
from harness.training.precision import precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = 1 << 18
"""Sums that are kept in a process; the oldest go first."""
TOKENS = 1 << 12
"""Tokens of one forward pass, padding included."""

ReferenceSums = dict[bytes, float]
"""The base's summed log-probabilities that a process has computed, by a hash of what they are of; the oldest first."""


def reference_of(learner: Learner, known: ReferenceSums) -> Reference:
    """What the base says of all that a learner will be shown; the learner has done no step yet.

    The base's own dropout is switched off for good, so that the model starts as its reference; a method's stays.

    Args:
        learner: Whose sequences it is asked about.
        known: Sums computed before; those that are new are added.
    """
    _still(learner)
    with _base(learner) as model:
        sums = _sums(learner, model, known, [sequence for example in learner.examples for sequence in example])
        apart = [_sums(learner, model, known, shown) for shown in _apart(learner)]
    passes = learner.batch[1]
    return Reference(
        sums.reshape(len(learner.examples), -1), np.array(apart).reshape(learner.watch.stop_at, passes, -1)
    )


def _still(learner: Learner) -> None:
    from torch.nn import Dropout

    own = {id(module) for layer in learner.choices.method.layers(learner.model).values() for module in layer.modules()}
    noisy = [m for m in learner.model.modules() if isinstance(m, Dropout) and m.p and id(m) not in own]
    for module in noisy:
        module.p = 0.0
    if noisy:
        learner.setup.note("the base's dropout was off, so that training starts from what it is compared with")


@contextmanager
def _base(learner: Learner) -> Iterator[PreTrainedModel]:
    """The base in eval mode: the model with its adapters off, or the model itself, which no step has moved yet."""
    method, training = learner.choices.method, learner.model.training
    learner.model.eval()
    try:
        if overrides(method, "detached"):
            with method.detached(learner.model) as bare:
                yield bare
        elif method.identity_at_start:
            yield learner.model
        else:
            yield learner.setup.load_base().eval()
    finally:
        learner.model.train(training)


def _apart(learner: Learner) -> Iterator[list[TokenSequence]]:
    """What is shown apart from each forward pass, in the order of steps and passes."""
    size, passes = learner.batch
    for step in learner.order[: learner.watch.stop_at]:
        for number in range(passes):
            examples = [learner.examples[index] for index in step[number * size : (number + 1) * size]]
            shown = learner.choices.objective.apart(examples, learner.setup)
            yield [sequence for example in shown for sequence in example]


def _sums(
    learner: Learner, model: PreTrainedModel, known: ReferenceSums, sequences: Sequence[TokenSequence]
) -> np.ndarray:
    """Summed log-probability of each sequence's completion, shape (sequences,)."""
    keys = _keys(learner, sequences)
    sums = {key: known[key] for key in keys if key in known}
    missing = {key: sequence for key, sequence in zip(keys, sequences, strict=True) if key not in sums}
    sums |= dict(zip(missing, _computed(learner, model, list(missing.values())), strict=True))
    if learner.setup.base:
        known.update((key, sums[key]) for key in missing)
        for key in list(islice(known, max(0, len(known) - KEPT))):
            del known[key]
    return np.array([sums[key] for key in keys])


def _keys(learner: Learner, sequences: Sequence[TokenSequence]) -> list[bytes]:
    setup = learner.setup
    options = learner.choices.method.load_options(setup.params, setup.device)
    precision = resolve_precision(setup.params.text("precision"), setup.device)
    common = hashlib.blake2b(repr((setup.base, options, precision, setup.device, learner.model.dtype)).encode())
    keys = []
    for sequence in sequences:
        key = common.copy()
        key.update(np.array([sequence.input_ids, sequence.labels]).tobytes())
        key.update(str(sequence.prompt).encode())
        keys.append(key.digest()[:16])
    return keys


def _computed(learner: Learner, model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> np.ndarray:
    """The same from the model, sequences of like length together."""
    import torch

    setup, sums = learner.setup, np.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].input_ids))
    while order:
        size = max(1, TOKENS // len(sequences[order[-1]].input_ids))
        part, order = order[-size:], order[:-size]
        batch = collate([[(sequences[index],) for index in part]], padding_id(setup.tokenizer), setup.device)
        with torch.no_grad(), precision(learner, model):
            nats = supervised_nats(model, batch)
        losses = TokenLosses(nats=nats, sequence=batch.sequence, completion=batch.completion, sequences=batch.rows)
        sums[part] = losses.log_probabilities()[0].double().cpu().numpy()
    return sums

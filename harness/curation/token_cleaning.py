"""Token cleaning: loss only on the tokens that a reference model has learned more about than the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.axes.contract import Situation, StageSetup
from harness.curation._generation import one_model
from harness.curation._likelihoods import base_nats, token_nats, train_briefly
from harness.curation._refusals import without_token_loss
from harness.curation.base import Curation
from harness.errors import SpecError
from harness.nn.sequences import IGNORED, Example, TokenSequence
from harness.records.trial import derive_seed
from harness.space import Float, Integer, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenCleaning(Curation):
    """Ranks all tokens by the base's loss less the reference's, and keeps the best `token_keep_ratio` of them.

    The reference is the model that `cleaning_reference` names, or else the base trained for one pass on the first
    `cleaning_warmup` of the rows, which then keep all of their tokens. With one round it stays as it is (fixed-model
    cleaning). With more, the rows are cleaned in that many parts, and the reference goes on training on each part's
    kept tokens before it judges the next (self-evolving cleaning). The stage's own method then trains on all of them.
    """

    summary = "loss only on tokens that a reference model finds easier than the base does"
    paper = "Pang et al. 2025, arXiv 2502.01968"
    space = {
        "token_keep_ratio": Float(0.1, 0.95, default=0.6),
        "cleaning_rounds": Integer(1, 10, default=1, searched=False),
        "cleaning_reference": Text(names="models"),
        "cleaning_warmup": Float(0.05, 0.5, default=0.2, searched=False),
        "cleaning_rate": Float(1e-6, 1e-2, default=1e-4, log=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """It needs a loss on tokens."""
        return without_token_loss(situation)

    def tokens(self, examples: list[Example], setup: StageSetup) -> list[Example]:
        """The examples with fewer labels; those without any are left out.

        Raises:
            SpecError: When the reference has another tokenizer.
        """
        sequences = [sequence for (sequence,) in examples]
        reference, kept = self._reference(sequences, setup)
        # What the reference was trained on would look easy to it, so those rows are not judged.
        rest = sequences[len(kept) :]
        known = base_nats(rest, setup)
        rounds = min(setup.params.integer("cleaning_rounds"), max(1, len(rest)))
        borders = [len(rest) * number // rounds for number in range(rounds + 1)]
        before = _labelled(rest)
        for number, (start, end) in enumerate(pairwise(borders)):
            part = _cleaned(rest[start:end], known[start:end], reference, setup.params.number("token_keep_ratio"))
            kept += part
            if end < len(rest):
                seed = derive_seed(setup.seed, "cleaning", number)
                labelled = [sequence for sequence in part if _labelled([sequence])]
                train_briefly(reference, labelled, setup.params.number("cleaning_rate"), seed)
        cleaned = _labelled(kept) - _labelled(kept[: len(sequences) - len(rest)])
        setup.note(f"token cleaning kept {cleaned} of {before} tokens of {len(rest)} rows")
        return [(sequence,) for sequence in kept if _labelled([sequence])]

    def _reference(
        self, sequences: list[TokenSequence], setup: StageSetup
    ) -> tuple[PreTrainedModel, list[TokenSequence]]:
        """The reference, and the rows that it was made from."""
        if setup.params.text("cleaning_reference"):
            model, tokenizer = one_model("cleaning_reference", setup)
            if setup.tokens.facts(tokenizer) != setup.tokens.facts(setup.tokenizer):
                raise SpecError(
                    "cleaning_reference must have the base's tokenizer, but has another: name a model of the same family"
                )
            return model, []
        first = sequences[: max(1, round(len(sequences) * setup.params.number("cleaning_warmup")))]
        # All weights and not the stage's method: the reference must not depend on what is being searched.
        model = setup.load_base()
        train_briefly(model, first, setup.params.number("cleaning_rate"), derive_seed(setup.seed, "cleaning"))
        return model, first


def _labelled(sequences: Sequence[TokenSequence]) -> int:
    """How many tokens carry loss."""
    return sum(label != IGNORED for sequence in sequences for label in sequence.labels[1:])


def _cleaned(
    sequences: Sequence[TokenSequence], base: Sequence[np.ndarray], reference: PreTrainedModel, ratio: float
) -> list[TokenSequence]:
    """The sequences with labels on the best of their labelled tokens only.

    Args:
        sequences: Tokens with labels.
        base: Nats of each token under the base, an array of shape (tokens,) for each sequence.
        reference: The model whose nats are compared with the base's.
        ratio: Share of all labelled tokens that keep their label.
    """
    judged = token_nats(reference, sequences)
    places = [(row, i) for row, s in enumerate(sequences) for i in range(1, len(s.labels)) if s.labels[i] != IGNORED]
    scores = np.array([base[row][i] - judged[row][i] for row, i in places])
    # Stable: equal scores must be ranked alike on every machine.
    best = np.argsort(-scores, kind="stable")[: round(ratio * len(places))]
    labels = [[IGNORED] * len(sequence.labels) for sequence in sequences]
    for row, i in (places[index] for index in best):
        labels[row][i] = sequences[row].labels[i]
    return [replace(sequence, labels=tuple(own)) for sequence, own in zip(sequences, labels, strict=True)]

"""Log-likelihoods of choices as probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence


def probabilities(nats: Sequence[float]) -> list[float]:
    """The softmax of log-likelihoods: what the choices' probabilities are if the answer is one of them."""
    highest = max(nats)  # subtracted before the exponential, which underflows for a long answer's log-likelihood
    weights = [math.exp(value - highest) for value in nats]
    total = math.fsum(weights)
    return [weight / total for weight in weights]

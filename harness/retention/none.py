"""Nothing is done about forgetting."""

from __future__ import annotations

from harness.retention.base import Retention


class NoRetention(Retention):
    """Leaves rows, loss and weights alone."""

    summary = "nothing is done to keep old knowledge"

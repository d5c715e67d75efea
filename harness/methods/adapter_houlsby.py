"""Houlsby's adapters: a small bottleneck behind every attention and every feed-forward part."""

from __future__ import annotations

from harness.methods._blocks import Block
from harness.methods.adapter_pfeiffer import AdapterPfeiffer


class AdapterHoulsby(AdapterPfeiffer):
    """Adds `U f(D y)` to the output y of each block's attention and feed-forward part; norms stay as they are."""

    summary = "small bottlenecks behind every attention and feed-forward part"
    paper = "Houlsby et al. 2019, arXiv 1902.00751"
    limits = (
        "On the testbed's 1M model, 200 steps reached 36% of full tuning's gain: "
        "wide bottlenecks and rates near the highest of its space did best."
    )

    def places(self, block: Block) -> tuple[str, ...]:
        """Behind attention and feed-forward part."""
        return (block.attention, block.feed_forward[1])

"""CPT: training rows in front of every text, whose prompts' embeddings are trained a little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import encoder
from harness.methods._virtual import VirtualTokens
from harness.space import Float, Integer
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from peft import CPTConfig
    from transformers import PreTrainedModel

INPUT, ANSWER = 2, 4
"""PEFT's kinds of tokens: those of an example's input move, those of its answer stay; 4 more for each example."""


class Cpt(VirtualTokens):
    """Starts as examples in context; no token moves further than `reach`, at a width of 2,048.

    The loss is that of the text alone, not of the answers in the examples, which the paper adds.
    """

    summary = "training rows before every text, with embeddings trained within a small reach"
    paper = "Blau et al. 2024, arXiv 2410.17222"
    limits = (
        "On the testbed's 1M model, 200 steps reached 0% of full tuning's gain: "
        "text in front of the question only steers what a model can do already."
    )
    trains = r"prompt_encoder\.default\.delta_embedding\.weight"
    space = {
        "learning_rate": Float(1e-5, 1e-1, default=1e-3, log=True),
        "virtual_tokens": Integer(2, 400, default=40, log=True),
        "reach": Float(1e-3, 10.0, default=0.1, log=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """PEFT asks for attention heads."""
        if not situation.model.has_attention:
            return f"PEFT asks for attention heads, which a {situation.model.model_type} has none of"
        return super().skip(situation)

    def config(self, model: PreTrainedModel, setup: StageSetup) -> CPTConfig:
        """The first training rows, again from the first if they are too few, until the virtual tokens are full."""
        from peft import CPTConfig

        ids: list[int] = []
        kinds: list[int] = []
        rows, count = setup.rows() or [Row(completion=" ")], setup.params.integer("virtual_tokens")
        for number in range(count):
            row = rows[number % len(rows)]
            for text, kind in ((row.prompt, INPUT), (row.completion, ANSWER)):
                (tokens,) = encoder(setup).encode([text])
                ids += tokens
                # PEFT numbers the four kinds of tokens anew in each example.
                kinds += [kind + 4 * number] * len(tokens)
            if len(ids) >= count:
                break
        return CPTConfig(
            task_type="CAUSAL_LM",
            cpt_token_ids=ids[:count],
            cpt_tokens_type_mask=kinds[:count],
            cpt_mask=[1] * count,
            opt_projection_epsilon=setup.params.number("reach"),
        )

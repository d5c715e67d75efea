"""Prompt internalisation: training prompts carry instructions and examples that the scored prompt does not have."""

from __future__ import annotations

import random

from harness.axes.contract import Situation, StageSetup
from harness.curation._refusals import first_reason, without_answers
from harness.curation.base import Curation
from harness.space import Float, Integer, Text
from harness.tasks.training_rows import Row


class PromptInternalization(Curation):
    """Puts the beginning of `internal_template` and some of `internal_shots` training rows in front of each prompt.

    `prompt_kept` is the share of the template's words and of the examples that is there: at 0 the prompt is the task's
    own, which is what is scored. In a chat, examples are turns before the row's own, without loss. A stage has one share;
    several stages with less and less of it are the paper's curriculum (recipe prompt_internalization). The paper shortens
    templates with a language model instead.
    """

    summary = "instructions and examples before each prompt, to be learned by heart"
    paper = "Zou et al. 2024 (PromptIntern), arXiv 2407.02211"
    writes = True
    space = {
        "prompt_kept": Float(0.0, 1.0, default=1.0, searched=False),
        "internal_template": Text(),
        "internal_shots": Integer(0, 16, default=2),
    }

    def skip(self, situation: Situation) -> str | None:
        """There must be something to put there."""
        given = situation.params
        nothing = "internal_template" in given and not given["internal_template"] and not given.get("internal_shots")
        reason = "prompt_internalization needs something to learn by heart: give internal_template or internal_shots"
        return first_reason(reason if nothing else None, without_answers(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The same rows with longer prompts; a row is never its own example."""
        kept, rng = setup.params.number("prompt_kept"), random.Random(setup.seed)
        words = setup.params.text("internal_template").split(" ")
        template = " ".join(words[: round(kept * len(words))])
        shots = min(round(kept * setup.params.integer("internal_shots")), len(rows) - 1)
        setup.note(f"prompts began with {len(template.split())} words of a template and {shots} examples")
        beginning = template + "\n\n" if template else ""
        return [row.after(beginning, _shots(rows, index, shots, rng)) for index, row in enumerate(rows)]


def _shots(rows: list[Row], index: int, count: int, rng: random.Random) -> list[Row]:
    """Other rows as examples.

    Args:
        rows: All rows.
        index: The row that the examples are for.
        count: How many examples.
        rng: Draws them.
    """
    # Drawn from one place fewer: places from `index` on move up by one, so the row itself is never among its examples.
    return [rows[place + (place >= index)] for place in rng.sample(range(len(rows) - 1), count)]

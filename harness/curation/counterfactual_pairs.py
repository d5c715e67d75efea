"""Counterfactual pairs: the base's own answers with and without a style prompt, as preferences without labels."""

from __future__ import annotations

from dataclasses import replace

from harness.axes.contract import Situation, StageSetup
from harness.curation._generation import Sampling, identity_of, remembered, writer
from harness.curation._refusals import first_reason, unmet, without_answers
from harness.curation.base import Curation
from harness.errors import TrialFailure
from harness.records.trial import derive_seed
from harness.space import Choice, Float, Integer, Text
from harness.tasks.training_rows import Row


class CounterfactualPairs(Curation):
    """The base answers each prompt with `style_prompt` in front and without; the prompt alone then gets the preference.

    With `style_wanted` encourage the styled answer is the chosen one, with discourage the other. The rows' own answers
    are not used. Pairs of equal or empty answers are dropped, and counted in the notes.
    """

    summary = "preference pairs: the base's answers with and without a style prompt"
    paper = "Butcher 2024, arXiv 2401.09566"
    gives = ("rejected",)
    writes = True
    space = {
        "style_prompt": Text("Answer politely and in one short sentence.\n"),
        "style_wanted": Choice(("encourage", "discourage"), default="encourage", searched=False),
        "style_model": Text(names="models"),
        "style_tokens": Integer(1, 2048, default=48, log=True, searched=False),
        "style_temperature": Float(0.0, 2.0, default=1.0, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """It is for objectives with preferences."""
        objective = situation.beside.get("objective")
        plain = objective is not None and "rejected" not in getattr(objective, "needs", ())
        reason = "counterfactual pairs are preferences, which its objective does not use: use objective dpo"
        unstyled = not situation.params.text("style_prompt", "a style")
        return first_reason(
            reason if plain else None,
            "counterfactual pairs need a style_prompt to tell their answers apart" if unstyled else None,
            without_answers(situation),
            unmet(situation, self.gives),
        )

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The prompts with a preferred and a rejected answer of the model.

        Raises:
            TrialFailure: When all pairs are of equal or empty answers.
        """
        params, prompts = setup.params, [row.prompt for row in rows]
        sampling = Sampling(params.integer("style_tokens"), params.number("style_temperature"), ("\n\n",)).of(rows[0])
        with_style = [row.asking(params.text("style_prompt") + row.question) for row in rows]
        styled = [row.prompt for row in with_style]
        question = ["pairs", sampling.tokens, sampling.temperature, setup.seed, styled, prompts]

        def write() -> list[list[str]]:
            model = writer("style_model", setup)
            seeds = [derive_seed(setup.seed, "style", part) for part in ("with", "without")]
            asked = zip((with_style, rows), seeds, strict=True)
            return [model.texts(list(map(model.prompt, those)), sampling, seed) for those, seed in asked]

        answers = remembered(identity_of("style_model", setup), question, setup, write)
        # What is wanted is not part of the question: both directions of a study read the same texts from the cache.
        chosen, rejected = answers if params.text("style_wanted") == "encourage" else reversed(answers)
        kept = [
            replace(row.answering(better), rejected=row.answering(worse).completion)
            for row, better, worse in zip(rows, chosen, rejected, strict=True)
            if better.strip() and worse.strip() and better != worse
        ]
        setup.note(f"{len(kept)} of {len(rows)} pairs of the model's answers differ and were kept")
        if not kept:
            raise TrialFailure("the model's answers with and without style_prompt must differ somewhere, but do not")
        return kept

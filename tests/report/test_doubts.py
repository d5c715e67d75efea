"""What weakens a verdict stands beside it, in one sentence for each condition; thresholds are from both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.analysis.verdict import Word
from harness.database.ingest import ingest
from harness.database.items import Habit
from harness.records.paths import Paths
from harness.report import doubts as conditions
from harness.report.conclusion import said
from harness.report.data import load_study_data
from harness.report.doubts import Evidence, doubts
from harness.report.findings import compare
from harness.report.sections.answer import Answer
from harness.space import Choice, Float, Integer
from tests.report.studies import write_small

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def evidence(small: Paths) -> Evidence:
    """Of the best family of the first task; its metric is an accuracy."""
    study = load_study_data(small, "made_up")
    comparison = compare(study)[0]
    return conditions._evidence(study, comparison, comparison.best)


def changed(evidence: Evidence, of: str, **changes: Any) -> Evidence:
    """With other fields of its comparison, contender or first run, or of its own."""
    if of == "run":
        return replace(evidence, runs=[replace(evidence.runs[0], **changes)])
    return replace(evidence, **({of: replace(getattr(evidence, of), **changes)} if of else changes))


def at_level(evidence: Evidence, mean: float) -> Evidence:
    return changed(evidence, "contender", level=replace(evidence.contender.level, mean=mean))


def habit(share: float, answer: str = " no") -> Habit:
    return Habit(answer=answer, share=share, items=200)


def test_one_answer_is_named_with_the_runs_that_gave_it(evidence: Evidence) -> None:
    label = evidence.contender.label
    stuck = changed(evidence, "", habits=[habit(0.99), habit(0.98), habit(1.0)], base_habit=habit(0.5))
    said = f"{label} gave one answer, “no”, to nearly all 200 items in 2 of 3 runs"
    assert conditions.gives_one_answer(stuck) == f"{said}."
    assert conditions.gives_one_answer(replace(stuck, base_habit=habit(1.0))) == f"{said}, and so did the base model."
    assert conditions.gives_one_answer(replace(stuck, habits=[habit(0.98)])) is None
    assert conditions.the_base_gives_one_answer(replace(stuck, base_habit=habit(1.0))) is None  # said with the runs
    assert (
        conditions.the_base_gives_one_answer(replace(stuck, habits=[habit(0.98)], base_habit=habit(1.0, "x" * 31)))
        == f"The base model gave one answer, “{'x' * 30}…”, to nearly all 200 items."
    )


def test_one_answer_that_is_right_for_all_items_is_no_fault(evidence: Evidence) -> None:
    stuck = changed(evidence, "", habits=[habit(1.0)], base_habit=habit(1.0))
    assert conditions.gives_one_answer(changed(stuck, "comparison", majority=1.0)) is None


def test_chance_and_the_commonest_answer_must_be_exceeded(evidence: Evidence) -> None:
    label = evidence.contender.label
    guessed = changed(evidence, "comparison", chance=0.5, majority=0.6)
    assert (
        conditions.no_better_than_guessing(at_level(guessed, 0.5))
        == f"The score of {label} (50.0 %) is not above chance (50.0 %)."
    )
    assert conditions.no_better_than_guessing(at_level(guessed, 0.6)) == (
        f"The score of {label} (60.0 %) is not above that of giving every item the most frequent right answer (60.0 %)."
    )
    assert conditions.no_better_than_guessing(at_level(guessed, 0.601)) is None
    assert conditions.no_better_than_guessing(evidence) is None  # neither is known


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        # gains of 40, 0 and 0 points: 13.3 with the first, 0 without
        ((0.9, 0.5, 0.5), "without it, the mean gain is 0.0 points instead of +13.3 points"),
        # 30, 9 and 9: 16 and 9, which is more than half
        ((0.8, 0.59, 0.59), None),
        # 30, 7 and 7: 14.67 and 7, which is less
        ((0.8, 0.57, 0.57), "without it, the mean gain is +7.0 points instead of +14.7 points"),
        ((0.5, 0.4, 0.4), None),  # nothing is gained
        ((0.9,), None),
    ],
)
def test_one_seed_that_carries_the_gain(evidence: Evidence, scores: tuple[float, ...], sentence: str | None) -> None:
    one = changed(changed(evidence, "comparison", base=0.5), "contender", scores=dict(enumerate(scores)), label="lora")
    start = f"One of {len(scores)} seeds carries the gain of lora: "
    assert conditions.one_seed_carries_the_gain(one) == (sentence and f"{start}{sentence}.")


def test_the_best_value_of_a_range_shall_not_be_its_end(evidence: Evidence) -> None:
    """A twentieth of two decades from the upper end is 10**-2.1 = .00794; of 0 to 100 it is 5 and 95."""
    ranges = {
        "learning_rate": Float(1e-4, 1e-2, default=1e-3, log=True),
        "rank": Integer(0, 100, 8),
        "where": Choice(("a", "b"), "a"),
    }
    one = changed(changed(evidence, "contender", label="lora"), "", ranges=ranges)

    def said(**values: object) -> str | None:
        import json

        return conditions.best_value_at_an_edge(changed(one, "run", searched_json=json.dumps(values)))

    assert said(learning_rate=0.0079, rank=6, where="a") is None
    assert said(learning_rate=0.008, rank=5, where="b") == (
        "lora was best with learning_rate 0.008 at the upper end of [0.0001, 0.01] log and rank 5 at the lower end of "
        "[0, 100] whole: outside that range it may be better."
    )
    assert said() is None


def test_a_metric_that_cannot_move(evidence: Evidence) -> None:
    assert conditions.the_metric_cannot_move(evidence) is None
    full = conditions.the_metric_cannot_move(changed(evidence, "comparison", base=1.0))
    assert full == "The base model is at the best value of the metric already (100.0 %): nothing can be gained."
    equal = conditions.the_metric_cannot_move(replace(evidence, all_equal=True))
    assert equal is not None
    assert equal.startswith("All runs and the base model have the same score on every single item")


@pytest.mark.parametrize(("wall_s", "gpu_s", "busy"), [(100.0, 0.0, True), (99.0, 0.0, False), (100.0, 5.0, False)])
def test_a_machine_that_was_shared(evidence: Evidence, wall_s: float, gpu_s: float, busy: bool) -> None:
    """On a GPU the processor waits, whoever else computes."""
    said = conditions.the_machine_was_shared(changed(evidence, "run", total_s=wall_s, cpu_s=10.0, gpu_s=gpu_s))
    assert (said is not None) == busy
    if said:
        assert "took 1.7 min for 10.0 s of computing" in said


def test_pipelines_that_are_only_named_share_a_sentence(small: Paths) -> None:
    """One that is neither the leader, nor its second, nor its equal, is not named, nor looked at."""
    study = load_study_data(small, "made_up")
    comparison = compare(study)[0]
    first, second = comparison.contenders
    lucky = dict.fromkeys(first.scores, comparison.base or 0.0) | {next(iter(first.scores)): 1.0}
    weak = tuple(replace(second, scores=lucky, label=f"<b>{number}") for number in range(2))
    contrast = next(iter(comparison.verdict.against.values()))

    def last(*words: Word) -> str:
        against = {one.label: replace(contrast, word=word) for one, word in zip(weak, words, strict=True)}
        verdict = replace(comparison.verdict, leader=first.label, against=against)
        return doubts(study, replace(comparison, contenders=(first, *weak), verdict=verdict))[-1]

    start, lucky_seed = "Of the others that are named, look twice at", "one seed carries its gain"
    assert last(Word.WORSE, Word.WORSE) == f"{start} <b>0 ({lucky_seed})."
    assert last(Word.WORSE, Word.NOISE) == f"{start} <b>0 ({lucky_seed}) and <b>1 ({lucky_seed})."


def test_page_and_terminal_say_it(tmp_path: Path) -> None:
    """Every run of the study, and the base, says the same to all items of the test split."""
    paths = write_small(tmp_path)
    for path in paths.trials.glob("*/*/items.parquet"):
        items = pq.read_table(path)
        place = items.schema.get_field_index("prediction")
        pq.write_table(items.set_column(place, "prediction", pa.array(["<b>yes"] * items.num_rows)), path)
    ingest(paths)
    study = load_study_data(paths, "made_up")
    sentences = doubts(study, compare(study)[0])
    assert "gave one answer, “<b>yes”, to nearly all 40 items in 5 of 5 runs, and so did the base" in sentences[0]
    assert all(sentence in said(study)[0].text for sentence in sentences)
    page_one = Answer().render(study)
    assert page_one is not None
    assert "gave one answer, “&lt;b&gt;yes”, to nearly all 40 items" in page_one

"""Our own metrics by hand, and through lm-eval's task objects on models whose answers are known."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import SpecError
from harness.metrics._clusters import chosen
from harness.metrics._sandbox import why_no_sandbox
from harness.metrics.base import Answered, measure
from harness.metrics.pass_at_k import estimate
from harness.plugins import names
from harness.tasks.file import ALLOW_CODE, file_sha256
from harness.tasks.task import find_task
from tests.scoring import evaluate

from ..tasks.writing import CHOICE, GENERATE, write_task

NAMES = names("metrics")


def item_of(name: str, *answers: Any, **more: Any) -> Any:
    found = measure(name)
    assert found is not None
    settings = dict(found.settings) | {key: value for key, value in more.items() if key in found.settings}
    return found.item(
        Answered(
            doc=more.get("doc", {}),
            answers=answers,
            choices=more.get("choices", ()),
            gold=more.get("gold", -1),
            settings=settings,
        )
    )


def total_of(name: str, items: Any) -> float:
    found = measure(name)
    assert found is not None
    return found.total(items)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    found = measure(name)
    assert found is not None
    assert 0 < len(found.summary) <= 100
    assert found.output_types
    assert found.paper


def test_nothing_else_is_ours() -> None:
    assert measure("acc") is None
    assert "ece" in NAMES


def test_brier_by_hand() -> None:
    """Likelihoods 3/4 and 1/4: (1/4)^2 + (1/4)^2 = 1/8 where the first is right, 9/16 + 9/16 = 9/8 else; thirds: 2/3."""
    nats = (math.log(0.75), math.log(0.25))
    assert item_of("brier", *nats, gold=0) == pytest.approx(1 / 8)
    assert item_of("brier", *nats, gold=1) == pytest.approx(9 / 8)
    assert item_of("brier", -7.0, -7.0, -7.0, gold=2) == pytest.approx(2 / 3)
    assert item_of("brier", -1e5, 0.0, gold=1) == 0.0
    assert total_of("brier", [1 / 8, 9 / 8]) == pytest.approx(5 / 8)


def test_calibration_error_by_hand() -> None:
    """Two at confidence 3/4 (bin 12 of 15), one right: |1 - 1.5|; two at 0.98, both right: |2 - 1.96|; of 4 items."""
    sure, unsure = (math.log(0.98), math.log(0.02)), (math.log(0.75), math.log(0.25))
    items = [
        item_of("ece", *unsure, gold=0),
        item_of("ece", *unsure, gold=1),
        item_of("ece", *sure, gold=0),
        item_of("ece", *sure, gold=0),
    ]
    assert [right for _, right in items] == [True, False, True, True]
    assert total_of("ece", items) == pytest.approx((0.5 + 0.04) / 4)


def test_calibration_errors_bins_are_open_below() -> None:
    """2/15 ends bin 2, a little more begins bin 3; in one bin, errors of both signs cancel: right at .8 and wrong at .8."""
    low = [(2 / 15, True), (2 / 15 + 1e-9, False)]
    assert total_of("ece", low) == pytest.approx((13 / 15 + 2 / 15) / 2)
    assert total_of("ece", [(0.77, True), (0.79, True), (0.78, True), (0.78, False)]) == pytest.approx(0.03)
    assert total_of("ece", [(1.0, True), (0.0, False)]) == 0.0


def test_calibration_error_against_a_histogram() -> None:
    """numpy's own bins, on made-up items."""
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.01, 1.0, 500)
    right = draw.random(500) < confidence**2
    place = np.digitize(confidence, np.linspace(0, 1, 16), right=True) - 1
    gaps = [abs(right[place == k].mean() - confidence[place == k].mean()) * (place == k).mean() for k in range(15)]
    items = list(zip(confidence.tolist(), right.tolist(), strict=True))
    assert total_of("ece", items) == pytest.approx(sum(gaps))


def followed(text: str, *rules: dict[str, Any], **more: Any) -> Any:
    return item_of("requirements_followed", text, rules=list(rules), **more)


def test_rules_one_by_one() -> None:
    text = " Tea is hot.\nDrink tea slowly. "
    true = [
        {"contains": "Tea"},
        {"excludes": "coffee"},
        {"matches": r"^\s*Tea\b"},
        {"starts_with": "Tea"},
        {"ends_with": "slowly."},
        {"min_words": 6},
        {"max_words": 6},
        {"min_chars": 29},
        {"max_chars": 29},
        {"lines": 2},
        {"lower": False},
        {"upper": False},
        {"json": False},
    ]
    false = [
        {"contains": "coffee"},
        {"excludes": "hot"},
        {"matches": "^tea"},
        {"starts_with": "Drink"},
        {"ends_with": "hot."},
        {"min_words": 7},
        {"max_words": 5},
        {"min_chars": 30},
        {"max_chars": 28},
        {"lines": 1},
        {"lower": True},
        {"upper": True},
        {"json": True},
    ]
    for good, bad in zip(true, false, strict=True):
        assert followed(text, good) == (1, 1), good
        assert followed(text, bad) == (0, 1), bad
    assert followed('{"a": [1]}', {"json": True}) == (1, 1)


def test_requirements_are_weighed_one_by_one() -> None:
    """Three of three, and none of one: 3/4, not the mean of 1 and 0."""
    items = [followed("a b", {"contains": "a", "max_words": 2}, {"excludes": "c"}), followed("x", {"contains": "a"})]
    assert items == [(3, 3), (0, 1)]
    assert total_of("requirements_followed", items) == 0.75
    found = measure("requirements_followed")
    assert found is not None
    assert [found.value(item) for item in items] == [1.0, 0.0]
    assert math.isnan(found.value((0, 0)))


def test_rules_of_the_row_and_of_the_task_count_together() -> None:
    doc = {"own": [{"contains": "a", "max_words": None}, {"contains": None, "max_words": 1}]}
    assert followed("a b", {"excludes": "z"}, doc=doc, column="own") == (2, 3)
    assert followed("a b", doc={"own": json.dumps([{"contains": "b"}])}, column="own") == (1, 1)
    with pytest.raises(SpecError, match="column must be one of those known, but got 'others'"):
        followed("a", doc=doc, column="others")


WRONG = [
    ({}, "must have rules, but names none"),
    ({"rules": [{"contain": "a"}]}, "did you mean 'contains'"),
    ({"rules": ["a"]}, "must list rules such as"),
    ({"rules": [{"max_words": "two"}]}, "max_words must be a number"),
    ({"rules": [{"matches": "("}]}, "must be a regular expression"),
    ({"rule": []}, "key must be one of those known, but got 'rule'"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_rules_are_refused_when_the_task_is_found(tmp_path: Path, settings: Any, message: str) -> None:
    write_task(tmp_path, GENERATE | {"metric_list": [{"metric": "requirements_followed"} | settings]})
    with pytest.raises(SpecError, match=message):
        find_task("mine", (tmp_path,))


def test_consistency_by_hand() -> None:
    """Group a: of three pairs one agrees; group b: its one pair does; c is alone. (1/3 + 1) / 2."""
    answers = [("a", "Yes."), ("a", "yes"), ("a", "no"), ("b", "4"), ("b", "4 "), ("c", "1")]
    items = [item_of("consistency", text, doc={"q": group}, group="q") for group, text in answers]
    assert total_of("consistency", items) == pytest.approx(2 / 3)
    overlap = [
        item_of("consistency", text, doc={"q": 1}, group="q", compare="overlap") for text in ("a b c", "a c d e")
    ]
    assert total_of("consistency", overlap) == pytest.approx(4 / 7)
    with pytest.raises(SpecError, match="no group has"):
        total_of("consistency", items[5:])
    picked = item_of("consistency", -3.0, -1.0, choices=("no", "yes"), doc={"q": 1}, group="q")
    assert picked == ("1", "equal", "yes")


def test_pass_at_k_counts_draws() -> None:
    """By counting all subsets: the share of those with at least one of the programs that pass."""
    for n, c, k in ((5, 2, 1), (5, 2, 3), (6, 1, 2), (4, 0, 2), (4, 4, 1), (5, 3, 5)):
        subsets = list(combinations(range(n), k))
        assert estimate(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets))
    assert estimate(200, 13, 1) == pytest.approx(13 / 200)


def needs_sandbox() -> None:
    if reason := why_no_sandbox():
        pytest.skip(reason)


def test_programs_are_run() -> None:
    """Two of four pass: pass@1 is 1/2, pass@2 is 1 - 1/6."""
    needs_sandbox()
    program = "def f(x):\n{{completion}}\nassert f({{given}}) == {{wanted}}"
    samples = ["  return x + 1", "  return 5", "  return x", "  return oops"]
    doc = {"given": 4, "wanted": 5}
    assert item_of("pass_at_k", samples, doc=doc, program=program) == 0.5
    assert item_of("pass_at_k", samples, doc=doc, program=program, k=2) == pytest.approx(5 / 6)
    assert item_of("pass_at_k", samples[0], doc=doc, program=program) == 1.0
    large = {"doc": doc, "program": "kept = bytes(200 << 20)  # {{completion}}"}
    assert [item_of("pass_at_k", "", memory_mb=limit, **large) for limit in (512, 128)] == [1.0, 0.0]
    with pytest.raises(SpecError, match="k = 5 needs at least 5 samples, but has 4"):
        item_of("pass_at_k", samples, doc=doc, program=program, k=5)


def test_real_problems_are_solved_by_their_own_solutions(shared_data: Path) -> None:
    """HumanEval's solutions pass its tests, and an empty function does not."""
    needs_sandbox()
    lines = (shared_data / "humaneval" / "test.jsonl").read_text().splitlines()
    program = "{{prompt}}{{completion}}\n{{test}}\ncheck({{entry_point}})"
    for line in lines[:6]:
        doc = json.loads(line)
        samples = [doc["canonical_solution"], "    pass\n"]
        assert item_of("pass_at_k", samples, doc=doc, program=program) == 0.5, doc["task_id"]


def test_running_programs_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the task file, and by the user for that very file."""
    entry = {"metric": "pass_at_k", "program": "{{completion}}"}
    path = write_task(tmp_path, GENERATE | {"metric_list": [entry]})
    with pytest.raises(SpecError, match="say unsafe_code: true in the task file"):
        find_task("mine", (tmp_path,))
    write_task(tmp_path, GENERATE | {"metric_list": [entry], "unsafe_code": True})
    with pytest.raises(SpecError, match="must not run code unless you allow it"):
        find_task("mine", (tmp_path,))
    monkeypatch.setenv(ALLOW_CODE, file_sha256(path))
    assert find_task("mine", (tmp_path,)).metric == "pass_at_k"


def test_a_metric_must_suit_the_task(tmp_path: Path) -> None:
    for config, entry, message in (
        (GENERATE, {"metric": "ece"}, "output_type must be one of those known, but got 'generate_until'"),
        (CHOICE, {"metric": "requirements_followed", "rules": [{"lines": 1}]}, "got 'multiple_choice'"),
        (CHOICE, {"metric": "ece", "aggregation": "f1"}, "aggregation must be one of those known"),
        (CHOICE, {"metric": "ece", "bins": 3}, "key must be one of those known, but got 'bins'"),
        (CHOICE, {"metric": "consistency"}, "must have a group, but has none"),
        (GENERATE, {"metric": "pass_at_k"}, "must have a program with"),
    ):
        write_task(tmp_path, config | {"metric_list": [entry], "unsafe_code": entry["metric"] == "pass_at_k"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ALLOW_CODE, file_sha256(tmp_path / "mine.yaml"))
            with pytest.raises(SpecError, match=message):
                find_task("mine", (tmp_path,))


def test_choices_are_scored_by_confidence_through_lm_eval(tmp_path: Path, uniform: Any, tokenizer: Any) -> None:
    """The uniform model's ' no' is one byte shorter than ' yes': 259 times likelier, p = 259/260; half of ten say no."""
    p = 259 / 260
    for metric, value in (("brier", (2 * (1 - p) ** 2 + 2 * p**2) / 2), ("ece", abs(5 - 10 * p) / 10)):
        write_task(tmp_path, CHOICE | {"metric_list": [{"metric": metric}]})
        found = evaluate(uniform, tokenizer, find_task("mine", (tmp_path,)), "test", None)
        assert found.score.value == pytest.approx(value, rel=1e-4)
        assert (found.score.metric, found.score.higher_is_better, found.score.n) == (metric, False, 10)
        assert {item.prediction for item in found.items} == {"no"}
        if metric == "brier":
            values = sorted(item.value for item in found.items)
            assert values == pytest.approx([2 * (1 - p) ** 2] * 5 + [2 * p**2] * 5, rel=1e-3)
            assert found.score.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(10))
        else:
            assert found.score.stderr is None
            assert all(math.isnan(item.value) for item in found.items)


def test_our_brier_is_lm_evals_where_both_are_defined(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    values = []
    for metric in ("brier", "brier_score"):
        write_task(tmp_path, CHOICE | {"metric_list": [{"metric": metric, "higher_is_better": False}]})
        values.append(evaluate(model, tokenizer, find_task("mine", (tmp_path,)), "test", None).score.value)
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_rules_and_consistency_through_lm_eval(tmp_path: Path, token_after: Any, tokenizer: Any) -> None:
    """After ':' comes ' ok' and a line's end, whatever is asked."""
    space, o, k, end, colon = tokenizer.encode(" ok\n:")
    sure = token_after({colon: space, space: o, o: k, k: end, end: end})
    rows = [
        {"text": f"t{i}", "label": "ok", "pair": i // 2, "own": [{"contains": "o", "max_chars": i}]} for i in range(4)
    ]
    entry = {"metric": "requirements_followed", "rules": [{"lower": True}], "column": "own"}
    for metric, value in ((entry, 10 / 12), ({"metric": "consistency", "group": "pair"}, 1.0)):
        write_task(tmp_path, GENERATE | {"metric_list": [metric]}, test=rows)
        found = evaluate(sure, tokenizer, find_task("mine", (tmp_path,)), "test", None)
        assert found.score.value == pytest.approx(value)  # 'ok' has two characters: too many in two of four rows
        assert found.score.higher_is_better
        assert found.latency_s is not None
        assert found.latency_s > 0


def test_a_cluster_is_chosen_by_hand() -> None:
    """Answers 4, 4, 7, 7, 9. Overlaps of solutions decide between the two pairs, and the best of a pair stands for it."""
    texts = ["two and two is 4", "two plus two is 4", "I say 7", "no idea 7", "two and two is 9"]
    assert chosen(texts, r"\d+", 2) == texts[0]
    assert chosen(["x 7", "y 7", "a b c d 4"], r"\d+", 1) == "x 7"  # the one largest cluster
    assert chosen(["no number", "a 5"], r"\d+", 5) == "a 5"
    assert chosen(["a b", "a c", "d"], r"\d+", 5) == "a b"  # none has an answer
    assert chosen(["the answer is 3", "so 2 and the answer is 3"], r"answer is (\d+)", 5) in (
        "the answer is 3",
        "so 2 and the answer is 3",
    )


def test_reranking_may_overrule_the_majority() -> None:
    """Three that say 7 share no other word; two that say 4 are alike: 2 * 8/10 against 3 * 2 * 2/6 = 2 with '7' itself."""
    texts = ["a a2 7", "b b2 7", "c c2 7", "one plus three is 4", "one plus three is 4"]
    # overlaps: each '7' with two others 2 * (2 * 1 / 6) = 2/3, so 2 in all; each '4' with its twin 1, so 2 in all: tie
    assert chosen(texts, r"\d+", 2) == texts[0]
    assert chosen([*texts, "one plus three is 9"], r"\d+", 2) == texts[3]  # 9 is no candidate, but agrees with the 4s
    assert chosen([*texts, "one plus three is 9"], r"\d+", 1) == texts[0]

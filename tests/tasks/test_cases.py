"""Files as people had them when something went wrong: what is right stands beside each file.

The case `answer-space` of generated answers is judged by the task's own metric, since it has no table of right values.
"""

import json
from pathlib import Path

import pytest

from harness.errors import SpecError
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows

UNDECIDED = "a truth value, which is neither a choice nor an index: correct the data"
"""What `odd` is refused with: its labels are truth values, its choices are yes and no."""
CASES = {
    "big-integers": {"bigid", "bigcsv"},
    "boolean-labels": {"odd", "odd_csv"},
    "csv-values": {"codes", "none_label"},
    "json-byte-order-mark": {"bom"},
    "list-like-target": {"tags"},
    "numeric-labels": {"stars", "descending"},
}


@pytest.fixture
def cases(shared_data: Path) -> Path:
    return shared_data.parent / "cases"


@pytest.mark.parametrize("case", CASES)
def test_what_the_file_says_is_what_is_trained(case, cases):
    expected = json.loads((cases / case / "expected.json").read_text())
    assert set(expected) == CASES[case]
    for name, answers in expected.items():
        task = find_task(name, (cases / case,))
        if name == "odd":
            with pytest.raises(SpecError, match=UNDECIDED):
                check_task(task)
            continue
        check_task(task)
        trained = {row.prompt: row.completion for row in training_rows(task)}
        assert trained
        assert trained == {prompt: answers[prompt] for prompt in trained}


def test_what_a_row_teaches_scores_best(cases):
    task = find_task("answers", (cases / "answer-space",))
    built = lm_eval_task(task, "train")
    rows = training_rows(task)
    assert {row.completion for row in rows} == {" no", " yes"}
    for row, doc in zip(rows, built.test_docs(), strict=True):
        assert built.process_results(dict(doc), [row.completion]) == {"exact_match": 1.0}

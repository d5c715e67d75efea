"""What stands in a row is what is trained, and what lm-eval then scores as right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.tasks.labels import named_choice, whole_number
from harness.tasks.lm_eval_task import gold_index, lm_eval_task
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows

from .writing import CHOICE, GENERATE, write_splits

any_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
odd_text = st.one_of(
    any_text,
    st.sampled_from(
        ["007", "1.50", "[1]", '["red", "blue"]', '[{"name": "f", "arguments": {"a": null}}]', "{}", "²", "٣"]
    ),
    st.sampled_from(
        [" padded ", "None", "true", "True", "{{text}}", "'", '"', "\\n", "C:\\new", "a'b\"c", "[", "]", "[]"]
    ),
)
SLOW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def made(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    write_splits(folder, config, rows)
    return find_task("mine", (folder,))


def choice_scores(task: Any, split: str = "validation") -> list[float]:
    """What lm-eval gives a model that finds the choice of the training row likeliest, row by row."""
    built = lm_eval_task(task, split)
    scores = []
    for doc in built.test_docs():
        requests = built.construct_requests(doc=doc, ctx=built.fewshot_context(doc, num_fewshot=0), metadata=("", 0, 1))
        gold = gold_index(built, doc)
        answers = [(0.0 if place == gold else -9.0, place == gold) for place in range(len(requests))]
        scores.append(float(built.process_results(doc, answers)["acc"]))
    return scores


LABELS: dict[str, tuple[list[Any] | str, list[Any], list[str]]] = {
    # what it shows: (choices, labels, what is trained); the last by hand, as the words say
    "numbers that are choices": (["1", "2", "3", "4", "5"], [1, 5, 2], [" 1", " 5", " 2"]),
    "texts of numbers": (["1", "0"], ["0", "1"], [" 0", " 1"]),
    "numbers in the file": ([1, 2, 3], ["3", "1"], [" 3", " 1"]),
    "whole numbers kept as fractions": (["5", "6"], [5.0, 6.0], [" 5", " 6"]),
    "fractions": (["0.5", "1.5"], [0.5, 1.5], [" 0.5", " 1.5"]),
    "places": (["no", "yes"], [1, 0], [" yes", " no"]),
    "places as texts": (["no", "yes"], ["1", "0"], [" yes", " no"]),
    "places from 0 of stars from 1": (["1", "2", "3"], [0, 1, 2], [" 1", " 2", " 3"]),
    "truth values": (["yes", "true", "False"], [True, False], [" true", " False"]),
    "truth values as texts": (["True", "False"], ["false", "true"], [" False", " True"]),
    "words": (["no", "yes"], ["yes", "no"], [" yes", " no"]),
    "leading zeros": (["007", "7"], ["7", "007"], [" 7", " 007"]),
}


@pytest.mark.parametrize("target", ["label", "{{label}}"])
@pytest.mark.parametrize("case", LABELS)
def test_a_label_means_what_the_row_says(tmp_path: Path, case: str, target: str) -> None:
    choices, labels, trained = LABELS[case]
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    task = made(tmp_path, CHOICE | {"doc_to_choice": choices, "doc_to_target": target}, rows)
    assert [row.completion for row in training_rows(task)] == trained
    assert choice_scores(task) == [1.0] * len(rows)


REFUSED: dict[str, tuple[list[Any], list[Any], str]] = {
    "truth values among words": (["yes", "no"], [True], "row 1: .* True, a truth value, which is neither a choice nor"),
    "truth values among numbers": (["0", "1"], [False, True], "row 1: .* is False, a truth value"),
    "places beyond the choices": (["a", "b"], [0, 2], "row 2: the label must be one of .* but is 2"),
    "names and places": (["1", "2", "a"], ["1", "0", "a"], "row 2: .* but is '0'"),
    "leading zeros": (["7", "8"], ["007", "8"], "row 1: .* but is '007'"),
    "templates in a list of choices": (
        ["{{text}}", "{{ label | upper }}", "maybe"],
        ["maybe"],
        r"""are templates: write one that shows the list, "\{\{\[text, label \| upper, 'maybe'\]\}\}\"""",
    ),
    "choices that YAML read": ([True, False], ["yes"], "a choice must be a text, but is True: put it into quotes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_label_that_may_mean_another_thing_is_refused(tmp_path: Path, case: str) -> None:
    choices, labels, message = REFUSED[case]
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    task = made(tmp_path, CHOICE | {"doc_to_choice": choices}, rows)
    with pytest.raises(SpecError, match=message):
        check_task(task)


def test_a_plan_says_how_labels_that_could_be_read_otherwise_are_read(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": str(i % 2)} for i in range(4)]
    task = made(tmp_path, CHOICE | {"doc_to_choice": ["1", "0"]}, rows)
    assert "labels are names of choices, not their places: '0' means '0'" in check_task(task)
    task = made(tmp_path, CHOICE | {"doc_to_choice": ["1", "2"]}, rows)
    assert "labels are places of choices, counted from 0, not their names: '1' means '2'" in check_task(task)


def test_a_place_that_a_template_computes_stays_one(tmp_path: Path) -> None:
    """As lm-eval's arc_easy does, where some of the choices are numbers."""
    rows = [
        {"text": "1 + 1", "choices": ["1", "2", "3"], "letters": ["A", "B", "C"], "key": "B"},
        {"text": "sky", "choices": ["blue", "red", "1"], "letters": ["A", "B", "C"], "key": "A"},
    ]
    config = CHOICE | {"doc_to_choice": "{{choices}}", "doc_to_target": "{{letters.index(key)}}"}
    assert [row.completion for row in training_rows(made(tmp_path, config, rows))] == [" 2", " blue"]
    with pytest.raises(
        SpecError, match=r"may be a choice or the place of one .*: let doc_to_target show the choice itself"
    ):
        check_task(made(tmp_path, config, rows[:1]))


def test_a_computed_label_that_can_only_be_a_choice_is_one(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": f"{i} stars"} for i in (1, 2, 3)]
    config = CHOICE | {"doc_to_choice": ["1", "2", "3"], "doc_to_target": "{{label[0] | int}}"}
    assert [row.completion for row in training_rows(made(tmp_path, config, rows))] == [" 1", " 2", " 3"]


def test_a_prompt_of_digits_is_a_prompt(tmp_path: Path) -> None:
    """lm-eval takes it for the place of a choice that stands in the prompt, as in Winogrande."""
    rows = [{"n": i, "label": ["even", "odd"][i % 2]} for i in range(2)]
    config = CHOICE | {"doc_to_text": "{{n}}", "doc_to_choice": ["even", "odd"]}
    task = made(tmp_path, config, rows)
    assert [(row.prompt, row.completion) for row in training_rows(task)] == [("0", " even"), ("1", " odd")]
    assert choice_scores(task) == [1.0, 1.0]
    rows = [{"n": i, "a": f"Ann {i}", "b": f"Bob {i}", "end": "won."} for i in (1, 0)]
    task = made(tmp_path, config | {"doc_to_choice": '["{{a}}", "{{b}}"]', "doc_to_target": "end"}, rows)
    assert [(row.prompt, row.completion) for row in training_rows(task)] == [("Bob 1", " won."), ("Ann 0", " won.")]


@SLOW
@given(st.lists(odd_text, min_size=2, max_size=6, unique=True), st.data())
def test_any_text_as_a_label_is_that_choice(tmp_path: Path, choices: list[str], data: Any) -> None:
    labels = data.draw(st.lists(st.sampled_from(choices), min_size=2, max_size=5))
    rows = [{"text": f"row {i}", "label": label, "options": choices} for i, label in enumerate(labels)]
    spelt = "[{% for one in options %}'{{one}}',{% endfor %}]"
    given_as = data.draw(st.sampled_from([choices, "options", "{{options}}", spelt]))
    assume(isinstance(given_as, str) or "{{text}}" not in choices)  # in a task file that is a mistake
    task = made(tmp_path, CHOICE | {"doc_to_choice": given_as}, rows)
    assert [row.completion for row in training_rows(task)] == [f" {label}" for label in labels]
    assert choice_scores(task) == [1.0] * len(rows)


@SLOW
@given(
    st.lists(odd_text, min_size=1, max_size=6),
    st.sampled_from([" ", "", " -> ", None]),
    st.sampled_from(["answer", "{{answer}}", " {{answer}}", "{{answer}}."]),
    st.sampled_from([None, "So:", "So: "]),
)
def test_any_text_as_an_answer_scores_when_it_is_said(
    tmp_path: Path, answers: list[str], delimiter: str | None, target: str, prefix: str | None
) -> None:
    """What a model that learned its row says, given to lm-eval's own exact_match."""
    rows = [{"text": f"row {i}", "answer": answer} for i, answer in enumerate(answers)]
    config = GENERATE | {"doc_to_target": target, "gen_prefix": prefix, "target_delimiter": delimiter}
    task = made(tmp_path, config, rows)
    built = lm_eval_task(task, "train")
    for row, answer in zip(training_rows(task), answers, strict=True):
        assert row.completion.endswith(answer + target.partition("}}")[2])
        assert float(built.process_results(row.doc, [row.completion])["exact_match"]) == 1.0
        assert float(built.process_results(row.doc, [row.completion + "!"])["exact_match"]) == 0.0


def test_an_answer_counts_with_its_delimiter_and_without(tmp_path: Path) -> None:
    """Some tokenizers do not give a leading space back, and a model that was not trained may say none."""
    rows = [{"text": "a", "label": "yes"}]
    for target in ("label", " {{label}}"):
        task = made(tmp_path, GENERATE | {"doc_to_target": target, "target_delimiter": " " * (target == "label")}, rows)
        built = lm_eval_task(task, "validation")
        said = [" yes", "yes", "  yes", "no"]
        assert [float(built.process_results(rows[0], [one])["exact_match"]) for one in said] == [1.0, 1.0, 0.0, 0.0]


def test_several_right_answers_stay_several(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": ["yes", "[yes]"]} for i in range(3)]
    for target in ("label", "{{label}}"):
        task = made(tmp_path, GENERATE | {"doc_to_target": target}, rows)
        built = lm_eval_task(task, "train")
        assert {row.completion for row in training_rows(task)} == {" yes"}
        said = [" yes", " [yes]", " no"]
        assert [float(built.process_results(rows[0], [one])["exact_match"]) for one in said] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("target", ["call", "{{call}}", "Call: {{call}}"])
def test_an_answer_in_pythons_notation_is_refused(tmp_path: Path, target: str) -> None:
    rows = [{"text": "a", "call": {"name": "f", "all": True}}]
    with pytest.raises(SpecError, match=r"row 1, must fit .*is no text: write it into the data as one"):
        check_task(made(tmp_path, GENERATE | {"doc_to_target": target}, rows))


def test_choices_in_a_cell_are_read_as_a_list(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "red", "options": '["red", "blue"]'}]
    for choices in ("options", "{{options}}"):
        task = made(tmp_path, CHOICE | {"doc_to_choice": choices}, rows)
        assert [(row.completion, row.wrong) for row in training_rows(task)] == [(" red", (" blue",))]
    with pytest.raises(SpecError, match="doc_to_choice must give a list of choices"):
        check_task(made(tmp_path, CHOICE | {"doc_to_choice": "text"}, rows))


def test_tasks_that_were_read_otherwise_have_another_fingerprint(tmp_path: Path) -> None:
    """Old records must not stand for a task that trains or scores something else now; the others keep theirs."""
    from harness.tasks import task as module

    def renewed(config: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
        found = made(tmp_path, config, rows)
        reading = vars(module)["was_read_otherwise"]
        return bool(reading(found.config, lambda: [dict(row) for row in rows]))

    def labelled(*labels: Any) -> list[dict[str, Any]]:
        return [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]

    plain = GENERATE | {"target_delimiter": "", "doc_to_target": "{{label}}"}
    assert not renewed(CHOICE, labelled("no", "yes"))
    assert not renewed(CHOICE, labelled(0, 1))
    assert not renewed(CHOICE | {"doc_to_choice": ["0", "1"]}, labelled(0, 1))
    assert renewed(CHOICE | {"doc_to_choice": ["1", "0"]}, labelled("0", "1"))
    assert not renewed(plain, labelled("red", "blue"))
    assert renewed(plain, labelled("red", "[blue]"))
    assert not renewed(plain | {"doc_to_target": "label"}, labelled("red", "[blue]"))
    assert renewed(plain | {"target_delimiter": None}, labelled("red", "blue"))
    assert renewed(plain | {"doc_to_target": " {{label}}"}, labelled("red", "blue"))


def test_meaning_of_labels() -> None:
    assert named_choice(5, ["5"]) == named_choice("5", ["5"]) == named_choice(5.0, ["5"]) == 0
    assert named_choice(True, ["true", "True"]) is None, "both are meant"
    assert named_choice("TRUE", ["true"]) == named_choice(True, ["TRUE"]) == 0
    assert named_choice(1, ["true"]) is named_choice(True, ["1"]) is named_choice("01", ["1"]) is None
    assert [
        whole_number(one) for one in (3, "3", 3.0, "03", True, -1, "-1", 1.5, float("nan"), float("inf"), "²", None)
    ] == [
        3,
        3,
        3,
        *[None] * 9,
    ]

"""Groups of tasks: one score, equal to lm-eval's own on the same model, and the scores of what it is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from harness.errors import SpecError
from harness.evaluation.item_files import write_items
from harness.metrics.base import SHARE
from harness.records.codec import decode, to_json
from harness.records.scale import Scale
from harness.records.trial import PartScore
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows
from tests.scoring import comparable, evaluate
from tests.tasks.writing import CHOICE, GENERATE, ROLLING, write_rows

SIZES = {"algebra": 4, "physics": 9, "law": 3, "history": 12}
GROUPS: dict[str, dict[str, Any]] = {
    "world": {
        "task": [
            "stem",
            {"group": "humanities", "task": ["law", "history"], "aggregate_metric_list": [{"metric": "acc"}]},
        ],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}, {"metric": "acc_norm"}],
        "metadata": {"version": 2},
    },
    "stem": {
        "group_alias": "science",
        "task": ["stem_tasks"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False, "filter_list": "none"}],
    },
    "changed": {
        "task": [{"task": "algebra", "doc_to_text": "Q: {{text}}"}, "law"],
        "doc_to_choice": ["no", "yes", "so"],
        "aggregate_metric_list": {"metric": "acc_norm", "weight_by_size": False},
    },
    "listed": {"task": ["algebra", "stem"]},
}


def write(folder: Path, **groups: dict[str, Any]) -> Path:
    """Four tasks, two of them with a tag, and groups of them."""
    metrics = {"metric_list": [{"metric": name, "aggregation": "mean"} for name in ("acc", "acc_norm")]}
    for number, (name, size) in enumerate(SIZES.items()):
        for split, count in (("train", 6), ("test", size)):
            rows = [
                {"text": f"{name} {split} {i * 7 % 11}", "label": ("no", "yes")[(i + number) % 2]} for i in range(count)
            ]
            write_rows(folder / f"{name}_{split}.jsonl", rows)
        # lm-eval looks for relative files where it was started
        files = {split: str(folder / f"{name}_{split}.jsonl") for split in ("train", "test")}
        tag = {"tag": "stem_tasks"} if name in ("algebra", "physics") else {}
        config = CHOICE | metrics | tag | {"task": name, "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    for name, keys in (GROUPS | groups).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name} | keys))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path)


def lm_evals(
    model: Any, tokenizer: Any, folder: Path, name: str, limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """lm-eval's own scores, by task and group."""
    from lm_eval.evaluator import evaluate as evaluate_theirs
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=1)
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load(name)
    results: dict[str, dict[str, Any]] = evaluate_theirs(wrapped, tasks, limit=limit, bootstrap_iters=10)["results"]
    return results


@pytest.mark.parametrize("name", ["world", "stem", "changed"])
def test_the_score_of_a_group_and_of_its_parts_is_lm_evals(model: Any, tokenizer: Any, folder: Path, name: str) -> None:
    ours = evaluate(model, tokenizer, find_task(name, (folder,)), "test", None)
    theirs = lm_evals(model, tokenizer, folder, name)
    metric = "acc_norm" if name == "changed" else "acc"
    for score in (ours.score, *ours.parts):
        assert score.metric == metric
        assert score.value == pytest.approx(theirs[score.task][f"{metric},none"], abs=1e-12)
        assert score.stderr == pytest.approx(theirs[score.task][f"{metric}_stderr,none"])
    assert {score.task for score in (ours.score, *ours.parts)} == set(theirs)
    assert len({score.value for score in ours.parts}) > 1  # or the way that it is averaged would not show


def test_a_group_opens_into_its_parts(model: Any, tokenizer: Any, folder: Path) -> None:
    task = find_task("world", (folder,))
    outcome = evaluate(model, tokenizer, task, "test", None)
    rows = [(part.task, part.parent, part.is_group, part.n) for part in outcome.parts]
    assert rows == [
        ("stem", "world", True, 13),
        ("algebra", "stem", False, 4),
        ("physics", "stem", False, 9),
        ("world::humanities", "world", True, 15),
        ("law", "world::humanities", False, 3),
        ("history", "world::humanities", False, 12),
    ]
    assert all(part.whole == "world" and part.counts for part in outcome.parts)
    assert (outcome.score.n, outcome.score.scale, task.higher_is_better) == (28, SHARE, True)
    # by hand: every task counts as often as it has items
    leaves = [part for part in outcome.parts if not part.is_group]
    assert outcome.score.value == pytest.approx(sum(part.value * part.n for part in leaves) / 28)
    assert [decode(PartScore, to_json(part)) for part in outcome.parts] == list(outcome.parts)
    path = folder / "items.parquet"
    write_items(path, [outcome])
    items = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["task"] for row in items] == [name for name, size in SIZES.items() for _ in range(size)]


def test_a_limit_is_of_each_task_as_in_lm_eval(model: Any, tokenizer: Any, folder: Path) -> None:
    outcome = evaluate(model, tokenizer, find_task("world", (folder,)), "test", 4)
    assert [part.n for part in outcome.parts if not part.is_group] == [4, 4, 3, 4]
    assert outcome.score.n == 15


def test_a_tag_and_a_group_without_aggregation_are_plain_means_and_say_so(
    model: Any, tokenizer: Any, folder: Path
) -> None:
    tag, group = (find_task(name, (folder,)) for name in ("stem_tasks", "listed"))
    outcome = evaluate(model, tokenizer, tag, "test", None)
    assert [part.task for part in outcome.parts] == ["algebra", "physics"]
    assert outcome.score.value == pytest.approx(sum(part.value for part in outcome.parts) / 2)
    assert tag.notes == ("its acc is the plain mean of its 2 parts: lm-eval has no score for a tag",)
    listed = evaluate(model, tokenizer, group, "test", None)
    own = {part.task: part.value for part in listed.parts if part.parent == "listed"}
    assert own.keys() == {"algebra", "stem"}
    assert listed.score.value == pytest.approx(math.fsum(own.values()) / 2)
    assert "plain mean of its 2 parts" in group.notes[0]


def test_a_part_has_the_comparability_of_the_task_by_itself(model: Any, tokenizer: Any, folder: Path) -> None:
    outcome = evaluate(model, tokenizer, find_task("world", (folder,)), "test", None)
    law = next(part for part in outcome.parts if part.task == "law")
    assert law.comparability == comparable(find_task("law", (folder,)), tokenizer)
    changed = evaluate(model, tokenizer, find_task("changed", (folder,)), "test", None)
    other = next(part for part in changed.parts if part.task == "law")
    assert other.comparability != law.comparability  # another metric, and another choice
    assert outcome.score.comparability != changed.score.comparability


def test_rows_of_a_group_are_those_of_its_tasks(folder: Path) -> None:
    group = find_task("world", (folder,))
    rows = training_rows(group)
    assert len(rows) == group.size("train") == sum(len(training_rows(find_task(name, (folder,)))) for name in SIZES)
    assert rows[0] == training_rows(find_task("algebra", (folder,)))[0]
    assert (group.output_type, sorted(group.parts)) == ("multiple_choice", ["test", "train", "validation"])
    notes = check_task(group)
    assert (
        notes[0]
        == "its acc is the mean over 4 of its 4 tasks, of which each counts as often as it has items, as in lm-eval"
    )
    assert "of several aggregated metrics, that counts which most tasks have: acc" in notes
    assert "all of its tasks: of several metrics, the first counts: acc" in notes


def test_what_has_no_such_metric_is_shown_and_does_not_count(model: Any, tokenizer: Any, folder: Path) -> None:
    files = {split: f"law_{split}.jsonl" for split in ("train", "test")}
    (folder / "essay.yaml").write_text(yaml.safe_dump(GENERATE | {"dataset_kwargs": {"data_files": files}}))
    keys = {
        "group": "mixed",
        "task": ["essay", "stem"],
        "aggregate_metric_list": [{"metric": "exact_match"}, {"metric": "acc"}],
    }
    (folder / "mixed.yaml").write_text(yaml.safe_dump(keys))
    task = find_task("mixed", (folder,))
    outcome = evaluate(model, tokenizer, task, "test", None)
    assert [(part.task, part.counts) for part in outcome.parts] == [
        ("essay", False),
        ("stem", True),
        ("algebra", True),
        ("physics", True),
    ]
    assert (task.metric, outcome.score.n) == ("acc", 13)
    assert "scored but without acc, so not part of its score: essay" in task.notes


def test_a_task_may_stand_in_the_file_of_its_group(model: Any, tokenizer: Any, folder: Path) -> None:
    inner = {"task": "asked", "include": "law.yaml", "doc_to_text": "Asked: {{text}}"}
    (folder / "own.yaml").write_text(yaml.safe_dump({"group": "own", "task": [inner, "law"]}))
    group = find_task("own", (folder,))
    assert [leaf.name for leaf in group.leaves] == ["own::asked", "law"]
    assert training_rows(group)[0].prompt.startswith("Asked: law train")
    outcome = evaluate(model, tokenizer, group, "test", None)
    assert [(part.task, part.n) for part in outcome.parts] == [("own::asked", 3), ("law", 3)]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no members": ({"task": []}, "group bad must have members"),
    "unknown member": ({"task": ["lwa"]}, "group bad: member .*'lwa': did you mean 'law'"),
    "itself": ({"task": ["bad"]}, "group bad must not contain itself"),
    "in a circle": ({"task": [{"group": "inner", "task": ["bad"]}]}, "must not contain itself"),
    "no name": ({"task": [3]}, "must be a name, or have task or group, but is 3"),
    "unknown key": ({"task": ["law"], "agregate_metric_list": []}, "did you mean 'aggregate_metric_list'"),
    "another name": ({"group": "good", "task": ["law"]}, "group must equal the file's name, but is 'good'"),
    "no mean": (
        {"task": ["law"], "aggregate_metric_list": [{"metric": "acc", "aggregation": "median"}]},
        "must be mean",
    ),
    "no metric": ({"task": ["law"], "aggregate_metric_list": [{"weight_by_size": True}]}, "must name a metric"),
    "misspelt weight": (
        {"task": ["law"], "aggregate_metric_list": [{"metric": "acc", "weight_by_sise": True}]},
        "did you mean 'weight_by_size'",
    ),
    "a number for members": ({"task": 5}, "must hold values of lm-eval's kinds"),
    "text for metadata": ({"task": ["law"], "metadata": "words"}, "must hold values of lm-eval's kinds"),
    "number for metrics": ({"task": ["law"], "aggregate_metric_list": 5}, "must name a metric, but is 5"),
    "losses and shares": ({"task": ["law", "text"]}, "acc of law and bits_per_byte of text have another direction"),
    "two scales": ({"task": ["law", "hundred"]}, "acc of law and bleu of hundred have another direction or best value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_group_that_cannot_be_scored_is_refused_in_one_sentence(folder: Path, case: str) -> None:
    keys, message = REFUSED[case]
    files = {split: f"law_{split}.jsonl" for split in ("train", "test")}
    for name, config in {"text": ROLLING, "hundred": GENERATE | {"metric_list": [{"metric": "bleu"}]}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config | {"dataset_kwargs": {"data_files": files}}))
    (folder / "bad.yaml").write_text(yaml.safe_dump({"group": "bad"} | keys))
    with pytest.raises(SpecError, match=message) as caught:
        find_task("bad", (folder,))
    assert "\n" not in str(caught.value)


def test_the_scale_of_a_plain_mean_is_the_mean_of_the_scales(folder: Path) -> None:
    law = yaml.safe_load((folder / "law.yaml").read_text())
    law["metric_list"] = [{"metric": "mcc"}]
    (folder / "law.yaml").write_text(yaml.safe_dump(law))
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["law", "history"]}))
    task = find_task("both", (folder,))
    assert (task.metric, task.scale) == ("mean", Scale(low=-0.5, high=1.0))


def test_a_metric_that_the_items_lack_is_not_replaced_by_another(model: Any, tokenizer: Any, folder: Path) -> None:
    law = yaml.safe_load((folder / "law.yaml").read_text())
    law["metric_list"] = [{"metric": "bleu"}, {"metric": "acc"}]
    (folder / "law.yaml").write_text(yaml.safe_dump(law))
    with pytest.raises(SpecError, match="every item must be scored by bleu, but one has only"):
        evaluate(model, tokenizer, find_task("law", (folder,)), "test", None)


def test_a_value_beyond_its_declared_bounds_stops_the_study(model: Any, tokenizer: Any, folder: Path) -> None:
    task = replace(find_task("law", (folder,)), scale=Scale(low=2.0, high=3.0))
    with pytest.raises(SpecError, match=r"acc must lie within its declared bounds \[2.0, 3.0\], but is"):
        evaluate(model, tokenizer, task, "test", None)

"""One deliberate mistake in every input: one sentence with the remedy, the right exit code, nothing lost."""

import json
import shutil

import pytest
import yaml

GOOD_TASK = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "rows.jsonl", "test": "rows.jsonl"}},
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": ["no", "yes"],
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(40)]


def write_study(project, **changes):
    study = yaml.safe_load((project.folder / "studies/quickstart.yaml").read_text()) | {"name": "s"} | changes
    (project.folder / "studies/s.yaml").write_text(yaml.safe_dump(study))


def write_task(project, rows=ROWS, **changes):
    task = {key: value for key, value in (GOOD_TASK | changes).items() if value is not None}
    (project.folder / "studies/tasks/mine.yaml").write_text(yaml.safe_dump(task))
    (project.folder / "studies/tasks/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_study(project, tasks=["mine"])


def sentence(done):
    lines = [line for line in done.stderr.splitlines() if line.startswith("harness: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": 3}, "did you mean 'seed'"),
        ({"families": {"a": {"method": "loar"}}}, "did you mean 'lora'"),
        ({"families": {"a": {"method": "lora", "params": {"rank": -1}}}}, "rank must lie in"),
        ({"base_models": ["tiny-1k"]}, "tiny-1k"),
        ({"tasks": ["tb_sentimnt"]}, "did you mean 'tb_sentiment'"),
        ({"budget": {"gpu_seconds": 0.01, "steps": 1000}}, "one trial"),
    ],
    ids=["unknown-key", "misspelt-method", "out-of-range", "unknown-model", "misspelt-task", "no-budget"],
)
def test_a_wrong_study(fresh, changes, expected):
    write_study(fresh, **changes)
    assert expected in sentence(fresh.harness("plan", "s", code=3))


@pytest.mark.parametrize(
    ("changes", "rows", "expected"),
    [
        ({"dataset_kwargs": {"data_files": {"train": "gone.jsonl", "test": "rows.jsonl"}}}, ROWS, "gone.jsonl"),
        ({}, [], "empty"),
        ({"doc_to_target": "label"}, [{"text": f"row {i}", "label": 7} for i in range(30)], "7"),
        ({"metric_list": None}, ROWS, "metric"),
        ({"doc_to_txt": "{{text}}"}, ROWS, "did you mean 'doc_to_text'"),
        ({"doc_to_text": "{{txet}}"}, ROWS, "txet"),
        ({"metadata": {"x": 1}, "process_docs": "!function helpers.clean"}, ROWS, "HARNESS_ALLOW_CODE"),
    ],
    ids=["missing-file", "empty-split", "label-not-in-choices", "no-metric", "unknown-key", "missing-column", "code"],
)
def test_a_wrong_task(fresh, changes, rows, expected):
    write_task(fresh, rows, **changes)
    if "process_docs" in changes:
        path = fresh.folder / "studies/tasks/mine.yaml"
        path.write_text(path.read_text().replace("'!function helpers.clean'", "!function helpers.clean"))
    assert expected in sentence(fresh.harness("plan", "s", code=3))


def test_a_model_folder_without_a_tokenizer(fresh):
    from harness.models.base_model import embedded_models, resolve_model

    source = resolve_model(embedded_models()[0], None).source
    shutil.copytree(source, fresh.folder / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    write_study(fresh, base_models=["./model"])
    assert "tokenizer" in sentence(fresh.harness("plan", "s", code=3))


def test_an_output_folder_of_another_study(fresh):
    fresh.harness("search", "quickstart", "--dry-run")
    folder = fresh.folder / "results/studies/quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"fingerprint": "another", "study": {}}))
    assert "another study" in sentence(fresh.harness("base", "quickstart", code=3))
    assert json.loads((folder / "study.json").read_text())["fingerprint"] == "another"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("plan", "nothing"), 3, "study must be one of those known"),
        (("serach", "quickstart"), 2, "No such command"),
        (("plan", "quickstart", "--runner", "cloud"), 2, "runner"),
        (("plan", "quickstart", "--runner-option", "workers"), 2, "KEY=VALUE"),
        (("list", "metods"), 2, "did you mean 'methods'"),
        (("report", "quickstart"), 3, "quickstart"),
        (("status", "quickstart"), 3, "quickstart"),
        (("import", "nowhere"), 3, "nowhere"),
        (("export", "x", "--format", "optuna"), 2, "--study"),
        (("train", "--task", "nothing_known"), 3, "nothing_known"),
        (("recommend", "--task", "nothing_known"), 3, "nothing_known"),
        (("--root", "nowhere", "list"), 2, "nowhere"),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, tuple) else None,
)
def test_a_wrong_command(fresh, arguments, code, expected):
    assert expected in sentence(fresh.harness(*arguments, code=code))


def test_a_missing_variable_is_named(fresh, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    assert "HARNESS_DATA" in sentence(fresh.harness("plan", "real_small", code=3))

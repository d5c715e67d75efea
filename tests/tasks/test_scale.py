"""A metric's direction and scale come from a declaration, never from how its name sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml

from harness.errors import SpecError
from harness.metrics.base import LM_EVAL_TASK_SCALES, SHARE, measure, register
from harness.records.scale import Scale
from harness.tasks.code import resolved
from harness.tasks.definition import Definition, metric_name
from harness.tasks.file import ALLOW_CODE, file_sha256
from harness.tasks.group import Leaf, find
from harness.tasks.metadata import TaskMetadata
from harness.tasks.scale import declared_scale
from harness.tasks.task import find_task

from .writing import CHOICE, GENERATE, ROLLING, write_task

HUNDRED = Scale(low=0.0, high=100.0)
UNKNOWN = Scale()
CODE = "def squad_f1(doc, results):\n    return {'f1': 85.1}\n\n\ndef total(items):\n    return 1000.0\n"


def of(metric: str, **more: Any) -> dict[str, Any]:
    return {"metric_list": [{"metric": metric, **more}]}


DECLARED = {
    "lm-eval's share": (CHOICE, {}, SHARE),
    "its default aggregation": (CHOICE, of("acc_norm"), SHARE),
    "another mean": (CHOICE, of("acc", aggregation="median"), SHARE),
    "correlation": (CHOICE, of("mcc"), Scale(low=-1.0, high=1.0)),
    "f1 of labels": (CHOICE, of("f1"), SHARE),
    "squared error": (CHOICE, of("brier_score"), Scale(low=0.0, high=2.0)),
    "of a hundred": (GENERATE, of("bleu"), HUNDRED),
    "no upper end": (GENERATE, of("ter"), Scale(low=0.0)),
    "bits": (ROLLING, {}, Scale(low=0.0)),
    "perplexity": (ROLLING, of("byte_perplexity"), Scale(low=1.0)),
    "ours": (CHOICE, of("ece"), SHARE),
    "ours with two ends": (CHOICE, of("brier"), Scale(low=0.0, high=2.0)),
    "spread of a share": (CHOICE, of("acc", aggregation="bypass"), UNKNOWN),
    "the task's own": (
        CHOICE,
        of("elo", higher_is_better=True) | {"process_results": "!function code.squad_f1"},
        UNKNOWN,
    ),
    "the task's own under a known name": (CHOICE, of("acc") | {"process_results": "!function code.squad_f1"}, UNKNOWN),
    "lm-eval's function over the task's own items": (
        CHOICE,
        of("f1", aggregation="f1") | {"process_results": "!function code.squad_f1"},
        SHARE,
    ),
    "the task's own aggregation": (CHOICE, of("acc", aggregation="!function code.total"), UNKNOWN),
    "declared": (
        CHOICE,
        of("f1")
        | {"process_results": "!function code.squad_f1", "metadata": {"metrics": {"f1": {"bounds": [0, 100]}}}},
        HUNDRED,
    ),
}


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    path = write_task(folder, config)
    path.write_text(path.read_text().replace("'!function ", "!function ").replace("code.squad_f1'", "code.squad_f1"))
    path.write_text(path.read_text().replace("code.total'", "code.total"))
    (folder / "code.py").write_text(CODE)
    allowed = (path, folder / "code.py")
    monkeypatch.setenv(ALLOW_CODE, ",".join(map(file_sha256, allowed)))


@pytest.mark.parametrize("case", DECLARED)
def test_the_scale_is_what_whoever_computes_the_metric_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    config, change, scale = DECLARED[case]
    write(tmp_path, monkeypatch, config | change)
    assert find_task("mine", (tmp_path,)).scale == scale


REFUSED = {
    "no direction": (of("elo"), "must say which direction is better, but nobody does: add higher_is_better"),
    "two directions": (
        of("elo", higher_is_better=True) | {"metadata": {"metrics": {"elo": {"higher_is_better": False}}}},
        "must be the same in metric_list and metadata.metrics, but is true and false",
    ),
    "misspelt": ({"metadata": {"metrics": {"ac": {"bounds": [0, 1]}}}}, "metric in metadata.metrics .*'ac'.*'acc'"),
    "other bounds": (
        {"metadata": {"metrics": {"acc": {"bounds": [0, 100]}}}},
        r"must be \[0, 1\], between which acc lies",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_declared_nowhere_or_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, message = REFUSED[case]
    own = {"process_results": "!function code.squad_f1"} if "direction" in case else {}
    write(tmp_path, monkeypatch, CHOICE | own | change)
    with pytest.raises(SpecError, match=message):
        find_task("mine", (tmp_path,))


def test_a_direction_may_stand_in_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = of("elo") | {"metadata": {"metrics": {"elo": {"higher_is_better": False, "bounds": [None, 0]}}}}
    write(tmp_path, monkeypatch, CHOICE | {"process_results": "!function code.squad_f1"} | change)
    task = find_task("mine", (tmp_path,))
    assert (task.higher_is_better, task.scale) == (False, Scale(high=0.0))


class _Yaml(yaml.CSafeLoader):
    """Functions become texts."""


_Yaml.add_constructor("!function", lambda loader, node: lambda *_: str(node.value))


def test_how_many_names_in_lm_evals_files_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The direction of all but those that declare none; a scale only where lm-eval's own code computes the value."""
    from lm_eval.api.registry import METRIC_REGISTRY, is_higher_better

    register()
    before = ("acc", "exact_match", "f1", "mcc", "match", "precision", "recall", "em")
    names: dict[str, list[bool]] = {}
    scaled: set[str] = set()
    for path in Path(lm_eval.__file__).parent.joinpath("tasks").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        keys = yaml.load(text, Loader=_Yaml) if "metric_list" in text else {}
        for entry in keys.get("metric_list") or ():
            if isinstance(entry.get("metric"), str):
                name = str(entry["metric"])
                known = entry.get("higher_is_better", is_higher_better(name) if name in METRIC_REGISTRY else None)
                names.setdefault(name, []).append(isinstance(known, bool))
                definition = Definition.of(keys | {"metric_list": [entry], "metadata": {}})
                if declared_scale(definition, TaskMetadata(), str(path)) != Scale():
                    scaled.add(name)
    by_name = [name for name in names if any(name.lower() == s or name.lower().startswith(f"{s}_") for s in before)]
    directed = [name for name, known in names.items() if all(known)]
    with capsys.disabled():
        print(f"\nof {len(names)} metric names in lm-eval's files, {len(by_name)} were recognised by their spelling;")
        print(
            f"{len(directed)} declare a direction wherever they stand, {len(scaled)} a scale; the rest is shown as it is"
        )
    assert len(names) >= 171
    assert len(directed) == len(names)
    assert {"acc", "acc_norm", "exact_match", "f1", "mcc", "bleu", "chrf", "ter", "bits_per_byte"} <= scaled
    assert all(
        name in METRIC_REGISTRY or measure(name) or metric_name({"metric": name}) in ("f1", "bleu") for name in scaled
    )


@pytest.mark.parametrize("folder", LM_EVAL_TASK_SCALES)
def test_what_is_declared_for_lm_evals_own_code_is_what_its_files_name(folder: str) -> None:
    """A name that no file has would stand for nothing."""
    place = Path(lm_eval.__file__).parent / "tasks" / folder
    text = "".join(path.read_text() for path in place.glob("*") if path.is_file() and path.suffix != ".md")
    assert all(name in text for name in LM_EVAL_TASK_SCALES[folder])


def test_code_of_lm_evals_has_its_scale_only_where_it_is_lm_evals() -> None:
    minerva = find("minerva_math_algebra", ())
    assert isinstance(minerva, Leaf)
    keys = {key: resolved(minerva.file.config[key]) for key in ("process_results", "output_type")}
    for name, more, scale in (
        ("math_verify", {}, SHARE),
        ("exact_match", {"aggregation": "mean"}, SHARE),
        ("exact_match", {"aggregation": "bypass"}, UNKNOWN),
        ("exact_match", {"aggregation": lambda items: 100.0}, UNKNOWN),
        ("other", {}, UNKNOWN),
    ):
        definition = Definition.of(keys | {"metric_list": [{"metric": name, **more}]})
        assert declared_scale(definition, TaskMetadata(), "here") == scale
    keys["process_results"] = lambda doc, results: {"exact_match": 85.1}
    definition = Definition.of(keys | {"metric_list": [{"metric": "exact_match", "aggregation": "mean"}]})
    assert declared_scale(definition, TaskMetadata(), "here") == UNKNOWN

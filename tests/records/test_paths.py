"""Every file below results/ and reports/ has its place in `records.paths`, and no other module names one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from harness.records.paths import Paths

PACKAGE = Path(__file__).parents[2] / "harness"
PATHS = PACKAGE / "records" / "paths.py"
TWICE = {"studies", "models"}
"""Folders of the project and of the package that are called like one below results/."""
WITHIN = {"tasks.json", "models.json"}
"""Names that `paths` puts together."""


def joined(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """What a module puts behind a `/` or into `glob`: the left side, and the end of the literal."""
    for node in ast.walk(tree):
        pairs = [(node.left, node.right)] if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "glob" in node.func.attr:
            pairs += [(node.func.value, argument) for argument in node.args]
        for left, right in pairs:
            literal = right.values[-1] if isinstance(right, ast.JoinedStr) else right
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                yield left, literal.value


def test_no_other_module_writes_a_name_that_paths_computes() -> None:
    names = {text for _, text in joined(ast.parse(PATHS.read_text()))} - {".json", ".html", "*.json"} | WITHIN
    assert {"members.jsonl", "driver.lock", ".done", "backtest.json", "queue"} <= names
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PATHS:
            continue
        for left, text in joined(ast.parse(path.read_text())):
            below = isinstance(left, ast.Attribute) and left.attr in ("results", "reports")
            if text.split("/")[-1] in (names if below else names - TWICE):
                offenders.append(f"{path.relative_to(PACKAGE)}: {text}")
    assert offenders == []


def test_every_path_lies_below_its_root_and_no_two_are_one(tmp_path: Path) -> None:
    paths, study = Paths(tmp_path / "results", tmp_path / "reports"), Paths(tmp_path / "results").study("s")
    key = "ab" + "0" * 18
    trial = [paths.record, paths.items, paths.checkpoint, paths.midway, paths.rungs, paths.traceback, paths.model]
    files = [part(key) for part in trial]
    assert all(file.parent == paths.trial(key) == paths.trials / "ab" / key for file in files)
    own = [study.spec, study.plan, study.members, study.stops, study.jobs, study.queue, study.logs, study.lock]
    own += [study.facts("tasks"), study.facts("models"), *map(study.done, ("base", "search", "confirm"))]
    assert all(file.parent == study.folder for file in own)
    files += [*own, paths.database, paths.database_lock, paths.backtest, paths.cache, paths.machine, paths.trained("s")]
    assert all(file.is_relative_to(paths.results) for file in files)
    assert len(set(files)) == len(files)
    assert paths.report("s") == tmp_path / "reports" / "s.html"


def test_folders_are_listed_in_order_and_absent_ones_are_empty(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert (list(paths.records()), paths.studies(), paths.started()) == ([], [], [])
    for key in ("ff1", "ab2", "ab1"):
        paths.trial(key).mkdir(parents=True)
    for name in ("b", "a"):
        paths.study(name).folder.mkdir(parents=True)
    paths.study("b").spec.touch()
    assert list(paths.records()) == [str(paths.record(key)) for key in ("ab1", "ab2", "ff1")]
    assert [study.name for study in paths.studies()] == ["a", "b"]
    assert [study.name for study in paths.started()] == ["b"]

"""The rules that keep the code small: who imports whom, who owns which heavy library, how long things get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "harness"
MODULES = {
    ".".join(("harness", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}

# Imports run one way: a module imports only from its own layer or from an earlier one of its half.
FOUNDATIONS = {"errors", "space", "plugins", "records", "layout", "recipes", "spec", "metrics"}
RUNNING = [
    FOUNDATIONS | {"testbed"},
    {
        "methods",
        "objectives",
        "retention",
        "curation",
        "models",
        "taskfile",
        "rows",
        "tasks",
        "templates",
        "data",
        "cost",
        "tokens",
        "measures",
        "sampling",
        "sandbox",
        "optimizer",
    },
    {"attention", "batches", "supervised", "fused", "packs", "trees", "shortcuts", "scoring"},
    {
        "train",
        "trainer_engine",
        "sessions",
        "reference",
        "calibration",
        "checkpoint",
        "artifacts",
        "provenance",
        "machine",
        "warm",
    },
    {"answers", "evaluate", "failures"},
    {"run"},
    {"trial"},
    {"setting", "search", "members", "worker"},
    {"runners", "forecast", "progress", "ledger"},
    {"driver", "sources"},
    {"plan"},
    {"sweep"},
]
LEARNING = [
    FOUNDATIONS,
    {"statistics", "scaling"},
    {"members", "ledger", "store", "export"},
    {"features"},
    {"surrogates"},
    {"recommend"},
    {"report"},
]
OWNERS = {
    "duckdb": {"store", "export"},
    "submitit": {"runners"},
    "optuna": {"search", "export"},
    "lm_eval": {"measures", "tasks", "templates", "data", "evaluate", "answers"},
    "trl": {"objectives"},
    "peft": {"methods", "warm"},
    "seaborn": {"report"},
    "bitsandbytes": {"methods"},
    "opacus": {"methods"},
    "click": {"cli", "terminal"},
}


def imported(tree, runtime_only=False):
    """Modules that a module imports anywhere, type-checking blocks left out if `runtime_only`."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if runtime_only and id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(name):
    return name.split(".")[1] if "." in name else ""


def own_imports(name):
    return {part(other) for other in imported(TREES[name], runtime_only=True) if other.startswith("harness.")} - {
        part(name)
    }


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("layers", [RUNNING, LEARNING], ids=["running", "learning"])
def test_imports_run_one_way(layers):
    level = {member: index for index, layer in enumerate(layers) for member in layer}
    backwards = {
        f"{name} imports {other}"
        for name in MODULES
        for other in own_imports(name)
        if part(name) in level and other in level and level[other] > level[part(name)]
    }
    assert backwards == set()


def test_nothing_imports_the_command_line():
    assert {name for name in MODULES if "cli" in own_imports(name)} == set()


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_each_heavy_library_has_its_owners(library):
    users = {
        part(name) for name, tree in TREES.items() if any(i.split(".")[0] == library for i in imported(tree, True))
    }
    assert users <= OWNERS[library]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_stay_small(name):
    lines = MODULES[name].read_text().count("\n")
    assert lines <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or body[-1].end_lineno - body[0].lineno < 50, node.name
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([argument for argument in names if argument not in ("self", "cls")]) <= 6, node.name


def test_the_halves_meet_only_at_records():
    """Learning from records needs no torch, and `import harness` loads nothing heavy."""
    code = "import sys, harness, harness.store, harness.recommend, harness.report.page, harness.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

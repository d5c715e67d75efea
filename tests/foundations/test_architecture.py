"""The rules that keep the code small: who imports whom, who owns which heavy library, how long things get."""

import ast
import re
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

# A package imports only from those before it. Every module stands in one of them, and every import counts: at the top,
# inside a function, for type checking only.
ORDER = (
    "errors files space plugins records study models metrics tasks nn analysis axes "
    "methods objectives retention curation cost training evaluation trial workers runners search driver "
    "foreign database recommend report testbed compare cli"
).split()
OWNERS = {
    "duckdb": {"database"},
    "submitit": {"runners"},
    "optuna": {"search", "database", "foreign"},
    "lm_eval": {"metrics", "tasks", "evaluation"},
    "trl": {"objectives"},
    "peft": {"methods", "trial"},
    "seaborn": {"report"},
    "bitsandbytes": {"methods"},
    "opacus": {"methods"},
    "click": {"cli"},
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
    return {part(other) for other in imported(TREES[name]) if other.startswith("harness.")} - {
        part(name),
        "__version__",
    }


def test_every_module_says_what_it_is_for():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_imports_run_one_way():
    backwards = {
        f"{name} imports {other}"
        for name in MODULES
        for other in own_imports(name)
        if part(name) and ORDER.index(other) > ORDER.index(part(name))
    }
    assert backwards == set()


def test_every_package_stands_in_the_order_and_in_the_architecture():
    packages = {part(name) for name in MODULES} - {""}
    assert sorted(packages) == sorted(ORDER)
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    assert [name for name in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) if name in packages] == ORDER


def test_modules_of_a_package_import_each_other_one_way():
    """No circle among modules, whichever imports are counted."""
    arrows = {name: {other for other in imported(TREES[name]) if other in MODULES} - {name} for name in MODULES}
    while leaves := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert sorted(arrows) == []


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_each_heavy_library_has_its_owners(library):
    users = {
        part(name) for name, tree in TREES.items() if any(i.split(".")[0] == library for i in imported(tree, True))
    }
    assert users <= OWNERS[library]


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_files_stay_small():
    assert [name for name, path in MODULES.items() if path.read_text().count("\n") > 400] == []


def test_functions_stay_small():
    long = []
    for name, tree in TREES.items():
        for node in functions(tree):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body and body[-1].end_lineno - body[0].lineno >= 50:
                long.append(f"{name}.{node.name}")
    assert long == []


def test_functions_take_at_most_six_arguments():
    wide = []
    for name, tree in TREES.items():
        for node in functions(tree):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len([argument for argument in names if argument not in ("self", "cls")]) > 6:
                wide.append(f"{name}.{node.name}")
    assert wide == []


def test_the_halves_meet_only_at_records():
    """Learning from records needs no torch, and `import harness` loads nothing heavy."""
    modules = "sys, harness, harness.database.ingest, harness.recommend.rank, harness.report.page, harness.cli.main"
    code = f"import {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

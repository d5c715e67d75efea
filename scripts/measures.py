"""Measures of the code under `harness/`, printed as a table, so that two checkouts can be compared.

    python scripts/measures.py              # the checkout that this script stands in
    python scripts/measures.py ../before    # another one

Everything is read from source text and syntax trees; nothing of the checkout is imported or run, and tests and scripts
are left out. Each function below states how it counts.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from statistics import median_high

PACKAGE = "harness"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COLLECTIONS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
COLLECTION_TYPES = set(
    "dict list set bytearray defaultdict deque Counter OrderedDict ChainMap "
    "WeakKeyDictionary WeakValueDictionary WeakSet".split()
)
CHANGES = set(
    "add append appendleft clear discard extend extendleft insert move_to_end pop popitem popleft remove reverse "
    "setdefault sort update".split()
)
DIRECTIVES = ("# type:", "# noqa", "# fmt:", "# ruff:", "# mypy:", "# pragma:")

Rows = dict[str, int | str]
Graph = Mapping[str, set[str]]


@dataclass(frozen=True, kw_only=True)
class Module:
    """One file of the package."""

    name: str  # dotted; a package's own is that of its __init__.py
    package: str  # what a relative import starts from
    text: str
    tree: ast.Module


@dataclass(frozen=True, kw_only=True)
class Import:
    """One name that a module of the package imports from the package."""

    statement: ast.AST
    source: str  # the importing module
    target: str  # the module that holds the name, or is it
    local: str  # what the name is called in the importing module
    name: str  # the dotted name it stands for


def read_modules(checkout: Path) -> list[Module]:
    """Read every Python file under `checkout`/harness."""
    modules = []
    for path in sorted((checkout / PACKAGE).rglob("*.py")):
        file = ".".join(path.relative_to(checkout).with_suffix("").parts)
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        name, package = file.removesuffix(".__init__"), file.rpartition(".")[0]
        modules.append(Module(name=name, package=package, text=text, tree=tree))
    return modules


def nodes(modules: Iterable[Module]) -> Iterator[ast.AST]:
    """Every node of every module."""
    for module in modules:
        yield from ast.walk(module.tree)


def functions(modules: Iterable[Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function, methods and functions inside functions included."""
    return (node for node in nodes(modules) if isinstance(node, FUNCTIONS))


def in_functions(tree: ast.Module) -> set[ast.AST]:
    """Nodes that lie inside a function."""
    return {inner for node in ast.walk(tree) if isinstance(node, FUNCTIONS) for inner in ast.walk(node)}


def in_type_checking(tree: ast.Module) -> set[ast.AST]:
    """Nodes that lie in the body of an `if TYPE_CHECKING:`."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING")
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def last_name(node: ast.AST) -> str:
    """The last part of a dotted name; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def decorators(node: ast.AST) -> set[str]:
    """Last names of a definition's decorators, called or not."""
    listed: list[ast.expr] = getattr(node, "decorator_list", [])
    return {last_name(item.func if isinstance(item, ast.Call) else item) for item in listed}


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a string constant."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def spread(lengths: Iterable[int]) -> str:
    """Median (the upper of two middle values), the value above nine tenths of the others (p90), and maximum."""
    ordered = sorted(lengths) or [0]
    return f"{median_high(ordered)} / {ordered[int(0.9 * len(ordered))]} / {ordered[-1]}"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first to the last statement of a function, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def sizes(modules: list[Module]) -> Rows:
    """Lengths of files and of function bodies, in lines; blank lines and comments count."""
    lines = [len(module.text.splitlines()) for module in modules]
    bodies = [body_lines(function) for function in functions(modules)]
    over = sum(length > 50 for length in bodies)
    return {
        "files": len(modules),
        "lines": sum(lines),
        "lines of a file, median / p90 / max": spread(lines),
        "functions": len(bodies),
        "lines of a function body, median / p90 / max": spread(bodies),
        "functions with a body over 50 lines": f"{over} ({100 * over / max(1, len(bodies)):.1f} %)",
    }


def own_imports(modules: list[Module]) -> list[Import]:
    """What the modules import from one another, imports inside functions and under TYPE_CHECKING included.

    That `import a.b` runs `a/__init__.py` too does not count, nor does a plug-in that is loaded by its name.
    """
    known = {module.name for module in modules}
    imports = []
    for module in modules:
        for node in ast.walk(module.tree):
            for local, name in imported_names(node, module.package):
                target = name if name in known else name.rpartition(".")[0]
                if target in known:
                    imports.append(Import(statement=node, source=module.name, target=target, local=local, name=name))
    return imports


def imported_names(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """What a statement imports: the local name and the dotted name of each."""
    if isinstance(node, ast.Import):
        yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = resolve_name("." * node.level + (node.module or ""), package)
        yield from ((alias.asname or alias.name, f"{base}.{alias.name}") for alias in node.names)


def room(module: str) -> str:
    """The top-level package or top-level module that a module belongs to."""
    return ".".join(module.split(".")[:2])


def graph(imports: Iterable[Import], place: Callable[[str], str]) -> dict[str, set[str]]:
    """Arrows from each importing place to the places that it imports from."""
    arrows: dict[str, set[str]] = {}
    for each in imports:
        arrows.setdefault(place(each.target), set())
        arrows.setdefault(place(each.source), set()).add(place(each.target))
    return arrows


def reachable(arrows: Graph, start: str) -> set[str]:
    """Places that can be reached from `start` by one arrow or more."""
    reached: set[str] = set()
    waiting = list(arrows[start])
    while waiting:
        place = waiting.pop()
        if place not in reached:
            reached.add(place)
            waiting.extend(arrows[place])
    return reached


def components(arrows: Graph) -> dict[str, frozenset[str]]:
    """The strongly connected component of each place: itself, and all from which and to which a path leads."""
    reach = {place: reachable(arrows, place) for place in arrows}
    return {place: frozenset({place} | {other for other in reach[place] if place in reach[other]}) for place in arrows}


def floors(arrows: Graph, component: Mapping[str, frozenset[str]]) -> int:
    """Places on the longest path of imports; the places of a circle share one floor."""

    @cache
    def floor(members: frozenset[str]) -> int:
        below = {component[target] for member in members for target in arrows[member]} - {members}
        return 1 + max(map(floor, below), default=0)

    return max(map(floor, component.values()), default=0)


def structure(modules: list[Module]) -> Rows:
    """Rooms, and the floors and circles of imports among rooms and among modules.

    A room is a top-level package, whatever it holds, or a top-level module. A circle is a strongly connected component
    of more than one place.
    """
    packages = {room(module.name) for module in modules if module.package.count(".") > 0}
    flat = {module.name for module in modules if module.name.count(".") == 1} - packages
    imports = own_imports(modules)
    typing = {node for module in modules for node in in_type_checking(module.tree)}
    runtime = [each for each in imports if each.statement not in typing]
    rows: Rows = {
        "modules flat in harness/": len(flat),
        "modules and packages in harness/ (rooms)": len(flat | packages),
    }
    for places, place in (("rooms", room), ("modules", str)):
        for kind, counted in (("run time", runtime), ("types too", imports)):
            component = components(arrows := graph(counted, place))
            rows[f"floors of {places}, {kind}"] = floors(arrows, component)
            rows[f"circles of {places}, {kind}"] = sum(len(members) > 1 for members in set(component.values()))
    return rows


def import_places(modules: list[Module]) -> Rows:
    """Import statements inside functions and under TYPE_CHECKING, each counted once."""
    own = {each.statement for each in own_imports(modules)}
    statements = {node for node in nodes(modules) if isinstance(node, ast.Import | ast.ImportFrom)}
    inside = {node for module in modules for node in in_functions(module.tree)} & statements
    typing = {node for module in modules for node in in_type_checking(module.tree)} & statements
    return {
        "imports inside functions": len(inside),
        "imports inside functions, of own modules": len(inside & own),
        "imports under TYPE_CHECKING, of own modules": len(typing & own),
    }


def loose_types(modules: list[Module]) -> Rows:
    """Accesses by a constant string, of dicts and of whatever else is indexed so; uses of `Any`, imports left out."""
    subscripts = sum(isinstance(node, ast.Subscript) and is_text(node.slice) for node in nodes(modules))
    gets = sum(is_string_get(node) for node in nodes(modules))
    return {
        "string-keyed accesses": subscripts + gets,
        'string-keyed accesses, ["..."]': subscripts,
        'string-keyed accesses, .get/.pop/.setdefault("...")': gets,
        "uses of Any": sum(last_name(node) == "Any" for node in nodes(modules)),
    }


def is_string_get(node: ast.AST) -> bool:
    """Whether a node is `x.get("...")`, or the same with `pop` or `setdefault`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
        return False
    return node.func.attr in ("get", "pop", "setdefault") and is_text(node.args[0])


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function has; `self`, `cls`, `*args` and `**kwargs` are left out."""
    listed = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return sum(parameter.arg not in ("self", "cls") for parameter in listed)


def docstrings(modules: list[Module]) -> Rows:
    """Public functions, which have no leading underscore and have a docstring, and those that describe parameters."""
    public = [function for function in functions(modules) if not function.name.startswith("_")]
    documented = [(parameters(function), ast.get_docstring(function) or "") for function in public]
    rows: Rows = {}
    for least, words in ((2, "two"), (3, "three")):
        texts = [text for count, text in documented if text and count >= least]
        rows[f"public functions with {words} or more arguments"] = len(texts)
        rows[f"public functions with {words} or more arguments, with Args:"] = sum("Args:" in text for text in texts)
    return rows


def comments(modules: list[Module]) -> Rows:
    """Comments per 100 lines, and the same without directives to tools such as `# type: ignore`."""
    lines = max(1, sum(len(module.text.splitlines()) for module in modules))
    tokens = (token for module in modules for token in tokenize.generate_tokens(io.StringIO(module.text).readline))
    texts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    prose = [text for text in texts if not text.startswith(DIRECTIVES)]
    return {
        "comments per 100 lines": f"{100 * len(texts) / lines:.2f}",
        "comments per 100 lines, directives left out": f"{100 * len(prose) / lines:.2f}",
    }


def positional_calls(modules: list[Module]) -> Rows:
    """Calls of the package's dataclasses with five or more positional arguments or a starred one, by class name."""
    classes = {
        node.name for node in nodes(modules) if isinstance(node, ast.ClassDef) and "dataclass" in decorators(node)
    }
    calls = [node for node in nodes(modules) if isinstance(node, ast.Call) and last_name(node.func) in classes]
    positional = [len(call.args) >= 5 or any(isinstance(item, ast.Starred) for item in call.args) for call in calls]
    return {"positional calls of dataclasses": sum(positional)}


def process_state(modules: list[Module]) -> Rows:
    """Module-level names that functions change, and function caches (`@cache`, `@lru_cache`).

    A name counts if some function rebinds it through `global`, or if it is bound at module level to a dict, list or set
    (a literal, a comprehension, or a call of such a type) that some function, of this module or of another, changes:
    by item assignment or deletion, or by a method such as `append`. Changes through a local alias are not seen, nor is
    an object of the package's own classes that is kept at module level.
    """
    imported: dict[str, dict[str, str]] = {module.name: {PACKAGE: PACKAGE} for module in modules}
    for each in own_imports(modules):
        imported[each.source][each.local] = each.name
    changed = {name for module in modules for name in changed_names(module, imported[module.name])}
    collections = {f"{module.name}.{name}" for module in modules for name in module_collections(module.tree)}
    declared = [
        (module.name, node.names)
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]
    rebound = {f"{module}.{name}" for module, names in declared for name in names}
    caches = Counter(name for function in functions(modules) for name in decorators(function))
    return {
        "mutable module globals": len(changed & collections | rebound),
        "function caches": caches["cache"] + caches["lru_cache"],
    }


def module_collections(tree: ast.Module) -> Iterator[str]:
    """Names bound at module level to a dict, list or set."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and is_collection(statement.value):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def is_collection(value: ast.AST | None) -> bool:
    """Whether an expression makes a dict, list or set that can be changed."""
    return isinstance(value, COLLECTIONS) or (isinstance(value, ast.Call) and last_name(value.func) in COLLECTION_TYPES)


def changed_names(module: Module, imported: Mapping[str, str]) -> Iterator[str]:
    """Dotted names outside functions whose values functions of a module change; locals of the function are left out."""
    for function in functions([module]):
        names = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        names |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        for text in filter(None, map(changed_value, ast.walk(function))):
            first, dot, rest = text.partition(".")
            if first not in names:
                yield imported.get(first, f"{module.name}.{first}") + dot + rest


def changed_value(node: ast.AST) -> str:
    """Source of the expression whose value a node changes, such as `a.b` in `a.b[0] = 1`; empty if it changes none."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        value = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
        value = node.func.value
    else:
        return ""
    while isinstance(value, ast.Subscript):
        value = value.value
    return ast.unparse(value)


MEASURES = (sizes, structure, import_places, loose_types, docstrings, comments, positional_calls, process_state)


def measure(checkout: Path) -> Rows:
    """Take every measure of the package in a checkout."""
    modules = read_modules(checkout)
    return {name: value for rows in MEASURES for name, value in rows(modules).items()}


def main() -> None:
    """Print one row per measure."""
    parser = argparse.ArgumentParser(description="Measures of the code under harness/ in a checkout.")
    own = Path(__file__).resolve().parents[1]
    parser.add_argument("checkout", nargs="?", type=Path, default=own, help="default: the one of this script")
    checkout = parser.parse_args().checkout.resolve()
    if not (checkout / PACKAGE).is_dir():
        sys.exit(f"a checkout has a folder {PACKAGE}/, {checkout} has none: name the folder that holds it")
    rows = measure(checkout)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value:>14}")


if __name__ == "__main__":
    main()

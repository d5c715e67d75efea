"""The measures of the code, each against a small package whose numbers are counted by hand in the comments."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "measures.py"
measure = runpy.run_path(str(SCRIPT))["measure"]


@pytest.fixture
def measured(tmp_path):
    """Writes a package of the given modules, and measures it."""

    def build(modules):
        for name, text in modules.items():
            path = tmp_path / "harness" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return measure(tmp_path)

    return build


def rows(table, *names):
    return [table[name] for name in names]


def test_sizes_leave_docstrings_out(measured):
    statements = "    x = 1\n" * 51
    table = measured(
        {
            "__init__.py": "",  # 0 lines
            "one.py": 'def f():\n    """Two\n    lines."""\n    return 1\n\n\ndef g():\n    """None."""\n',  # 8: bodies 1, 0
            "two.py": "class A:\n    def f(self):\n        x = [\n            1,\n        ]\n        return x\n",  # 6: body 4
            "long.py": f"def f():\n{statements}",  # 52: body 51
        }
    )
    assert rows(table, "files", "lines", "functions") == [4, 0 + 8 + 6 + 52, 4]
    assert table["lines of a file, median / p90 / max"] == "8 / 52 / 52"
    assert table["lines of a function body, median / p90 / max"] == "4 / 51 / 51"
    assert table["functions with a body over 50 lines"] == "1 (25.0 %)"


def test_a_percentile_and_a_median_are_values_that_occur(measured):
    table = measured({f"m{length}.py": "x = 1\n" * length for length in range(1, 21)})
    assert table["lines of a file, median / p90 / max"] == "11 / 19 / 20"


STAIRS = {
    "__init__.py": "",
    "bottom.py": "import json\n",
    "middle.py": "from harness.bottom import x\n",
    "methods/__init__.py": "",
    "methods/base.py": "from harness import middle\n",
    "methods/lora.py": "from .base import Method\nfrom .. import bottom\n",
    "top.py": "def f():\n    import harness.methods.lora\n",
}


def test_floors_are_the_longest_path_of_imports(measured):
    table = measured(STAIRS)
    assert rows(table, "modules flat in harness/", "modules and packages in harness/ (rooms)") == [3, 4]
    assert table["floors of rooms, run time"] == 4  # bottom, middle, methods, top
    assert table["floors of modules, run time"] == 5  # bottom, middle, methods.base, methods.lora, top
    assert [value for name, value in table.items() if name.startswith("circles")] == [0, 0, 0, 0]


def test_circles_are_counted_with_and_without_types(measured):
    table = measured(
        STAIRS
        | {
            # methods <-> bottom, through types only; base <-> lora, within one room.
            "bottom.py": "if TYPE_CHECKING:\n    from harness.methods.base import Method\nelse:\n    Method = 1\n",
            "methods/base.py": "from harness import middle\n\n\ndef f():\n    from harness.methods.lora import Lora\n",
            # The three of one circle, and a module above it.
            "a.py": "import harness.b\n",
            "b.py": "import harness.c\n",
            "c.py": "import harness.a\n",
            "roof.py": "from harness.a import x\nfrom harness.top import f\n",
        }
    )
    assert rows(table, "circles of rooms, run time", "circles of modules, run time") == [1, 2]
    # bottom, middle and methods are one circle then, base and lora inside it.
    assert rows(table, "circles of rooms, types too", "circles of modules, types too") == [2, 2]
    assert rows(table, "floors of rooms, run time", "floors of modules, run time") == [5, 5]
    assert rows(table, "floors of rooms, types too", "floors of modules, types too") == [3, 3]


def test_imports_are_placed(measured):
    table = measured(
        {
            "a.py": "",
            "b.py": (
                "from typing import TYPE_CHECKING\n\nfrom harness import a\n\n"
                "if TYPE_CHECKING:\n    from harness.a import x\n    from json import y\nelse:\n    from harness.a import z\n\n\n"
                "def f():\n    import json\n\n    def g():\n        from harness.a import p, q\n"
            ),
        }
    )
    assert rows(table, "imports inside functions", "imports inside functions, of own modules") == [2, 1]
    assert table["imports under TYPE_CHECKING, of own modules"] == 1


def test_string_keys_and_any_are_counted(measured):
    table = measured(
        {
            "a.py": "import typing\nfrom typing import Any\n"
            'd["a"]["b"] = d[0], d[k]\ndel d["c"]\n'  # 3 subscripts
            'd.get("a"), d.get("a", 1), d.get(k), d.pop("a"), d.setdefault("a", 2), d.replace("a"), get("a")\n'  # 4
            "x: dict[str, Any] = typing.Any\n"  # 2
        }
    )
    assert table["string-keyed accesses"] == 7
    assert rows(table, 'string-keyed accesses, ["..."]', "uses of Any") == [3, 2]
    assert table['string-keyed accesses, .get/.pop/.setdefault("...")'] == 4


DOCUMENTED = '''
class A:
    def one(self, x):
        """One argument."""

    def two(self, x, *, y):
        """Two."""

    def three(self, x, y, z=1):
        """Three.

        Args:
            x: A number.
        """

    def starred(self, x, *y, **z):
        """One, as the starred do not count."""

    def bare(self, x, y): ...

    def _hidden(self, x, y):
        """Private."""


def two(x, /, y):
    """Two.

    Args:
        x: A number.
    """
'''


def test_documented_arguments_are_counted(measured):
    table = measured({"a.py": DOCUMENTED})
    two, three = "public functions with two or more arguments", "public functions with three or more arguments"
    assert rows(table, two, f"{two}, with Args:") == [3, 2]
    assert rows(table, three, f"{three}, with Args:") == [1, 1]


def test_comments_are_counted(measured):
    table = measured({"a.py": 'x = "# no comment"  # one\n# two\ny = 1  # type: ignore\n' + "\n" * 17})
    assert table["comments per 100 lines"] == "15.00"  # 3 in 20 lines
    assert table["comments per 100 lines, directives left out"] == "10.00"


def test_positional_calls_of_dataclasses_are_counted(measured):
    table = measured(
        {
            "a.py": "@dataclass(frozen=True)\nclass A:\n    x: int\n\n\n@dataclass\nclass B: ...\n\n\nclass C: ...\n",
            # Counted: the first three.
            "b.py": "A(1, 2, 3, 4, 5)\na.B(*x)\nA(1, *x)\nA(1, 2, 3, 4, e=5)\nA(**x)\nC(1, 2, 3, 4, 5)\nf(*x)\n",
        }
    )
    assert table["positional calls of dataclasses"] == 3


STATE = """
from collections import OrderedDict, deque
from functools import cache, cached_property, lru_cache

_items = {}
_typed: dict[str, int] = dict()
_calls = deque()
_nested = OrderedDict()
_dropped = [1]
_outside = set()
_rebound = None
_constant = {"a": 1}
_shadowed = []
_own = Own()


def f(_argument):
    global _rebound
    _rebound = 1
    _items["a"] = 1
    _typed["a"] += 1
    _calls.append(1)
    _nested["a"]["b"] = 1
    del _dropped[:]
    _shadowed = []
    _shadowed.append(1)
    _argument.append(_constant["a"])
    _own.add(1)


@cache
def g(): ...


@lru_cache(maxsize=2)
def h(): ...


class A:
    @cached_property
    def i(self): ...

    @functools.cache
    def j(self): ...
"""


def test_state_of_the_process_is_counted(measured):
    # _items, _typed, _calls, _nested, _dropped, _rebound; nobody here changes _outside, and _own is no collection.
    assert rows(measured({"a.py": STATE}), "mutable module globals", "function caches") == [6, 3]


@pytest.mark.parametrize("line", ["from harness.a import _outside as x", "from harness import a", "import harness.a"])
def test_state_that_another_module_changes_is_counted(measured, line):
    name = {"x": "x", "a": "a._outside"}.get(line.split()[-1], "harness.a._outside")
    table = measured({"a.py": STATE, "b.py": f"{line}\n\n\ndef f():\n    {name}.add(1)\n"})
    assert table["mutable module globals"] == 7


def test_every_measure_is_a_row(measured, tmp_path):
    table = measured({"a.py": "x = 1\n"})
    shown = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=True).stdout
    assert [line.rsplit("  ", 1)[0].rstrip() for line in shown.splitlines()] == list(table)
    assert len({len(line) for line in shown.splitlines()}) == 1


def test_a_folder_without_the_package_is_refused(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a checkout has a folder harness/" in done.stderr
    assert "Traceback" not in done.stderr

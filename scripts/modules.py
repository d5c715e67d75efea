"""Prints docs/modules.md: every module of the harness in the order of its packages, with the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from harness.plugins import FOLDERS

ROOT = Path(__file__).resolve().parents[1]
PLUGIN_FOLDERS = {folder.rpartition("/")[2] for folder in FOLDERS}
HEAD = """# Modules

Packages stand in the order in which they may import each other (ARCHITECTURE.md). Of a folder of plug-ins only the contract and the
shared helpers are listed; `harness list` shows the plug-ins.
`python scripts/modules.py > docs/modules.md` writes this page from the modules' docstrings.
"""


def packages() -> list[str]:
    """Names in the order of ARCHITECTURE.md's table."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("## Packages") : text.index("## Glossary")]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def modules(package: str) -> Iterator[Path]:
    """A package's files, plug-ins left out."""
    alone = ROOT / "harness" / f"{package}.py"
    if alone.exists():
        yield alone
    for path in sorted((ROOT / "harness" / package).rglob("*.py")):
        is_plugin = path.parent.name in PLUGIN_FOLDERS and path.stem != "base" and not path.stem.startswith("_")
        if path.name != "__init__.py" and not is_plugin:
            yield path


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(paragraph.split()))[0].replace("|", "\\|")


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for package in packages():
        lines += [f"## {package}", "", "| module | what it is for |", "|---|---|"]
        lines += [f"| `{path.relative_to(ROOT)}` | {sentence(path)} |" for path in modules(package)]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")

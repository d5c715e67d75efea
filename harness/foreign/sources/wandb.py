"""Runs of Weights & Biases as its public API gives them, or as its local folders hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import parse_json, read_yaml
from harness.foreign.sources.base import Source

if TYPE_CHECKING:
    import pandas as pd

_CONFIG, _SUMMARY = "config.yaml", "wandb-summary.json"


class Wandb(Source):
    """A `wandb` folder with a folder per run. An export as CSV from its pages is a table."""

    summary = "A wandb folder: a run's settings as config.NAME, its last values as summary.NAME."
    mapping = {"source": "Weights & Biases", "costs": {"total_s": "summary._runtime"}}

    def reads(self, path: Path) -> bool:
        """By the files of its first run.

        Args:
            path: An existing file or folder.
        """
        return next(_runs(path), None) is not None

    def table(self, path: Path) -> pd.DataFrame:
        """A row per run.

        Args:
            path: A folder that it reads.
        """
        import pandas as pd

        return pd.json_normalize([_run(folder) for folder in _runs(path)])


def _runs(path: Path) -> Iterator[Path]:
    """Folders of runs; the link to the latest is one of them a second time."""
    return (file.parent for file in sorted(path.rglob(_SUMMARY)) if not any(p.is_symlink() for p in file.parents))


def _run(folder: Path) -> dict[str, Any]:
    settings = read_yaml(folder / _CONFIG, loosely=True) if (folder / _CONFIG).exists() else {}
    own = {name: entry.get("value") for name, entry in settings.items() if isinstance(entry, dict) and name != "_wandb"}
    return {"run": folder.parent.name, "config": own, "summary": parse_json((folder / _SUMMARY).read_bytes())}

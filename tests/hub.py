"""Datasets of the Hugging Face hub, laid out by hand in a cache: lm-eval's own tasks find small data in the place of theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

Rows = Sequence[Mapping[str, Any]]


class Hub:
    """A cache that holds what was added to it, and nothing else.

    Args:
        folder: Where it lies.
        patch: Makes it the cache of the harness, and that of lm-eval, which asks by name and cannot be told of a commit.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        import datasets
        from huggingface_hub import constants

        self.folder, load = folder, datasets.load_dataset
        # another hub has other rows under the same name, and a process remembers what it read by name and commit
        self.commit = hashlib.sha1(str(folder).encode()).hexdigest()
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "prepared")

        def loaded(path: str, name: str | None = None, **options: Any) -> Any:
            return load(str(self._snapshot(path) if "/" in path and not Path(path).is_dir() else path), name, **options)

        patch.setattr(datasets, "load_dataset", loaded)

    def add(self, dataset: str, config: str | None = None, **splits: Rows) -> None:
        """Add a dataset, or another configuration of one.

        Args:
            dataset: Its name, `owner/name`.
            config: The configuration's name; None where there is one without a name.
            splits: Rows of each.
        """
        place, name = self._snapshot(dataset), config or "default"
        place.mkdir(parents=True, exist_ok=True)
        reference = place.parents[1] / "refs" / "main"
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(self.commit)
        for split, rows in splits.items():
            (place / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        known = json.loads((place / "known.txt").read_text()) if (place / "known.txt").exists() else []
        known.append({"config_name": name, "data_files": [{"split": s, "path": f"{name}-{s}.jsonl"} for s in splits]})
        (place / "known.txt").write_text(json.dumps(known))
        (place / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': known})}---\n")

    def file(self, dataset: str, name: str, rows: Rows) -> None:
        """Add a file of rows to a dataset that is there."""
        path = self._snapshot(dataset) / name
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _snapshot(self, dataset: str) -> Path:
        return self.folder / f"datasets--{dataset.replace('/', '--')}" / "snapshots" / self.commit

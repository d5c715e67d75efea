"""Commits of hub models and datasets, resolved once and kept in the hub's own cache.

Every later step means the same commit then, also one on a node without internet.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(kind: Literal["model", "dataset"], name: str, revision: str | None) -> str:
    """The commit of a revision: as given, as the cache has it, or as the hub says, which the cache then keeps.

    Args:
        kind: `model` or `dataset`.
        name: `owner/name`.
        revision: A commit, tag or branch; None for `main`.

    Raises:
        OSError: When the hub does not know it or cannot be reached.
        ValueError: When the name cannot be that of a repository.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    reference = cache(kind, name) / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.model_info(name, revision=revision) if kind == "model" else api.dataset_info(name, revision=revision)
    reference.parent.mkdir(parents=True, exist_ok=True)
    # In the place where huggingface_hub looks for it, so that a node without internet loads the same commit by its name.
    reference.write_text(str(info.sha))
    return str(info.sha)


def file_of(dataset: str, name: str, commit: str) -> Path:
    """A file of a dataset: as the cache has it, or from the hub.

    Args:
        dataset: `owner/name`.
        name: The file's path in it.
        commit: Of the dataset.

    Raises:
        OSError: When there is no such file, or it is not in the cache and the hub cannot be reached.
    """
    cached = cache("dataset", dataset) / "snapshots" / commit / name
    if cached.is_file():
        return cached
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(dataset, name, repo_type="dataset", revision=commit))


def cache(kind: Literal["model", "dataset"], name: str) -> Path:
    """The folder of a repository in the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"

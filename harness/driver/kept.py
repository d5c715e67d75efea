"""What was found out of models and tasks, kept below the results by all that it depends on: no phase finds it out again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from harness.errors import StorageError
from harness.files import parse_json, write_atomically
from harness.plugins import code_hash, names
from harness.records.codec import Json, Record, decode, fingerprint, to_json
from harness.records.paths import Paths
from harness.trial.provenance import installed_code

R = TypeVar("R", bound=Record)


def kept(paths: Paths, kind: type[R], depends: Sequence[Json], find: Callable[[], R]) -> R:
    """What is kept, or is found now and kept from now on; an error is raised each time.

    Args:
        paths: Below whose cache it is kept.
        kind: What is found.
        depends: All that decides what is found, beside installed code and that of metrics, which tasks prove themselves by.
        find: Finds it.
    """
    metrics = [code_hash("metrics", name) for name in names("metrics")]  # a project's own may have been edited
    path = paths.cache / f"{fingerprint([installed_code(), metrics, *depends])}.{kind.__name__}.json"
    try:
        content = parse_json(path.read_text())
        if content["digest"] == fingerprint(content["found"]):
            return decode(kind, content["found"])
    except (OSError, ValueError, LookupError, TypeError):  # none, or a damaged one
        pass
    found = find()
    body = to_json(found)
    with suppress(StorageError):  # it is found again then
        write_atomically(path, json.dumps({"digest": fingerprint(body), "found": body}))
    return found

"""Reads and writes trial records: one JSON file each, whole or not there at all, and believed only where it fits.

A record lies in the folder of its key. It is believed where its configuration has that key, and where its digest, a
hash of all else, is that of its content; records of version 1 have none. A record that is not believed is set aside by
whoever will run its trial again. A record of a later version is neither believed nor damaged: it stops whoever needs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import NewerRecord, StorageError
from harness.files import FULL, parse_json, write_atomically
from harness.records.codec import Json, Misfit, canonical_json, fingerprint, to_json
from harness.records.paths import Paths
from harness.records.trial import SCHEMA_VERSION, TrialResult, TrialStatus, migrate, result_from_json
from harness.records.turns import pauses

log = logging.getLogger(__name__)

_PATIENCE_S = 1800.0


def write_result(paths: Paths, result: TrialResult) -> Path:
    """Write a trial's record; returns its path.

    What the trial saved on its way is removed, unless it was taken away from outside and may run again. On a full disk it
    waits half an hour for room: the trial has ended, and would have to run again.

    Raises:
        StorageError: When the file system refuses.
        Misfit: When nobody could read it again, for example since a score is not finite.
    """
    path = paths.record(result.config.key)
    text, until = result_text(result), time.monotonic() + _PATIENCE_S
    for waited, pause in enumerate(pauses()):
        try:
            write_atomically(path, text)
            break
        except StorageError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
            if not full or time.monotonic() > until:
                raise
            if waited == 0:
                log.warning("%s cannot be written, since the disk is full: it waits until there is room", path)
            time.sleep(pause)
    if result.status is not TrialStatus.PREEMPTED:
        shutil.rmtree(paths.midway(result.config.key), ignore_errors=True)
    return path


def result_text(result: TrialResult) -> str:
    """What the file of a trial's record holds: JSON with sorted keys, and a digest of all else."""
    # tabs and newlines stand in no JSON text, so that `is_intact` gets the canonical JSON back by leaving them out
    return json.dumps(_signed(result), indent="\t", sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def compact_text(result: TrialResult) -> str:
    """The same on one line, for files of many records: what `is_intact` and `current` take, too."""
    return canonical_json(_signed(result))


def _signed(result: TrialResult) -> Json:
    data = _finite(to_json(result))
    result_from_json(data)  # so that whatever has a digest can be read, which `is_intact` relies on
    data["digest"] = fingerprint(data)
    return data


def read_result(path: Path) -> TrialResult:
    """Read the record of the trial whose folder it lies in.

    Raises:
        NewerRecord: When a later version of harness wrote it.
        StorageError: When it is missing, cut short, changed, of another trial, or of a shape that it never had.
    """
    return _read(path)[1]


def read_current(path: Path) -> Mapping[str, Any]:
    """The JSON of a record that `read_result` believes, in the shape of the current version."""
    return _read(path)[0]


def current(key: str, raw: bytes) -> Mapping[str, Any]:
    """The same of a record's text that does not lie in a file of its own.

    Raises:
        ValueError: When it is not to be believed, as a record of trial `key`.
        NewerRecord: When a later version of harness wrote it.
    """
    return _parsed(key, raw)[0]


def _read(path: Path) -> tuple[Mapping[str, Any], TrialResult]:
    try:
        return _parsed(path.parent.name, path.read_bytes())
    except NewerRecord as error:
        raise NewerRecord(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is not a whole record ({error}): delete it and run the study again") from error


def _parsed(key: str, raw: bytes) -> tuple[Mapping[str, Any], TrialResult]:
    data = parse_json(raw)
    if not isinstance(data, dict):
        raise Misfit("an object", data)
    if is_intact(key, raw):  # as `result_text` left it: key and digest fit
        del data["digest"]
        return data, result_from_json(data)
    digest, own_digest = data.pop("digest", None), fingerprint(data)
    result = result_from_json(data)
    own_key = fingerprint(data["config"])  # as it stands: a field that it lacks was not hashed either
    if own_key != key:
        raise Misfit(f"the configuration of trial {key}", own_key, "config")
    if digest != own_digest and (digest is not None or data["schema_version"] > 1):
        raise Misfit(own_digest, digest, "digest")
    return migrate(data), result


def is_intact(key: str, raw: bytes) -> bool:
    """Whether a record's file is byte for byte what `result_text` gives for a trial of this key.

    It takes a twentieth of the time of `read_result`, and says yes only where that would succeed; a record of version 1,
    or one that another program laid out, needs `read_result`.
    """
    compact = raw.translate(None, b"\n\t")  # the indentation: within a text, JSON writes these as \\n and \\t
    before, _, after = compact.partition(b',"digest":"')
    config = before[len(b'{"config":') : before.find(b'},"cost":{') + 1]
    return (
        b',"schema_version":%d,"scores":' % SCHEMA_VERSION in after
        and after[:20] == _hash(before + after[21:]).encode()
        and _hash(config) == key
    )


def _hash(raw: bytes) -> str:
    """`fingerprint` of what is canonical JSON already."""
    return hashlib.sha256(raw).hexdigest()[:20]


def find_result(paths: Paths, key: str) -> TrialResult | None:
    """The record of a key, or None where there is none or where it is damaged (that trial must run again).

    Raises:
        NewerRecord: When a later version of harness wrote it.
    """
    try:
        return read_result(path) if (path := paths.record(key)).exists() else None
    except NewerRecord:
        raise
    except StorageError:
        return None


def find_current(path: str) -> Json | None:
    """The JSON of a record that `find_result` believes, in the shape of the current version; None where it gives None.

    For those who need little of each of many records: one that is intact is not decoded.

    Args:
        path: As `Paths.records_of` gives it.

    Raises:
        NewerRecord: When a later version of harness wrote it.
    """
    from pydantic_core import from_json  # takes half the time of Python's own; only for what has its digest

    try:
        with open(path, "rb") as file:
            raw = file.read()
        return from_json(raw) if is_intact(path.split("/")[-2], raw) else read_current(Path(path))
    except NewerRecord:
        raise
    except (OSError, StorageError):
        return None


def find_or_set_aside(paths: Paths, key: str) -> TrialResult | None:
    """The record of a trial that will run if there is none; a damaged one is moved to the quarantine, not overwritten.

    Raises:
        NewerRecord: When a later version of harness wrote it.
        StorageError: When it cannot be moved.
    """
    path = paths.record(key)
    try:
        return read_result(path) if path.exists() else None
    except NewerRecord:
        raise
    except StorageError as error:
        _set_aside(paths, key, str(error))
        return None


def _set_aside(paths: Paths, key: str, reason: str) -> None:
    path, target = paths.record(key), paths.quarantine(f"{key}-{time.time_ns()}")
    why = f"{target} was the record of a trial, which runs again ({reason.rsplit(':', 1)[0]}): delete it when you have seen it"
    write_atomically(target.with_suffix(".txt"), why + "\n")
    try:
        os.replace(path, target)
    except OSError as error:
        raise StorageError(
            f"{path} must be moved to {target}, but cannot ({error.strerror}): fix permissions"
        ) from error
    log.warning("%s", why)


def iterate_results(paths: Paths) -> Iterator[tuple[Path, TrialResult | StorageError]]:
    """Every record below `results/trials`, in key order; damaged ones as the error that says what is wrong."""
    # a trial that runs has a folder, and no record yet
    for path in filter(Path.exists, map(Path, paths.records())):
        try:
            yield path, read_result(path)
        except StorageError as error:
            yield path, error


def _finite(value: Any) -> Any:
    """Non-finite floats become None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value

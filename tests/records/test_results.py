"""A record is believed where its content is its key's and its digest's; what is not is set aside, and never overwritten."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import files
from harness.errors import NewerRecord, StorageError
from harness.records import results
from harness.records.codec import Misfit, fingerprint, to_json
from harness.records.execution import Execution, StageSettings
from harness.records.paths import Paths
from harness.records.results import (
    find_or_set_aside,
    find_result,
    is_intact,
    iterate_results,
    read_result,
    write_result,
)
from harness.records.trial import SCHEMA_VERSION, result_from_json
from tests.fabricate import write_signed
from tests.records.test_trial import CONFIG, RESULT

KEY = CONFIG.key
VERSION_1 = Path(__file__).parents[1] / "data" / "results_v1" / "results"


def changed(paths: Paths, change: Callable[[dict[str, Any]], None], signed: bool = True) -> Path:
    """The record, changed."""
    path = write_result(paths, RESULT)
    record = json.loads(path.read_text())
    change(record)
    if signed:
        write_signed(path, record)
    else:
        path.write_text(json.dumps(record))
    return path


def test_a_record_carries_the_hash_of_all_else(paths: Paths) -> None:
    path = write_result(paths, RESULT)
    record = json.loads(path.read_text())
    assert record.pop("digest") == fingerprint(record) == fingerprint(to_json(RESULT))
    assert record["schema_version"] == SCHEMA_VERSION == 2
    assert is_intact(KEY, path.read_bytes())


@pytest.mark.parametrize(
    ("change", "signed", "sentence"),
    [
        (lambda r: r["scores"][0].update(value=0.9), False, "digest must be "),
        (lambda r: r.pop("digest"), False, "digest must be .*, but is null"),
        (lambda r: r["config"].update(seed=7), True, f"config must be the configuration of trial {KEY}"),
        (lambda r: r["scores"][0].update(value="0.9"), True, r"scores\[0\].value must be a finite number"),
        (
            lambda r: r["config"]["pipeline"].update(stages=[]),
            True,
            "config.pipeline.stages must be a list of at least",
        ),
        (lambda r: r.update(schema_version="2"), True, 'schema_version must be a whole number from 1 on, but is "2"'),
    ],
)
def test_what_is_not_believed_is_set_aside_and_runs_again(
    paths: Paths, caplog: pytest.LogCaptureFixture, change: Callable[[Any], None], signed: bool, sentence: str
) -> None:
    path = changed(paths, change, signed)
    raw = path.read_bytes()
    with pytest.raises(StorageError, match=rf"not a whole record \({sentence}.*delete it and run the study again"):
        read_result(path)
    assert not is_intact(KEY, raw)
    assert find_result(paths, KEY) is None
    assert path.read_bytes() == raw  # who only looks moves nothing
    with caplog.at_level(logging.WARNING):
        assert find_or_set_aside(paths, KEY) is None
    assert not path.exists()
    [aside] = paths.quarantined()
    assert aside.read_bytes() == raw
    assert "which runs again" in aside.with_suffix(".txt").read_text()
    assert str(aside) in caplog.text
    write_result(paths, RESULT)
    assert find_or_set_aside(paths, KEY) == RESULT
    assert aside.read_bytes() == raw


def test_the_same_trial_can_be_set_aside_twice(paths: Paths) -> None:
    for text in ("first", "second"):
        path = write_result(paths, RESULT)
        path.write_text(text)
        find_or_set_aside(paths, KEY)
    assert [path.read_text() for path in paths.quarantined()] == ["first", "second"]


def test_a_record_of_a_later_version_stays_and_stops_whoever_needs_it(paths: Paths) -> None:
    def later(record: dict[str, Any]) -> None:
        record.update(schema_version=SCHEMA_VERSION + 1, scores={"a shape": "of its own"})

    path = changed(paths, later)
    raw = path.read_bytes()
    for finder in (find_result, find_or_set_aside):
        with pytest.raises(NewerRecord, match="has 3: update harness to read it") as caught:
            finder(paths, KEY)
        assert "delete" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == raw
    assert paths.quarantined() == []
    assert [type(error) for _, error in iterate_results(paths)] == [NewerRecord]


def test_bytes_are_intact_only_of_this_trial_and_this_version(paths: Paths) -> None:
    record = json.loads(write_result(paths, RESULT).read_text())
    judged = {}
    for version in (SCHEMA_VERSION, SCHEMA_VERSION + 1):
        content = record | {"schema_version": version}
        del content["digest"]
        content["digest"] = fingerprint(content)
        raw = json.dumps(content, indent="\t", sort_keys=True, separators=(",", ":")).encode()
        judged[version] = [is_intact(key, raw) for key in (KEY, "0" * 20)]
    assert judged == {SCHEMA_VERSION: [True, False], SCHEMA_VERSION + 1: [False, False]}


def test_unknown_fields_survive_and_are_noted(paths: Paths) -> None:
    path = changed(paths, lambda record: (record.update(mood="fine"), record["cost"].update(co2_kg=1.5)))
    result = read_result(path)
    [note] = result.notes
    assert "cost.co2_kg" in note
    assert "mood" in note
    again = read_result(write_result(paths, result))
    assert again == result
    record = json.loads(path.read_text())
    assert (record["mood"], record["cost"]["co2_kg"]) == ("fine", 1.5)


def test_an_unknown_field_of_the_configuration_is_part_of_its_key(paths: Paths) -> None:
    """A version that knows the field has hashed it, since it was not at its default."""
    record = json.loads(write_result(paths, RESULT).read_text())
    record["config"]["evaluation"]["shots"] = 5
    path = paths.record(fingerprint(record["config"]))
    write_signed(path, record)
    assert read_result(path).config.key == path.parent.name != KEY


def test_a_record_that_could_not_be_read_again_is_not_written(paths: Paths) -> None:
    scores = (replace(RESULT.scores[0], value=float("nan")),)
    with pytest.raises(Misfit, match=r"scores\[0\].value must be there"):
        write_result(paths, replace(RESULT, scores=scores))
    assert not paths.record(KEY).exists()


def test_records_of_version_1_are_read_as_they_were() -> None:
    paths = Paths(VERSION_1)
    results = [result for _, result in iterate_results(paths)]
    assert len(results) > 30
    for path, result in zip(map(Path, paths.records()), results, strict=True):
        record = json.loads(path.read_text())
        assert not isinstance(result, StorageError), result
        assert (record["schema_version"], result.schema_version) == (1, 2)
        assert "digest" not in record
        assert result.config.key == path.parent.name
        data = to_json(result)
        effective, was = data["provenance"].pop("effective"), record["provenance"].pop("effective")
        assert effective == effective | was  # a trial that never ran says nothing of it
        assert data == record | {"schema_version": 2}


def test_what_a_trainer_has_seen_has_a_place_of_its_own_since_version_2() -> None:
    old = to_json(RESULT) | {"schema_version": 1}
    stage = {"steps": 4, "batch": [8, 1], "reward_last": 0.5, "adapter": {"default": {"r": 4}}}
    old["provenance"] |= {"effective": {"alone": "it is large", "stages": [stage]}}
    execution = result_from_json(old).provenance.effective
    expected = StageSettings(steps=4, batch=(8, 1), adapter={"default": {"r": 4}}, observed={"reward_last": 0.5})
    assert execution == Execution(alone="it is large", stages=(expected,))


@pytest.mark.parametrize("effective", [None, {}, {"stages": []}])
def test_a_trial_of_version_1_may_have_run_nothing(effective: Any) -> None:
    old = to_json(RESULT) | {"schema_version": 1}
    old["provenance"] |= {"effective": effective}
    assert result_from_json(old).provenance.effective == Execution()


def test_a_record_of_version_1_that_is_another_trials_is_not_believed(paths: Paths) -> None:
    first, second = list(Paths(VERSION_1).records())[:2]
    path = paths.record(Path(first).parent.name)
    path.parent.mkdir(parents=True)
    path.write_bytes(Path(second).read_bytes())
    with pytest.raises(StorageError, match="config must be the configuration of trial"):
        read_result(path)


def test_a_full_disk_is_waited_for_and_another_error_is_not(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    result, refused = RESULT, [errno.ENOSPC, errno.EDQUOT]

    def refusing(path: Path, content: str) -> None:
        if refused:
            raise StorageError("as the test asked") from OSError(refused.pop(), "full")
        files.write_atomically(path, content)

    monkeypatch.setattr(results, "write_atomically", refusing)
    monkeypatch.setattr(results.time, "sleep", lambda seconds: None)
    assert read_result(write_result(paths, result)) == result
    assert caplog.text.count("it waits until there is room") == 1
    refused.append(errno.EROFS)
    with pytest.raises(StorageError):
        write_result(paths, result)
    refused.append(errno.ENOSPC)
    monkeypatch.setattr(results, "_PATIENCE_S", -1.0)
    with pytest.raises(StorageError):
        write_result(paths, result)

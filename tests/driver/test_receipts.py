"""A complete phase reads no record again, until anything that it rests on has changed."""

import json
import os
from dataclasses import replace

import pytest

from harness.driver import phases
from harness.records.results import read_result, write_result
from harness.records.study_trials import read_members
from tests.driver import standin

SPEC = standin.study(tasks=["one"])


@pytest.fixture
def done(tmp_path, monkeypatch):
    """A study that is complete; gives its site."""
    monkeypatch.setenv("STANDIN_RAN", str(tmp_path / "ran"))
    site = standin.site(tmp_path)
    for phase in ("base", "search", "confirm"):
        standin.run(phase, SPEC, site)
    return site


def reads(monkeypatch, site, phase, spec=SPEC):
    """What a phase says, and whether it went through its trials."""
    drivers = []
    monkeypatch.setattr(phases, "Driver", lambda *args: drivers.append(1) or _Driver(*args))
    summary = standin.run(phase, spec, site)
    monkeypatch.undo()
    return summary, bool(drivers)


_Driver = phases.Driver


@pytest.mark.parametrize("phase", ["base", "search", "confirm"])
def test_what_is_said_without_reading_is_what_is_said_with(done, monkeypatch, phase):
    kept, read = reads(monkeypatch, done, phase)
    assert not read
    done.paths.study(SPEC.name).receipt(phase).unlink()
    gone_through, read = reads(monkeypatch, done, phase)
    assert read
    assert kept == gone_through


def changes():
    def edited(record):
        text = record.read_text()
        record.write_text(text.replace("complete", "completf"))  # as long as before

    def torn(record):
        record.write_bytes(record.read_bytes()[:-20])

    def replaced(record):  # by a whole record of the same trial, with another score
        result = read_result(record)
        changed = replace(result, scores=(replace(result.scores[0], value=0.125),))
        paths = type(standin.site(record.parents[4]).paths)(record.parents[3])
        write_result(paths, changed)

    def restored(record):  # other content with the times of before
        before = os.stat(record)
        edited(record)
        record.rename(record.with_suffix(".old"))
        record.write_bytes(record.with_suffix(".old").read_bytes())
        os.utime(record, ns=(before.st_atime_ns, before.st_mtime_ns))

    return [edited, torn, replaced, restored, lambda record: record.unlink()]


@pytest.mark.parametrize("change", changes())
def test_a_record_that_was_touched_is_read_again(done, monkeypatch, change):
    record = done.paths.record(next(m.key for m in read_members(done.paths, SPEC.name) if m.role == "search"))
    change(record)
    monkeypatch.setenv("STANDIN_RAN", str(done.paths.results / "ran"))
    for phase in ("search", "confirm"):
        assert reads(monkeypatch, done, phase)[1]
    assert not reads(monkeypatch, done, "base")[1]


def test_another_answer_is_possible_after_other_changes(done, monkeypatch):
    files = done.paths.study(SPEC.name)
    assert reads(monkeypatch, replace(done, refresh=True), "base")[1]
    files.receipt("base").write_text(json.dumps({"state": 3}))
    assert reads(monkeypatch, done, "base")[1]
    files.done("base").unlink()
    assert reads(monkeypatch, done, "base")[1]
    assert not reads(monkeypatch, done, "base")[1]

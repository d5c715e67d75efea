"""Files that colleagues and later processes read: whole on the disk before they have their name, and readable."""

import os
import stat

import pytest

from harness.errors import StorageError
from harness.files import append_line, read_lines, write_atomically, write_once


@pytest.fixture
def calls(monkeypatch):
    """What the process asks of the file system, in order: the size that it forces to the disk, and renames."""
    made = []
    sync, replace, link = os.fsync, os.replace, os.link

    def syncing(handle):
        made.append(("fsync", os.fstat(handle).st_size))
        sync(handle)

    def renaming(function):
        def call(source, target):
            made.append(("name", os.path.basename(target)))
            function(source, target)

        return call

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", renaming(replace))
    monkeypatch.setattr(os, "link", renaming(link))
    return made


@pytest.mark.parametrize("write", [write_atomically, write_once])
def test_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, calls, write):
    """Else a power cut leaves an empty file under the right name."""
    write(tmp_path / "record.json", "x" * 1000)
    assert calls == [("fsync", 1000), ("name", "record.json")]


@pytest.mark.parametrize(("sync", "forced"), [(True, [("fsync", 9)]), (False, [])])
def test_a_line_is_forced_to_the_disk_where_it_must_outlive_a_power_cut(tmp_path, calls, sync, forced):
    append_line(tmp_path / "jobs.jsonl", {"a": 1}, sync=sync)  # {"a": 1} and a newline
    assert calls == forced


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
@pytest.mark.parametrize("write", [write_atomically, write_once])
def test_the_umask_says_who_may_read(tmp_path, write, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path / "record.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "record.json").stat().st_mode) == mode


def test_who_writes_once_leaves_what_is_there(tmp_path):
    path = tmp_path / "measured.json"
    write_once(path, "first")
    write_once(path, "second")
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["measured.json"]


@pytest.mark.parametrize("kept", range(len('{"number":2}\n') + 1))
def test_what_a_killed_writer_left_of_a_line_is_no_line_and_spoils_none(tmp_path, kept):
    path, torn = tmp_path / "members.jsonl", b'{"number":2}\n'
    path.write_bytes(b'{"number":1}\n' + torn[:kept])
    whole = [{"number": 1}] + ([{"number": 2}] if kept == len(torn) else [])
    assert read_lines(path) == whole
    append_line(path, {"number": 3})
    assert read_lines(path) == [*whole, {"number": 3}]
    assert path.read_bytes().endswith(b'}\n{"number": 3}\n')


def test_a_file_of_lines_that_is_not_there_has_none_and_one_of_something_else_is_named(tmp_path):
    path = tmp_path / "members.jsonl"
    assert read_lines(path) == []
    path.write_text("[1,\n{}\n")
    with pytest.raises(StorageError, match=r"members\.jsonl holds a line that is not JSON"):
        read_lines(path)
    path.write_text('{"a":' * 20_000 + "\n")
    with pytest.raises(StorageError, match=r"members\.jsonl holds a line that is not JSON"):
        read_lines(path)

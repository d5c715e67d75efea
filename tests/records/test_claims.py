"""Claims on trials: every order of what several processes may do, and the real files.

The model has the steps of `claimed` as atomic actions on one trial's folder: open the file (made where it is absent), lock
what was opened, compare it with what lies at the path, look for a record, run, write the record, remove the file, close.
A process may die before each of them; the kernel then drops its lock, and the file stays. One that is told to leave in
the middle of a trial removes the file and has written no record.
"""

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from harness.errors import StorageError
from harness.records.claims import claimed
from harness.records.paths import Paths

OPEN, LOCK, COMPARE, LOOK, RUN, WRITE, REMOVE, CLOSE, DONE, DEAD = range(10)


@dataclass(frozen=True)
class Process:
    at: int = OPEN
    file: int = 0
    """Number of the file that it has open; 0 for none."""


@dataclass(frozen=True)
class State:
    processes: tuple[Process, ...]
    path: int = 0
    """Number of the file at the path; 0 where there is none."""
    files: int = 0
    """Files that were ever made."""
    locks: tuple[tuple[int, int], ...] = ()
    """A file and the process that has its lock."""
    record: bool = False
    runs: int = 0
    """Times that the trial ran to its end."""


def moved(state, number, **changes):
    processes = list(state.processes)
    processes[number] = replace(processes[number], **changes)
    return replace(state, processes=tuple(processes))


def without_locks(state, number):
    return replace(state, locks=tuple(lock for lock in state.locks if lock[1] != number))


def step(state, number, compares=True):
    """What one process does next."""
    process, locks = state.processes[number], dict(state.locks)
    match process.at:
        case 0:  # open
            files = state.files + (state.path == 0)
            path = state.path or files
            return replace(moved(state, number, at=LOCK, file=path), path=path, files=files)
        case 1:  # lock; another one has it: close, and later begin anew
            if process.file in locks:
                return moved(state, number, at=OPEN, file=0)
            return replace(moved(state, number, at=COMPARE), locks=(*state.locks, (process.file, number)))
        case 2:  # compare
            if compares and process.file != state.path:
                return without_locks(moved(state, number, at=OPEN, file=0), number)
            return moved(state, number, at=LOOK)
        case 3:  # look for a record
            return moved(state, number, at=REMOVE if state.record else RUN)
        case 4:
            return replace(moved(state, number, at=WRITE), runs=state.runs + 1)
        case 5:
            return replace(moved(state, number, at=REMOVE), record=True)
        case 6:  # remove what lies at the path
            return replace(moved(state, number, at=CLOSE), path=0)
        case 7:
            return without_locks(moved(state, number, at=DONE, file=0), number)
    raise AssertionError(process)


def explore(processes, deaths, **variant):
    """All states that can be reached, each with those that may follow."""
    begin = (State((Process(),) * processes), 0)
    follow, todo = {}, [begin]
    while todo:
        state, dead = now = todo.pop()
        if now in follow:
            continue
        follow[now] = []
        for number, process in enumerate(state.processes):
            if process.at in (DONE, DEAD):
                continue
            follow[now].append((step(state, number, **variant), dead))
            if dead < deaths:
                killed = without_locks(moved(state, number, at=DEAD, file=0), number)
                follow[now].append((killed, dead + 1))
            if dead < deaths and process.at == RUN:  # told to leave: the claim is given back without a record
                follow[now].append((moved(state, number, at=REMOVE), dead + 1))
        todo += follow[now]
    return follow


@pytest.mark.parametrize(("processes", "deaths"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_in_no_order_do_two_processes_run_a_trial_at_once_or_one_after_its_record(processes, deaths):
    follow = explore(processes, deaths)
    for state, dead in follow:
        assert sum(process.at in (RUN, WRITE) for process in state.processes) <= 1, state
        assert state.runs <= 1 + dead, state  # again only where a process died before its record
    assert len(follow) > 30


@pytest.mark.parametrize(("processes", "deaths"), [(2, 1), (3, 2)])
def test_from_everywhere_the_end_can_be_reached_and_there_the_trial_has_its_record(processes, deaths):
    follow = explore(processes, deaths)
    ends = {now for now, after in follow.items() if not after}
    assert all(state.record and not state.locks for state, _ in ends)
    reach, before = set(ends), {}
    for now, after in follow.items():
        for later in after:
            before.setdefault(later, []).append(now)
    todo = list(ends)
    while todo:
        for now in before.get(todo.pop(), ()):
            if now not in reach:
                reach.add(now)
                todo.append(now)
    assert reach == set(follow)


def test_without_the_comparison_two_processes_could_run_it_at_once():
    """The model can tell: a process that locks a removed file beside one that locks a new one."""
    follow = explore(3, 1, compares=False)
    assert any(sum(process.at in (RUN, WRITE) for process in state.processes) > 1 for state, _ in follow)


HOLD = """
import sys, time
from pathlib import Path
from harness.records.claims import claimed
from harness.records.paths import Paths
with claimed(Paths(Path(sys.argv[1])), sys.argv[2:]) as mine:
    print(*mine, flush=True)
    time.sleep(600)
"""


def test_a_claim_ends_with_its_process_and_a_stopped_one_keeps_it(tmp_path):
    paths = Paths(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "aa1", "bb2"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "aa1 bb2\n"
        other.send_signal(signal.SIGSTOP)
        with claimed(paths, ["bb2", "cc3"]) as mine:
            assert mine == ["cc3"]
        assert not paths.claim("cc3").exists()
        other.kill()
        other.wait()
    assert paths.claim("bb2").exists()
    with claimed(paths, ["bb2", "cc3"]) as mine:
        assert mine == ["bb2", "cc3"]
    assert not paths.claim("bb2").exists()


def test_a_claim_is_never_on_a_file_that_its_owner_has_removed(tmp_path, monkeypatch):
    """As where the owner ends between this process's opening of the file and its lock."""
    paths, lock, removed = Paths(tmp_path), fcntl.flock, []

    def late(handle, how):
        if not removed:
            paths.claim("aa1").unlink()
            removed.append(True)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(paths, ["aa1"]) as mine:
        assert mine == ["aa1"]
        with claimed(paths, ["aa1"]) as others:
            assert others == []


def test_claims_are_given_back_when_what_they_are_for_fails(tmp_path):
    paths = Paths(tmp_path)
    with pytest.raises(KeyError), claimed(paths, ["aa1"]):
        raise KeyError
    with claimed(paths, ["aa1"]) as mine:
        assert mine == ["aa1"]


def test_a_file_system_without_locks_is_told_once_and_used(tmp_path, monkeypatch, caplog):
    def refuse(handle, how):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with claimed(Paths(tmp_path), ["aa1"]) as mine:
            assert mine == ["aa1"]
    assert [record.getMessage()[:33] for record in caplog.records] == ["the results folder has no locks ("]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "trials").touch()
    with pytest.raises(StorageError, match="could not be written"), claimed(Paths(tmp_path), ["aa1"]):
        pass

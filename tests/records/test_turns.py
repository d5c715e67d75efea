"""Processes that must not work at once: the second waits, and a killed one leaves nothing to clean up."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from itertools import islice

import pytest

from harness.errors import StorageError
from harness.records import turns
from harness.records.turns import my_turn, pauses
from tests.patience import PATIENCE_S

HOLD = """
import sys, time
from pathlib import Path
from harness.records.turns import my_turn
with my_turn(Path(sys.argv[1]), "tries something"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_second_process_waits_says_for_whom_and_goes_on_however_the_first_ends(tmp_path, caplog, end):
    lock, entered = tmp_path / "new" / "lock", threading.Event()

    def wait():
        with my_turn(lock, "tries something"):
            entered.set()

    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        second = threading.Thread(target=wait)
        second.start()
        assert not entered.wait(0.5)
        first.send_signal(end)
        assert entered.wait(PATIENCE_S)
        second.join()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"process {first.pid} on {socket.gethostname()} tries something: this command goes on when that has ended"
    ]
    assert lock.read_text() == ""  # or the next one would be told of a process that is gone


def test_whoever_waits_for_days_goes_on_waiting():
    """Ever longer pauses must not grow beyond what a float holds, as 1.5 to the power of the tries does after hours."""
    waits = list(islice(pauses(), 5000))
    assert waits[0] == 0.1
    assert waits == sorted(waits)
    assert set(waits[20:]) == {5.0}


def test_a_file_system_without_locks_lets_everybody_work(tmp_path, monkeypatch, caplog):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    turns._warn.cache_clear()  # it is said once for each process
    both = []
    with my_turn(tmp_path / "lock", "tries something"), my_turn(tmp_path / "lock", "tries something"):
        both.append("at once")
    assert both == ["at once"]
    assert [record.getMessage() for record in caplog.records] == [
        f"the results folder has no locks ({os.strerror(errno.ENOLCK)}): two commands at once may do the same work twice"
    ]


def test_a_lock_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"), my_turn(tmp_path / "file" / "lock", "tries"):
        pass

"""A driver and its workers as real processes in a folder of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.records.paths import Paths
from harness.records.results import find_result
from harness.records.study_trials import read_members
from tests.chaos.drive import STUDY
from tests.driver import standin
from tests.patience import PATIENCE_S


def _heed_interrupts():
    """As in a terminal; what runs in the background may have been told to ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Scene:
    """Starts drivers and looks at what they leave."""

    def __init__(self, folder, runner="local", **options):
        self.folder, self.paths = folder, Paths(folder / "results", folder / "reports")
        self.arguments = [str(folder), runner, *(f"{key}={value}" for key, value in options.items())]
        self.drivers = []

    def start(self, **variables):
        """A driver; trials take half a second unless said otherwise."""
        environment = os.environ | {
            "PYTHONPATH": str(standin.REPOSITORY),
            "STANDIN_RAN": str(self.folder / "ran"),
            "STANDIN_DONE": str(self.folder / "done"),
            "STANDIN_SECONDS": "0.5",
            **variables,
        }
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.drive", *self.arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=_heed_interrupts,
        )  # fmt: skip
        self.drivers.append(driver)
        return driver

    def finish(self, code=0, **variables):
        """A driver that must end by itself with this code; returns what it said."""
        driver = self.start(**variables)
        said, _ = driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == code, said
        return said

    def lines(self, name):
        path = self.folder / name
        return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, name, count):
        """Until a file has so many lines."""
        end = time.monotonic() + PATIENCE_S
        while len(self.lines(name)) < count:
            assert time.monotonic() < end, f"{name} has {len(self.lines(name))} lines, not {count}"
            time.sleep(0.05)
        return self.lines(name)

    def records(self):
        members = read_members(self.paths, STUDY.name)
        return [find_result(self.paths, key) for key in {member.key for member in members}]


@pytest.fixture
def scene(tmp_path):
    """Two local workers; nothing is left running after the test."""
    made = Scene(tmp_path, workers=2)
    yield made
    for driver in made.drivers:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.stdout.close()
        driver.wait()
        try:
            os.killpg(driver.pid, signal.SIGKILL)  # workers that a killed driver left behind
        except ProcessLookupError:
            continue

"""Practise a disaster where it would happen: a worker is killed, then the driver, and nothing may be lost or run twice.

The trials are trivial (they sleep), so that only the site's own machinery is tested: processes, files, Slurm.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import tryout
from harness.records.paths import Paths
from harness.records.results import find_result, write_result
from harness.records.trial import TrialConfig, TrialResult
from harness.runners.base import parse_options

if TYPE_CHECKING:
    from harness.trial.workspace import Workspace
    from harness.workers.worker import Work

TRIALS = 12
TRIAL_S = 1.0
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Drilled:
    """How a drill went."""

    runner: str
    complete: int
    """Trials with a record, of `TRIALS`."""
    ran_twice: int
    """Trials that started twice; the one whose worker was killed must, no other may."""
    workers_killed: int
    drivers_killed: int
    seconds: float
    log: str = ""
    """What the second driver said, if something went wrong."""

    @property
    def passed(self) -> bool:
        """Whether both disasters happened and nothing was lost or repeated."""
        happened = self.workers_killed == 1 and self.drivers_killed == 1
        return happened and self.complete == TRIALS and self.ran_twice == 1

    def text(self) -> str:
        """One sentence, and the log where it failed."""
        facts = (
            f"{self.complete} of {TRIALS} trials have records, {self.ran_twice} ran twice (1 had to), "
            f"{self.workers_killed} worker and {self.drivers_killed} driver killed, {self.seconds:.0f} s on {self.runner}"
        )
        return f"passed: {facts}" if self.passed else f"FAILED: {facts}\n{self.log}"


def practise(runner: str, options: Mapping[str, str], root: Path) -> Drilled:
    """Run the drill in a new folder below `root/results`, removed if it passes.

    Args:
        runner: `local` or `slurm`.
        options: The runner's options.
        root: Project folder; must be visible to the workers.

    Raises:
        UsageError: For an unknown runner or option.
    """
    parse_options(runner, options)
    results = root / "results"  # a temporary folder may be the driver's node's own; workers on others must see it too
    results.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir=results)).resolve()
    started = time.monotonic()
    command = tryout.command(folder, f"{__name__}:work", TRIALS, runner, {"workers": "2", **options})
    # A process each, as on a real site: a driver that is killed cannot clean up after itself.
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = _kill_when_running(first, folder)
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False).stderr
    except subprocess.TimeoutExpired:
        said = f"the second driver did not end within {PATIENCE_S:.0f} s: is the queue full?"
    runs = Counter(_lines(folder / "ran"))
    outcome = Drilled(
        runner=runner,
        complete=sum(Path(record).exists() for record in Paths(folder).records()),
        ran_twice=sum(count > 1 for count in runs.values()),
        workers_killed=int((folder / "killed").exists()),
        drivers_killed=int(killed),
        seconds=time.monotonic() - started,
        log=said[-3000:],
    )
    if outcome.passed:  # otherwise it stays: its logs say what went wrong
        shutil.rmtree(folder)
    return outcome


def _kill_when_running(driver: subprocess.Popen[bytes], folder: Path) -> bool:
    """Kill the driver once a third of the trials have started; false if it ended by itself before."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and driver.poll() is None:
        if len(_lines(folder / "ran")) > TRIALS // 3:  # by then a worker was killed, too
            driver.kill()  # SIGKILL, so that nothing of it runs any more, as after a power cut
            driver.wait()
            return True
        time.sleep(0.05)
    driver.kill()
    return False


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def work(workspace: Workspace) -> Work:
    """What the drill's workers do: sleep, write a record; the second trial to start kills its worker."""
    return lambda configs: [_run_one(config, workspace.paths) for config in configs]


def _run_one(config: TrialConfig, paths: Paths) -> TrialResult:
    # As a real trial does: a worker that was killed after it wrote the record has done its work.
    if (earlier := find_result(paths, config.key)) is not None:
        return earlier
    with (paths.results / "ran").open("a") as file:
        file.write(f"{config.key}\n")
    time.sleep(TRIAL_S)  # long enough that the kill hits a trial under way
    if len(_lines(paths.results / "ran")) > 1:
        with suppress(FileExistsError):  # only one worker is to die
            (paths.results / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    result = tryout.complete(config, TRIAL_S)
    write_result(paths, result)
    return result

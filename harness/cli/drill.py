"""Practise disasters where they would happen: whatever is killed, the study ends as if nothing had been.

Snakemake, a worker, the driver and a job are killed one after the other while trials run, and a node is taken down where
the user wants that. The same command is typed again whenever it ended. Then the tables that its records come to are
compared with those of an undisturbed run, which takes place beside it. The trials are trivial (they sleep), so that only
the site's own machinery is tested: processes, files, Slurm.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import tryout
from harness.database.equality import Certificate, certify
from harness.database.ingest import connect_now
from harness.records.paths import Paths, StudyPaths
from harness.records.results import find_result, write_result
from harness.records.trial import TrialConfig, TrialResult
from harness.runners.base import WorkerJob, backend, parse_options, recorded_jobs
from harness.workers.worker import where_it_ran

if TYPE_CHECKING:
    from harness.trial.workspace import Workspace
    from harness.workers.worker import Work

TRIALS = 16
TRIAL_S = 1.0
PATIENCE_S = 600.0
_RAN, _DONE, _KILLED = "ran", "done", "killed"
"""Files of a run: keys of the trials that started, and of those that ended; there once a worker was killed."""
_STARTED = {"snakemake": 1, "worker": 3, "driver": 5, "job": 8, "node": 11}
"""Trials that have started when each is killed."""


@dataclass(frozen=True, kw_only=True)
class Drilled:
    """How a drill went."""

    runner: str
    struck: tuple[str, ...]
    """What was killed while trials ran, in that order."""
    spared: Mapping[str, str]
    """What was not, each with the reason."""
    complete: int
    """Trials with a record, of `TRIALS`."""
    ran_again: int
    """Starts of trials beyond the first of each."""
    under_way: int
    """Trials that were under way in what was killed, and must start again."""
    ended_twice: int
    """Trials that ran to their end more than once."""
    certificate: Certificate
    """Whether the tables are those of the undisturbed run."""
    seconds: float
    log: str = ""
    """The end of what the commands said."""

    @property
    def passed(self) -> bool:
        """Whether the disasters happened, nothing was lost, nothing repeated that need not be, and the tables are equal."""
        happened = {*_STARTED} == {*self.struck, *self.spared} and {"worker", "driver", "job"} <= {*self.struck}
        once = self.ended_twice == 0 and self.ran_again <= self.under_way
        return happened and once and self.complete == TRIALS and self.certificate.equal

    def text(self) -> str:
        """What happened and the certificate, with the log where it failed."""
        facts = (
            f"{', '.join(self.struck) or 'nothing'} killed while trials ran; {self.complete} of {TRIALS} trials have records, "
            f"{self.ran_again} started again ({self.under_way} were under way in what was killed), {self.ended_twice} ended "
            f"twice; {self.seconds:.0f} s on {self.runner}"
        )
        spared = [f"not killed: {what}, since {why}" for what, why in self.spared.items()]
        equal = "equal" if self.certificate.equal else "DIFFER from"
        table = f"its tables {equal} those of an undisturbed run:"
        lines = [f"passed: {facts}" if self.passed else f"FAILED: {facts}", *spared, table, self.certificate.text()]
        return "\n".join(lines if self.passed else [*lines, self.log])


def practise(runner: str, options: Mapping[str, str], root: Path, node: bool = False) -> Drilled:
    """Run the drill in a new folder below `root/results`, removed if it passes.

    Args:
        runner: Where trials run.
        options: The runner's options.
        root: Project folder; must be visible to the workers.
        node: Whether to take a node down, too, with all that runs on it.

    Raises:
        UsageError: For an unknown runner or option.
    """
    parse_options(runner, options)
    results = root / "results"  # a temporary folder may be the driver's node's own; workers on others must see it too
    results.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir=results)).resolve()
    started = time.monotonic()
    calm, rough = (
        _Run(folder / name, runner, {"workers": "2", "idle_s": "2", **options}) for name in ("calm", "rough")
    )
    with calm.typed("work") as undisturbed:
        disasters = _Disasters(rough, node)
        disasters.happen(undisturbed)
    ran, done = Counter(rough.lines(_RAN)), Counter(rough.lines(_DONE))
    outcome = Drilled(
        runner=runner,
        struck=tuple(disasters.struck),
        spared=disasters.spared,
        complete=sum(Path(record).exists() for record in rough.paths.records()),
        ran_again=ran.total() - len(ran),
        under_way=disasters.under_way,
        ended_twice=sum(count > 1 for count in done.values()),
        certificate=_certificate(calm.paths, rough.paths),
        seconds=time.monotonic() - started,
        log=(rough.folder / "log").read_text(errors="replace")[-3000:],
    )
    if outcome.passed:  # otherwise it stays: its logs say what went wrong
        shutil.rmtree(folder)
    return outcome


def _certificate(calm: Paths, rough: Paths) -> Certificate:
    keys = {Path(record).parent.name for paths in (calm, rough) for record in paths.records()}
    with connect_now(calm, keys) as first, connect_now(rough, keys) as second:
        return certify(first, second)


class _Run:
    """A study of trivial trials in a folder of its own."""

    def __init__(self, folder: Path, runner: str, options: Mapping[str, str]) -> None:
        self.folder, self.paths, self.runner, self.options = folder, Paths(folder, folder), runner, options
        self.backend = backend(runner)(folder, parse_options(runner, options))
        folder.mkdir()

    def lines(self, name: str) -> list[str]:
        """Of one of its files."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def typed(self, work: str, snakemake: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """The command, typed, perhaps by Snakemake; killed on leaving."""
        # A process each, as on a real site: a driver that is killed cannot clean up after itself.
        command = tryout.command(self.folder, f"{__name__}:{work}", TRIALS, self.runner, self.options)
        if snakemake:
            rule = self.folder / "Snakefile"
            rule.write_text(f"rule drill:\n    shell: {shlex.join(command)!r}\n")
            command = [
                snakemake,
                "--snakefile",
                str(rule),
                "--directory",
                str(self.folder),
                "--cores",
                "1",
                "--nolock",
                "--workflow-profile",
                "none",
            ]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def study(self) -> StudyPaths:
        """Its files."""
        return self.paths.study(tryout.NAME)

    def at_work(self) -> list[WorkerJob]:
        """Workers' jobs that hold trials."""
        return [job for job in recorded_jobs(self.study.jobs) if self.held(job)]

    def held(self, job: WorkerJob) -> int:
        """Packs that a job's workers hold."""
        return len(list((self.study.queue / "claimed" / job.job).rglob("*.json")))


class _Disasters:
    """What happens to a run."""

    def __init__(self, run: _Run, node: bool) -> None:
        self.run, self.struck, self.under_way = run, list[str](), 0
        self.spared: dict[str, str] = {} if node else {"node": "--node was not given"}
        self._deadline = time.monotonic() + PATIENCE_S

    def happen(self, undisturbed: subprocess.Popen[bytes]) -> None:
        """All of them, until the command and the undisturbed one have ended by themselves."""
        snakemake = shutil.which("snakemake", path=str(Path(sys.executable).parent)) or shutil.which("snakemake") or ""
        if not snakemake:
            self.spared["snakemake"] = "there is none here"
        with self.run.typed("work_and_die", snakemake) as first:
            self._strike("snakemake", lambda: self._kill(first.pid))
            # The driver that Snakemake has started lives on, and the same command waits for it.
            with self.run.typed("work_and_die", snakemake) as second:
                self._strike("worker", self._worker_has_died)
                self._strike("driver", self._kill_driver)
                self._strike("job", self._cancel_job)
                self._wait(undisturbed)  # before a node goes down that it may be on
                nodes: list[str] = []
                self._strike("node", lambda: self._fail_node(nodes))
                self._wait(second)
                for name in nodes:
                    self.run.backend.set_node(name, up=True)

    def _strike(self, what: str, kill: Callable[[], str | None]) -> None:
        """Kill something while trials run; `kill` returns None until it could, then why not, or nothing."""
        while what not in self.spared and time.monotonic() < self._deadline:
            enough = len(self.run.lines(_RAN)) >= _STARTED[what]
            if enough and (why_not := kill()) is not None:
                self.spared |= {what: why_not} if why_not else {}
                self.struck += [] if why_not else [what]
                return
            if len({*self.run.lines(_DONE)}) == TRIALS:
                return
            time.sleep(0.05)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, self._deadline - time.monotonic()))

    def _kill(self, pid: int) -> str:
        os.kill(pid, signal.SIGKILL)  # so that nothing of it runs any more, as after a power cut
        return ""

    def _worker_has_died(self) -> str | None:
        if not (self.run.folder / _KILLED).exists():
            return None
        self.under_way += 1
        return ""

    def _kill_driver(self) -> str | None:
        """The one that runs the study now, by what its lock says."""
        owner = self.run.study.lock.read_text().split()
        return self._kill(int(owner[1])) if owner else None

    def _cancel_job(self) -> str | None:
        for job in self.run.at_work()[:1]:
            self.under_way += self.run.held(job)
            self.run.backend.cancel([job])
            return ""
        return None

    def _fail_node(self, nodes: list[str]) -> str | None:
        jobs = {job.job: job for job in self.run.at_work()}
        node = next((name for job in jobs if (name := where_it_ran(self.run.study.queue / "claimed" / job)[0])), None)
        if node is None:
            return None
        ours = [job.job for job in recorded_jobs(self.run.study.jobs)]
        if others := {*self.run.backend.jobs_on(node)} - {*ours}:
            return f"{len(others)} other jobs run on {node}"
        struck = [job for job in jobs.values() if where_it_ran(self.run.study.queue / "claimed" / job.job)[0] == node]
        under_way = sum(map(self.run.held, struck))
        if why_not := self.run.backend.set_node(node, up=False):
            return why_not
        nodes.append(node)
        self.under_way += under_way
        return ""


def work(workspace: Workspace) -> Work:
    """What the workers of the undisturbed run do: sleep, and write a record."""
    return lambda configs: [_run_one(config, workspace.paths, dies=False) for config in configs]


def work_and_die(workspace: Workspace) -> Work:
    """The same, but that one of the first trials kills its worker."""
    return lambda configs: [_run_one(config, workspace.paths, dies=True) for config in configs]


def _run_one(config: TrialConfig, paths: Paths, dies: bool) -> TrialResult:
    # As a real trial does: a worker that was killed after it wrote the record has done its work.
    if (earlier := find_result(paths, config.key)) is not None:
        return earlier
    _note(paths.results / _RAN, config.key)
    time.sleep(TRIAL_S)  # long enough that what is killed has a trial under way
    if dies and len((paths.results / _RAN).read_text().splitlines()) >= _STARTED["worker"]:
        with suppress(FileExistsError):  # only one worker is to die
            (paths.results / _KILLED).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    result = tryout.complete(config, TRIAL_S)
    write_result(paths, result)
    _note(paths.results / _DONE, config.key)
    return result


def _note(path: Path, key: str) -> None:
    with path.open("a") as file:
        file.write(f"{key}\n")

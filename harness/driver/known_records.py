"""Records that are there before a phase asks for a trial: which are believed, and what is said of those of other code."""

from __future__ import annotations

import logging
from pathlib import Path

from harness import __version__
from harness.plugins import changed
from harness.records.lost_work import append_reopened
from harness.records.paths import Paths
from harness.records.results import find_or_set_aside, find_result
from harness.records.trial import TrialResult, TrialStatus

log = logging.getLogger(__name__)


class KnownRecords:
    """Finds records for a driver."""

    def __init__(self, paths: Paths, lines: Path, refresh: bool) -> None:
        """Take where records lie, the study's `StudyPaths.jobs`, and whether doubtful records are to be made anew."""
        self.paths, self.lines, self.refresh = paths, lines, refresh
        self._notes: dict[str, str] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each plug-in whose code has changed since a record that was read was made."""
        return tuple(self._notes.values())

    def find(self, key: str) -> TrialResult | None:
        """The record of a trial that a phase asks for; None where it has to run.

        A damaged record is set aside. One that says that a worker was taken away is deleted, since its trial never ended;
        with `refresh`, a doubtful one is, too. Their seconds are written down as lost first, so that they stay on the bill.

        Raises:
            NewerRecord: When a later version of harness wrote it.
        """
        result = find_or_set_aside(self.paths, key)
        if result is not None and (taken_away(result) or (self.refresh and doubtful(result))):
            append_reopened(self.lines, result)
            self.paths.record(key).unlink()  # a worker that finds a record would take it for its own result
            return None
        return self._noted(result)

    def read(self, key: str) -> TrialResult | None:
        """The record of a trial that an earlier phase asked for, doubtful or not."""
        return self._noted(find_result(self.paths, key))

    def _noted(self, result: TrialResult | None) -> TrialResult | None:
        """The same record; a changed plug-in is named the first time that it is met."""
        for plugin in changed(result.provenance.plugins) if result else ():
            if plugin not in self._notes:
                self._notes[plugin] = (
                    f"the code of {plugin} is not what it was when records that this phase uses were made: their results "
                    "may be those of the earlier code, and --refresh runs their trials again"
                )
                log.warning("%s", self._notes[plugin])
        return result


def taken_away(result: TrialResult) -> bool:
    """Whether a driver of an earlier version wrote the record since the trial's site took its worker away.

    A trial that reached a limit of its own has seconds of its own; the driver knew only how long a worker was held.
    """
    outside = result.status in (TrialStatus.PREEMPTED, TrialStatus.TIMED_OUT)
    return outside and result.cost.seconds.keys() == {"lost"}


def doubtful(result: TrialResult) -> bool:
    """Whether a trial may end otherwise now.

    It failed for what may be its site's reasons; or another version of harness, of a library, or other code of a plug-in
    made it. Where a record does not name the code of its plug-ins, nothing says that it has changed.
    """
    from importlib.metadata import PackageNotFoundError, version

    if not result.status.has_scores and result.status != TrialStatus.DIVERGED:
        return True
    if result.provenance.harness_version != __version__ or changed(result.provenance.plugins):
        return True
    for name, recorded in result.provenance.versions.items():
        try:
            if version(name) != recorded:
                return True
        except PackageNotFoundError:
            continue
    return False

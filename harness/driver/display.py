"""What a phase shows while it runs: a live display on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from harness.files import duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

log = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0
_DRAW_EVERY_S = 0.25


@dataclass(frozen=True)
class Snapshot:
    """How far a phase is."""

    done: int = 0
    failed: int = 0
    running: int = 0
    planned: int = 0
    """Trials in all, as far as is known."""
    ran: int = 0
    """Trials that ended since the display was opened; those that had records are left out."""
    seconds: float = 0.0
    """Wall seconds of the trials, summed."""
    money: float | None = None
    leaders: tuple[str, ...] = ()

    def left_s(self, elapsed_s: float) -> float | None:
        """Seconds until the end at the pace so far; None before any trial has ended.

        Args:
            elapsed_s: Wall seconds since the display was opened.
        """
        # Trials that had records took no time now, so they say nothing about the pace.
        left = self.planned - self.done - self.failed
        return elapsed_s / self.ran * left if self.ran > 0 else None


class Paced:
    """Asks for what takes long only after news, and so seldom that asking takes a twentieth of the time."""

    def __init__(self, ask: Callable[[], Sequence[str]]) -> None:
        self._ask = ask
        self._answer: tuple[str, ...] = ()
        self._news: int | None = None
        self._due = 0.0

    def answer(self, news: int) -> tuple[str, ...]:
        """The latest answer.

        Args:
            news: Another number than before where something changed.
        """
        start = time.monotonic()
        if news != self._news and start >= self._due:
            self._answer, self._news = tuple(self._ask()), news
            self._due = time.monotonic() + 20 * (time.monotonic() - start)
        return self._answer


class Display:
    """Shows snapshots on stderr, as a context manager: live on a terminal, else as log lines that do not flood."""

    def __init__(self, title: str, shown: bool, currency: str = "") -> None:
        """Take what stays the same.

        Args:
            title: Study and phase.
            shown: Whether anything is shown at all.
            currency: Of the study's prices.
        """
        self.title, self.shown, self.currency = title, shown, currency
        self.started = time.monotonic()
        self._live: Live | None = None
        self._last = -1e9  # long ago, so that the first snapshot is due
        self._logged: tuple[int, int] | None = None

    def __enter__(self) -> Display:
        log.setLevel(logging.INFO)  # asked for by `shown`, whatever else is logged
        if self.shown and sys.stderr.isatty():
            from rich.console import Console  # slow to import, and a log needs none of it
            from rich.live import Live

            # The driver's loop redraws; rich's own thread would only draw old numbers again.
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, look: Callable[[], Snapshot], last: bool = False) -> None:
        """Show how far it is, at most four times a second (log: every 30 s, and only if something ended).

        Args:
            look: Takes a snapshot; called only when it is time to show one.
            last: The phase is over: show it now.
        """
        due = time.monotonic() - self._last >= (_DRAW_EVERY_S if self._live else _LOG_EVERY_S)
        if not self.shown or not (due or last):
            return
        snapshot, self._last = look(), time.monotonic()
        if self._live is not None:
            self._live.update(self._table(snapshot), refresh=True)
        elif (state := (snapshot.done, snapshot.failed)) != self._logged:
            self._logged = state
            log.info("%s", self.line(snapshot))

    def line(self, snapshot: Snapshot) -> str:
        """One line: counts, spend, time left, best so far."""
        parts = [f"{snapshot.done + snapshot.failed}/{snapshot.planned} trials", f"{snapshot.running} running"]
        parts.append(f"{snapshot.failed} failed")
        parts += [f"spent {self._spend(snapshot)}", f"about {self._left(snapshot)} left", *snapshot.leaders]
        return f"{self.title}: " + ", ".join(parts)

    def _table(self, snapshot: Snapshot) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, snapshot.planned), completed=snapshot.done + snapshot.failed, width=40)
        counts = f"{snapshot.done} done, {snapshot.running} running, {snapshot.failed} failed of {snapshot.planned}"
        grid.add_row(f"[bold]{self.title}[/bold]", bar, counts)
        grid.add_row("", f"spent {self._spend(snapshot)}", f"about {self._left(snapshot)} left")
        for leader in snapshot.leaders:
            grid.add_row("", "", leader)
        return grid

    def _spend(self, snapshot: Snapshot) -> str:
        money = f" ({snapshot.money:.2f} {self.currency})" if snapshot.money is not None else ""
        return duration(snapshot.seconds) + money

    def _left(self, snapshot: Snapshot) -> str:
        left = snapshot.left_s(time.monotonic() - self.started)
        return "an unknown time" if left is None else duration(left)

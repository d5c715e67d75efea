"""What a step shows while it runs."""

import io
import logging

import pytest

from harness.driver import display as progress
from harness.driver.display import Display, Snapshot
from harness.files import duration

HALF = Snapshot(done=4, failed=1, running=2, planned=10, ran=5, seconds=130, money=1.5, leaders=("one: best 0.900 a",))


def test_a_line_tells_counts_spend_time_left_and_the_best(monkeypatch):
    display = Display("demo search", True, "EUR")
    monkeypatch.setattr(progress.time, "monotonic", lambda: display.started + 20)
    line = display.line(HALF)
    # Five ended in 20 s, five are left.
    assert line == (
        "demo search: 5/10 trials, 2 running, 1 failed, spent 2.2 min (1.50 EUR), about 20 s left, one: best 0.900 a"
    )


def test_no_time_is_foretold_before_a_trial_ended():
    assert Snapshot(planned=3).left_s(10) is None
    assert "an unknown time" in Display("x", True).line(Snapshot(planned=3))


def test_a_log_is_not_flooded(caplog):
    looks = []

    def look():
        looks.append(1)
        return HALF

    with caplog.at_level(logging.INFO, "harness.progress"), Display("x", True) as display:
        for _ in range(1000):
            display.show(look)
        display.show(look, last=True)
    assert len(caplog.records) == 1
    assert len(looks) == 2


def test_nothing_is_shown_when_nobody_wants_to_see_it(caplog):
    with caplog.at_level(logging.INFO, "harness.progress"), Display("x", False) as display:
        display.show(lambda: pytest.fail("looked"), last=True)
    assert not caplog.records


def test_a_terminal_gets_a_live_display_on_stderr(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Display("demo search", True) as display:
        display.show(lambda: HALF)
    for shown in ("demo search", "4 done, 2 running, 1 failed of 10", "spent 2.2 min", "one: best 0.900 a"):
        assert shown in terminal.getvalue()


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0 s"), (89, "89 s"), (90, "1.5 min"), (5400, "1.5 h")])
def test_durations_are_said_as_people_say_them(seconds, expected):
    assert duration(seconds) == expected


def test_what_takes_long_is_asked_for_after_news_and_for_a_twentieth_of_the_time(monkeypatch):
    clock, asked = [100.0], []

    def ask():
        clock[0] += 2.0
        asked.append(clock[0])
        return [f"answer {len(asked)}"]

    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    paced = progress.Paced(ask)
    assert paced.answer(1) == ("answer 1",)
    assert paced.answer(1) == paced.answer(2) == ("answer 1",)  # no news, then too early
    clock[0] += 39.0
    assert paced.answer(2) == ("answer 1",)
    clock[0] += 1.0  # 20 times the 2 s that it took
    assert paced.answer(2) == ("answer 2",)

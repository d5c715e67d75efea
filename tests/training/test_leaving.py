"""When a signal ends a process at once, and when it waits for a step."""

import pytest

from harness.training import leaving


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    monkeypatch.setattr(leaving, "_state", leaving._State())


def test_a_process_that_does_not_train_leaves_at_once():
    with pytest.raises(SystemExit, match="143"):
        leaving.ask(15)


def status(life):
    """Exit status of what a process does."""
    with pytest.raises(SystemExit) as end:
        life()
    return end.value.code


def test_one_that_trains_leaves_after_it_has_saved_and_an_echo_changes_nothing():
    saved = []

    def life():
        with leaving.heeded():
            assert not leaving.asked()
            leaving.ask(12)
            leaving.ask(12)
            saved.append(leaving.asked())

    assert status(life) == 140
    assert saved == [True]


def test_a_second_signal_ends_it_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(leaving.time, "monotonic", lambda: now[0])

    def life():
        with leaving.heeded():
            leaving.ask(12)
            now[0] += leaving.ECHO_S + 0.1
            leaving.ask(15)
            pytest.fail("it must not go on")

    assert status(life) == 143


@pytest.mark.parametrize("early", [False, True])
def test_what_takes_long_is_left_at_once(early):
    """Also where the signal came just before it."""

    def life():
        with leaving.heeded():
            if early:
                leaving.ask(12)
            with leaving.unheeded():
                leaving.ask(12)
            pytest.fail("it must not go on")

    assert status(life) == 140

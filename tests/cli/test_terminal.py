"""What a command says when something is wrong: one line, whatever stands in the input."""

import pytest

from harness.cli.terminal import Commands
from harness.errors import SpecError, one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n  b\tc", "a b c"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("half \ud800", "half \\ud800"),
        ("turned \u202e", "turned \\u202e"),
        ("日本語 é", "日本語 é"),
        ("x" * 2000, "x" * 997 + "..."),
        ("x" * 1000, "x" * 1000),
        ("", ""),
    ],
)
def test_a_sentence_stays_on_its_line(text, expected):
    assert one_line(text) == expected


@pytest.mark.parametrize(("error", "code"), [(SpecError("a\nb \ud800"), 3), (ZeroDivisionError("by\nzero"), 1)])
def test_every_error_is_one_sentence(capsys, error, code):
    def fail():
        raise error

    with pytest.raises(SystemExit) as ended:
        Commands("x", callback=fail, invoke_without_command=True).main([])
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert said.startswith("harness: ")
    assert said.count("\n") == 1

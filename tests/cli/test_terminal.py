"""What a command says when something is wrong: one line, whatever stands in the input."""

import errno
import json

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


ERRORS = [
    (SpecError("a\nb \ud800"), 3),
    (ZeroDivisionError("by\nzero"), 1),
    (PermissionError(13, "Permission denied", "results"), 5),
    (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000), 3),
    (ConnectionError("no file has to do with it"), 1),
]


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_every_error_is_one_sentence(capsys, error, code):
    def fail():
        raise error

    with pytest.raises(SystemExit) as ended:
        Commands("x", callback=fail, invoke_without_command=True).main([])
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert said.startswith("harness: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "base s", "database", "backtest", "report s"])
def test_a_results_folder_that_is_a_file(tmp_path, monkeypatch, capsys, command):
    from harness.cli.main import main
    from tests.driver.standin import study

    (tmp_path / "studies").mkdir()
    spec = study(name="s", base_models=["tiny-1m"], tasks=["tb_sort"]).model_dump(mode="json", exclude_none=True)
    (tmp_path / "studies" / "s.yaml").write_text(json.dumps(spec))
    (tmp_path / "results").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main.main(["--root", str(tmp_path), *command.split(), *(["--runner", "inline"] if command == "base s" else [])])
    assert ended.value.code == 5
    assert capsys.readouterr().err.startswith("harness: ")
    assert (tmp_path / "results").read_text() == "mine"

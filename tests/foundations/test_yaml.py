"""YAML is read once, strictly: one meaning for each value, one line for each mistake, and no file that grows."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.files import read_yaml
from harness.tasks.file import read_task_file

VALUES = {
    "1e-3": 0.001,
    "1E5": 100000.0,
    "1.5e+3": 1500.0,
    "-.5": -0.5,
    "1.": 1.0,
    "+7": 7,
    "1_000": 1000,
    "0x1F": 31,
    "0o17": 15,
    "00.5": 0.5,
    "true": True,
    "FALSE": False,
    "~": None,
    "null": None,
    "yes": "yes",
    "No": "No",
    "off": "off",
    "y": "y",
    "12:30": "12:30",
    "2024-13-45": "2024-13-45",
    "1.2.3": "1.2.3",
    "e1": "e1",
    "=": "=",
    "'007'": "007",
    '"1e-3"': "1e-3",
    "!!str 12": "12",
}
"""By the core schema of YAML 1.2 (section 10.3.2), and `1_000`, which Python and YAML 1.1 take for a number."""
ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture
def read(tmp_path):
    def reading(content: str | bytes, **options):
        path = tmp_path / "file.yaml"
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return read_yaml(path, **options)

    return reading


def test_values_are_those_of_yaml_1_2(read):
    found = read("values: [" + ", ".join(VALUES) + "]")["values"]
    assert [(value, type(value)) for value in found] == [(value, type(value)) for value in VALUES.values()]


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_of_pythons_is_itself(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("numbers") / "file.yaml"
    path.write_text(f"a: {number!r}")
    assert read_yaml(path) == {"a": number}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lora: 1\nfull: 2\n'lora': 3", "line 3, column 1: the key lora stands on line 1 already"),
        ("a: {b: 1,\n b: 2}", "line 2, column 2: the key b stands on line 1 already"),
        ("do_sample: no", "line 1, column 12: no may be a text, true or false"),
        ("labels:\n- 007", "line 2, column 3: 007 may be a number or a text"),
        ("a:\tb\n\t- c", "line 2, column 1: found a tab character"),
        ("a: \x07", "line 1, column 4: control characters are not allowed"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("a: *b", "line 1, column 4: found undefined alias"),
        ("a: 1\n---\nb: 2", "line 2, column 1: found another document"),
        ("a: &x [*x]", "aliases repeat"),
        (ALIASES, "aliases repeat"),
        (MERGES, "aliases repeat"),
        ("[" * 100_000, "more than 50 levels"),
        ("a: " + "{b: " * 100_000, "more than 50 levels"),
        ("a: " + "9" * 5000, "at most 4,300 digits"),
        ("a: 0x" + "9" * 5000, "at most 4,300 digits"),
        ("a: [" + "1, " * 200_000 + "]", "at most 500,000 characters"),
        ("a: !!bool maybe", "must be valid YAML"),
        ("a: !!int [1]", "must be valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "has no meaning here"),
        ("a: !!set {b}", "has no meaning here"),
        ("a: !function f.g", "has no meaning here"),
        ("a: \ud800", "line 1 is not"),
        ("a: é\nb: ü".encode("latin-1"), "must be text in UTF-8, but line 1 is not"),
        ("- 1", "must hold a mapping"),
        ("", "must hold a mapping"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_mistakes_are_one_sentence_with_the_line(read, content, message):
    with pytest.raises(SpecError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_file(read, encoding):
    assert read("a: é".encode(encoding)) == {"a": "é"}


def test_aliases_and_merges_that_stay_small_are_read(read):
    content = "base: &base {a: 1, b: 2}\nother: &other {<<: *base, b: 3}\nthird: {<<: [*other], c: [*base, *base]}"
    one = {"a": 1, "b": 2}
    assert read(content) == {"base": one, "other": {"a": 1, "b": 3}, "third": {"a": 1, "b": 3, "c": [one, one]}}


def test_a_tag_means_what_the_caller_says(read):
    assert read("a: !shout x", tags={"!shout": str.upper}) == {"a": "X"}


def test_lm_evals_own_files_mean_what_lm_eval_reads():
    """Every fortieth of the files in its folders, its own reader as the source."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    from harness.tasks.file import CodeReference

    def plain(value):
        if isinstance(value, CodeReference):
            return str((value.folder / value.name).resolve())
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    root = Path(lm_eval.tasks.__file__).parent
    paths = sorted(root.glob("*/*.yaml"))[::40]
    assert len(paths) > 40
    for path in paths:
        assert plain(read_task_file(path).config) == {
            key: str(Path(value).resolve()) if str(value).startswith(str(root)) else value
            for key, value in load_yaml(path, resolve_func=False).items()
        }

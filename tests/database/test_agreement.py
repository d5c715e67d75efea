"""Python and the database judge every record alike, whatever somebody or something did to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.database.ingest import connect, ingest
from harness.errors import NewerRecord, StorageError
from harness.records.codec import fingerprint
from harness.records.paths import Paths
from harness.records.results import find_or_set_aside, is_intact, read_result, result_text
from harness.records.study_trials import read_members
from harness.records.trial import TrialResult, result_from_json
from tests.fabricate import World, fabricate, study_spec, write_signed

Json = dict[str, Any]
VALUES: list[Any] = [None, "x", 7, 2.5, True, [], {}, ["x"], {"x": 1}, 2**63, float("inf"), float("nan")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """The JSON of a record in which no list or mapping is empty."""
    families = {"walked": {"method": "full", "retention": "interpolation"}}
    spec = study_spec(tasks=1, trials=1)
    paths = Paths(tmp_path_factory.mktemp("whole"))
    spec = type(spec).model_validate(spec.model_dump(mode="json") | {"families": families})
    made = fabricate(paths, spec, world=World(best={}))
    result = next(result for result in made.results if result.path)
    record: Json = json.loads(result_text(result))
    record["path"] = record["path"][:2]
    record["notes"], record["config"]["evaluation"]["limit"] = ["a note"], 5
    record["config"]["pipeline"]["stages"][0]["data"] = "task"
    record["provenance"] |= {"git_commit": "abc", "effective": {"stages": [], "alone": "it is large"}}
    return record


def places(node: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every value of a record; of a list, to those of its first and last element."""
    if way:
        yield way
    if isinstance(node, dict):
        for name in node:
            yield from places(node[name], (*way, name))
    elif isinstance(node, list) and node:
        for index in sorted({0, len(node) - 1}):
            yield from places(node[index], (*way, index))


def inside(node: Any, way: tuple[str | int, ...]) -> Any:
    for step in way:
        node = node[step]
    return node


def mutants(whole: Json) -> Iterator[tuple[str, Json]]:
    """Every value dropped, replaced by values of other types, and every object with a field more."""
    text = json.dumps(whole)
    for way in places(whole):
        for value in ("drop", *VALUES):
            mutant = json.loads(text)
            parent = inside(mutant, way[:-1])
            if value == "drop":
                del parent[way[-1]]
            else:
                parent[way[-1]] = value
            yield f"{way} {value!r}", mutant
        if isinstance(inside(whole, way), dict):
            mutant = json.loads(text)
            inside(mutant, way)["extra"] = 1.5
            yield f"{way} with a field more", mutant
    for version in (0, 1, 2, 3, 99, "2", 1.0, True, None):
        yield f"version {version!r}", json.loads(text) | {"schema_version": version}
    for status in ("complete", "pruned", "crashed", "fine"):
        yield f"{status} without scores", json.loads(text) | {"status": status, "scores": []}


def key_of(record: Json) -> str:
    """The key of whatever stands there as a configuration."""
    text = json.dumps(record.get("config"), sort_keys=True)
    try:
        return fingerprint(record["config"])
    except (KeyError, ValueError):
        return fingerprint(text)


def judgement(path: Path) -> str:
    try:
        read_result(path)
    except NewerRecord:
        return "newer"
    except StorageError:
        return "damaged"
    return "whole"


def judged_alike(paths: Paths) -> dict[str, str]:
    """Python's judgement of every record by key, which is the database's, too."""
    summary = ingest(paths)
    judgements = {Path(path).parent.name: judgement(Path(path)) for path in paths.records()}
    with connect(paths) as database:
        stored = {key for (key,) in database.execute("SELECT key FROM trials").fetchall()}
    believed = {key for key, words in judgements.items() if words == "whole"}
    assert stored == believed
    assert {file.path.parent.name for file in summary.damaged} == judgements.keys() - believed
    assert summary.trials == len(believed)
    return judgements


@pytest.mark.parametrize("version", [1, 2])
def test_every_mutant_is_judged_alike(paths: Paths, whole: Json, version: int) -> None:
    names: dict[str, str] = {}
    for index, (name, mutant) in enumerate(mutants(whole)):
        if isinstance(config := mutant.get("config"), dict) and config.get("seed") == whole["config"]["seed"]:
            config["seed"] = index  # else mutants would be records of one trial
        if mutant.get("schema_version") == 2:
            mutant["schema_version"] = version
        path = paths.record(key_of(mutant))
        names[path.parent.name] = name
        if version == 2:
            try:
                write_signed(path, mutant)
                continue
            except ValueError:  # nothing that is not JSON has a digest
                pass
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: value for name, value in mutant.items() if name != "digest"}))
    assert len(names) > 1000
    judgements = {names[key]: words for key, words in judged_alike(paths).items()}
    assert judgements["version 3"] == judgements["version 99"] == "newer"
    assert judgements["('cost', 'tokens') 'x'"] == "damaged"
    assert judgements["('cost', 'tokens') 'drop'"] == "whole"
    assert judgements["('scores', 0, 'value') 'drop'"] == judgements["('scores', 0, 'value') None"] == "damaged"
    assert judgements["('scores', 0) with a field more"] == "whole"
    assert judgements["('provenance', 'effective') nan"] == "damaged"


OF_TEXT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut short": lambda raw: raw[: len(raw) // 2],
    "without its last brace": lambda raw: raw.rstrip()[:-1],
    "with more behind it": lambda raw: raw + b"}",
    "not JSON": lambda raw: b"the dog ate it",
    "a list": lambda raw: b"[" + raw + b"]",
    "a number": lambda raw: b"7",
    "null": lambda raw: b"null",
    "not UTF-8": lambda raw: raw.replace(b'"reason":""', b'"reason":"\xff\xfe"'),
    "with a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "with half a character": lambda raw: raw.replace(b'"reason":""', b'"reason":"\\ud800"'),
    "with a null character": lambda raw: raw.replace(b'"reason":""', b'"reason":"\\u0000"'),
    "nested without end": lambda raw: b"[" * 200_000,
    "with a key twice": lambda raw: raw.replace(b'{\n\t"config"', b'{\n\t"status":"crashed",\n\t"config"'),
    "with a changed score": lambda raw: raw.replace(b'"value":0.', b'"value":1.', 1),
    "with a changed digest": lambda raw: raw.replace(b'"digest":"', b'"digest":"0'),
    "without a digest": lambda raw: b"\n".join(line for line in raw.split(b"\n") if b'"digest"' not in line),
    "laid out by another program": lambda raw: json.dumps(json.loads(raw)).encode(),
    "as it was": lambda raw: raw,
}
WHOLE = {"with a byte order mark", "with a key twice", "laid out by another program", "as it was"}
"""In these every value is what it was."""


def test_every_damaged_file_is_judged_alike(paths: Paths) -> None:
    made = fabricate(paths)
    scored = [result.config.key for result in made.results if result.target and not result.reason]
    cases = dict(zip(scored, OF_TEXT, strict=False))
    assert len(cases) == len(OF_TEXT)
    for key, name in cases.items():
        raw = paths.record(key).read_bytes()
        changed = OF_TEXT[name](raw)
        assert (changed == raw) is (name == "as it was")
        paths.record(key).write_bytes(changed)
    a, b = scored[-2:]
    paths.record(a).write_bytes(paths.record(b).read_bytes())
    folder = paths.record(scored[-3])
    folder.unlink()
    folder.mkdir()
    judgements = judged_alike(paths)
    assert {name for key, name in cases.items() if judgements[key] == "whole"} == WHOLE
    assert (judgements[a], judgements[b], judgements[scored[-3]]) == ("damaged", "whole", "damaged")


NESTED: Any = 0
for _ in range(300):
    NESTED = [NESTED]
STRANGE: list[Any] = ["\x00", "a\nb\tc", 'a"b\\', '\', "digest":', "\ud800", "\U0001f600", "x" * 100_000, NESTED]


def test_strange_texts_are_judged_alike(paths: Paths, whole: Json) -> None:
    """They stand wherever a person or a library may put any text, as values and as names."""
    count = 0
    for value in STRANGE:
        name = value if isinstance(value, str) else "nested"
        for way in (("reason",), ("notes", 0), ("provenance", "hardware"), ("provenance", "effective", "alone")):
            mutant = json.loads(json.dumps(whole))
            inside(mutant, way[:-1])[way[-1]] = value
            inside(mutant, ("provenance", "versions"))[name] = "1"
            inside(mutant, ("config", "pipeline", "stages", 0, "params"))[name] = name
            del mutant["digest"]
            mutant["config"]["seed"] = count = count + 1
            path = paths.record(key_of(mutant))
            try:
                path.parent.mkdir(parents=True)
                path.write_text(result_text(result_from_json(mutant)))
            except ValueError:  # half a character has no bytes
                path.write_text(json.dumps(mutant))
    judgements = list(judged_alike(paths).values())
    assert len(judgements) == count == 4 * len(STRANGE)
    assert judgements.count("whole") >= 4 * (len(STRANGE) - 2)


def test_what_was_set_aside_stands_among_the_damaged(paths: Paths) -> None:
    made = fabricate(paths, study_spec(tasks=1))
    key = made.results[0].config.key
    paths.record(key).write_text("{")
    assert find_or_set_aside(paths, key) is None
    [file] = ingest(paths).damaged
    assert file.path == paths.quarantined()[0]
    assert key in file.reason
    assert "which runs again" in file.reason


def test_a_changed_byte_is_noticed(paths: Paths) -> None:
    made = fabricate(paths, study_spec(tasks=1))
    result: TrialResult = next(result for result in made.results if result.target)
    raw = result_text(result).encode()
    assert is_intact(result.config.key, raw)
    assert not is_intact("0" * 20, raw)
    kept = [i for i in range(0, len(raw), 7) if is_intact(result.config.key, raw[:i] + b"~" + raw[i + 1 :])]
    assert kept == []


def test_member_lines_are_judged_alike(paths: Paths) -> None:
    made = fabricate(paths, study_spec(tasks=1))
    line: Json = dict(made.members[0])
    lines = []
    for name in line:
        for value in ("drop", *VALUES[:-2]):
            changed = {other: own for other, own in line.items() if other != name or value != "drop"}
            lines.append(changed if value == "drop" else changed | {name: value})
    lines.append(line | {"extra": 1})
    for index, own in enumerate(lines):
        own |= {"number": index} if own.get("number") == line["number"] else {}
        study = paths.study(f"s{index:03}")
        study.folder.mkdir(parents=True)
        study.members.write_text(json.dumps(own) + "\n")
    summary = ingest(paths)

    def is_whole(study: str) -> bool:
        try:
            return bool(read_members(paths, study))
        except StorageError:
            return False

    with connect(paths) as database:
        stored = {study for (study,) in database.execute("SELECT DISTINCT study FROM members").fetchall()}
    believed = {study.name for study in paths.studies() if is_whole(study.name)}
    assert stored == believed
    assert {file.path.parent.name for file in summary.damaged} == {s.name for s in paths.studies()} - believed
    assert len(lines) > 100 > len(believed) > 10

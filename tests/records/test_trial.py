"""Records: keys that name what determines the outcome, files that are whole or absent."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import StorageError
from harness.files import write_atomically
from harness.records.codec import decode, field_types, to_json
from harness.records.paths import Paths
from harness.records.results import find_result, iterate_results, read_result, write_result
from harness.records.trial import (
    CostRecord,
    CurvePoint,
    Evaluation,
    ModelRef,
    Pipeline,
    Score,
    Stage,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
    derive_seed,
    result_from_json,
)

STAGE = Stage(method="some_method", params={"learning_rate": 1e-3, "rank": 8})
CONFIG = TrialConfig(
    pipeline=Pipeline(ModelRef("base", "abc"), (STAGE,)),
    task=TaskRef("task", "def"),
    steps=10,
    evaluation=Evaluation(off_target=(TaskRef("old", "x"),)),
)
RESULT = TrialResult(
    config=CONFIG,
    status=TrialStatus.COMPLETE,
    scores=(
        Score(
            task="task",
            split="validation",
            metric="acc",
            value=0.5,
            stderr=0.01,
            n=100,
            higher_is_better=True,
            comparability="key",
        ),
        Score(
            task="old",
            split="validation",
            metric="acc",
            value=0.4,
            stderr=None,
            n=9,
            higher_is_better=True,
            comparability="k2",
        ),
    ),
    curve=(CurvePoint(fraction=1.0, step=10, train_seconds=1.5, tokens=320, loss=2.0, score=0.5),),
    cost=CostRecord(seconds={"train": 1.5, "load": 0.5}, tokens=320),
)

scalars = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
configs = st.builds(
    TrialConfig,
    pipeline=st.builds(
        Pipeline,
        st.builds(ModelRef, st.text(), st.text()),
        st.lists(
            st.builds(Stage, method=st.text(), params=st.dictionaries(st.text(), scalars)), min_size=1, max_size=3
        ).map(tuple),
    ),
    task=st.builds(TaskRef, st.text(), st.text()),
    steps=st.integers(0, 10**6),
    fidelity=st.floats(0.01, 1),
    seed=st.integers(0, 2**31),
)


@given(configs)
def test_a_configuration_survives_json_with_its_key(config):
    again = decode(TrialConfig, json.loads(json.dumps(to_json(config))))
    assert again == config
    assert again.key == config.key


def test_the_key_does_not_depend_on_the_order_of_parameters():
    swapped = replace(STAGE, params=dict(reversed(STAGE.params.items())))
    assert replace(CONFIG, pipeline=replace(CONFIG.pipeline, stages=(swapped,))).key == CONFIG.key


@pytest.mark.parametrize("field", list(field_types(TrialConfig)))
def test_every_field_of_a_configuration_changes_the_key(field):
    other = {
        "pipeline": Pipeline(ModelRef("base", "other"), (STAGE,)),
        "task": TaskRef("task", "other"),
        "steps": 11,
        "fidelity": 0.5,
        "seed": 1,
        "evaluation": Evaluation("test"),
    }
    assert replace(CONFIG, **{field: other[field]}).key != CONFIG.key


def test_the_key_is_the_documented_hash():
    import hashlib

    text = json.dumps(to_json(CONFIG), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert CONFIG.key == hashlib.sha256(text.encode()).hexdigest()[:20]


def test_keys_are_those_of_version_1():
    """Both were computed by the first version of the harness; whatever is added since, they stay."""
    stage = Stage(
        method="some_method",
        objective="dpo",
        retention="replay",
        params={"learning_rate": 1e-5, "rank": 8, "flag": True, "names": 'ä"x'},
        data="other",
        share=0.25,
        data_fingerprint="ff",
    )
    every_field = TrialConfig(
        pipeline=Pipeline(ModelRef("base", "abc", "corp"), (stage,)),
        task=TaskRef("task", "def"),
        steps=10,
        fidelity=1 / 3,
        seed=3,
        evaluation=Evaluation("test", 100, (TaskRef("old", "x"),), (0.25, 1.0)),
    )
    assert every_field.key == "230e3a7cc14d28853113"
    plain = Pipeline(ModelRef("base", "abc"), (Stage(method="lora"),))
    assert TrialConfig(pipeline=plain, task=TaskRef("task", "def"), steps=10).key == "4509a930b9a41f12a27e"


def test_seeds_come_from_names():
    assert derive_seed(0, "confirm", 1) == derive_seed(0, "confirm", 1)
    assert derive_seed(0, "confirm", 1) != derive_seed(0, "confirm", 2)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert all(0 <= derive_seed(i) < 2**31 for i in range(1000))


def test_a_record_survives_its_file(tmp_path):
    paths = Paths(tmp_path)
    assert read_result(write_result(paths, RESULT)) == RESULT
    assert find_result(paths, CONFIG.key) == RESULT
    assert RESULT.target == RESULT.scores[0]
    assert RESULT.cost.total_s == 2.0


def test_a_record_cut_short_counts_as_absent_and_is_named(tmp_path):
    paths = Paths(tmp_path)
    path = write_result(paths, RESULT)
    path.write_text(path.read_text()[:-40])
    assert find_result(paths, CONFIG.key) is None
    with pytest.raises(StorageError, match=r"not a whole record.*delete it and run"):
        read_result(path)
    assert [type(found) for _, found in iterate_results(paths)] == [StorageError]


def test_a_newer_schema_is_refused(tmp_path):
    data = to_json(RESULT) | {"schema_version": 99}
    with pytest.raises(StorageError, match="99: update harness"):
        result_from_json(data)


def test_non_finite_numbers_are_stored_as_absent(tmp_path):
    paths = Paths(tmp_path)
    curve = (CurvePoint(fraction=1.0, step=10, train_seconds=1.5, tokens=320, loss=float("inf"), score=None),)
    assert read_result(write_result(paths, replace(RESULT, curve=curve))).curve[0].loss is None


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path):
    """The file-size limit of the process stands in for a full disk: the kernel refuses the same write."""
    target = tmp_path / "record.json"
    target.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from harness.files import write_atomically\n"
        "from harness.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(Path(sys.argv[1]), 'x' * 100_000)\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert "free space" in done.stdout
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_an_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", "x")


@pytest.mark.parametrize(
    ("steps", "shares", "fidelity", "full", "stops"),
    [
        (9, (1.0,), 1.0, 9, [9]),
        (9, (1.0,), 1 / 3, 9, [3]),
        (9, (1.0,), 0.01, 9, [1]),  # a rung trains at least once
        (0, (1.0,), 1.0, 0, [0]),
        (10, (0.3, 0.7), 1.0, 10, [3, 7]),
        (10, (0.3, 0.7), 0.5, 10, [2, 4]),  # halves of 3 and 7 are 1.5 and 3.5; Python rounds both to even
        (7, (0.5, 0.5), 1.0, 8, [4, 4]),  # 3.5 twice
        (3, (0.9, 0.1), 1.0, 3, [3, 0]),  # a stage may be too short to train
    ],
)
def test_each_stage_has_its_share_and_stops_at_the_fidelity(steps, shares, fidelity, full, stops):
    stages = tuple(Stage(method="none", share=share) for share in shares)
    pipeline = Pipeline(ModelRef("m", "r"), stages)
    config = TrialConfig(pipeline=pipeline, task=TaskRef("t", "f"), steps=steps, fidelity=fidelity)
    assert config.pipeline_steps == full
    assert [config.stage_stop(stage) for stage in stages] == stops
    assert config.steps_run == sum(stops)

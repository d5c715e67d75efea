from __future__ import annotations

import json
import math

import numpy as np
import pytest

from harness.database.ingest import connect, ingest
from harness.metrics.base import SHARE
from harness.models.facts import model_features
from harness.recommend.features import Candidate, Encoder, describe, known_facts, observations, room
from harness.records.codec import fingerprint
from harness.records.paths import Paths
from harness.records.scale import Scale
from harness.records.trial import Stage
from harness.tasks.facts import task_features
from tests.fabricate import fabricate, write_signed


def seen(paths: Paths) -> dict[str, dict[str, float | str]]:
    ingest(paths)
    with connect(paths) as database:
        return {o.key: describe(o.candidate) for o in observations(paths, database)}


def test_no_feature_looks_at_what_came_out(paths: Paths) -> None:
    """Scores, curve, cost, notes and provenance of every tuned trial are changed; no feature follows."""
    made = fabricate(paths)
    before = seen(paths)
    for result in made.results:
        if not result.config.steps:
            continue
        path = paths.record(result.config.key)
        record = json.loads(path.read_text())
        for score in record["scores"]:
            score |= {"value": score["value"] * 0.37 + 0.11, "stderr": 0.4}
        for point in record["curve"]:
            point |= {"score": 0.123, "loss": 9.0, "train_seconds": 1e4}
        record["cost"] |= {"seconds": {"train": 12345.0}, "peak_memory_bytes": 1, "trainable_params": 7, "tokens": 3}
        record["provenance"] |= {"hardware": "another"}
        record["notes"] = ["changed"]
        write_signed(path, record)
    after = seen(paths)
    assert len(before) > 40
    assert after == before


def test_features_say_what_is_known(paths: Paths) -> None:
    stage = Stage(method="lora", params={"learning_rate": 1e-3, "batch_size": 8, "flag": True, "schedule": "cosine"})
    candidate = Candidate(
        stages=(stage,),
        steps=100,
        fidelity=0.5,
        model={"log_parameters": 6.0},
        task={"chance": 0.5, "domain": "x"},
        base_score=0.6,
        scale=SHARE,
    )
    features = describe(candidate)
    assert features["stage0.param.learning_rate"] == pytest.approx(-3)  # its space is logarithmic
    assert features["stage0.log_examples"] == pytest.approx(math.log10(400))  # 100 steps x 1/2 x 8 rows
    assert features["task.room"] == pytest.approx(0.4)
    assert features["task.above_chance"] == pytest.approx(0.1)
    assert (features["stage0.method"], features["stage0.param.schedule"], features["task.domain"]) == (
        "lora",
        "cosine",
        "x",
    )


def test_room_by_hand() -> None:
    assert room(0.7, True, SHARE) == pytest.approx(0.3)
    assert room(0.99, True, SHARE) == 0.05
    assert room(8.0, False, Scale(low=0.0)) == 8.0
    assert room(8.0, False, Scale(low=1.0)) == 7.0  # no perplexity is below 1
    assert room(35.0, True, Scale(low=0.0, high=100.0)) == 65.0
    assert room(99.0, True, Scale(low=0.0, high=100.0)) == 5.0  # a twentieth of the scale
    assert room(35.0, True, Scale(low=0.0)) is None  # nobody knows how much there is to gain
    assert room(0.5, False, Scale()) is None


def test_encoder_one_hot_and_unknown() -> None:
    encoder = Encoder.fit([{"a": 1.0, "m": "x"}, {"a": 3.0, "m": "y"}, {"m": "y"}, {"a": 2.0, "m": "x", "same": 1.0}])
    assert encoder.columns == ("a", "a=", "m=x", "m=y", "same=")  # `name=` marks what is not known
    rows = encoder.transform([{"a": 5.0, "m": "x"}, {"m": "unseen"}])
    assert rows.tolist() == [[5.0, 0.0, 1.0, 0.0, 1.0], [2.0, 1.0, 0.0, 0.0, 1.0]]  # 2 is the median
    distances = encoder.distances(rows, rows[0])
    assert distances[0] == 0.0
    assert distances[1] > 1.0
    assert np.isfinite(distances).all()


def test_damaged_facts_tell_nothing(paths: Paths) -> None:
    fabricate(paths)
    paths.study("made_up").facts("tasks").write_text('{"task_0": ')
    assert known_facts(paths, "tasks") == {}
    assert set(known_facts(paths, "models")) == {"tiny-1m"}
    assert seen(paths)  # still usable
    wrong = {"output_type": 5, "metric": ["acc"], "log_rows": 10**30, "log_prompt_chars": math.nan, "chance": "x"}
    paths.study("made_up").facts("tasks").write_text(json.dumps({"task_0": wrong | {"choices": 2}}))
    assert known_facts(paths, "tasks") == {"task_0": {"choices": 2}}
    assert seen(paths)


def test_facts_of_the_embedded_task_and_model() -> None:
    from pathlib import Path

    from harness.models.base_model import embedded_models, resolve_model
    from harness.tasks.task import find_task, task_folders

    root = Path(__file__).parent.parent.parent
    facts = task_features(find_task("my_task", task_folders(root)))
    assert facts["output_type"] == "multiple_choice"
    assert facts["chance"] == 0.25
    assert 0 < float(facts["log_completion_chars"]) < float(facts["log_prompt_chars"]) < 4
    model = model_features(resolve_model(embedded_models()[0], None))
    assert 5 < float(model["log_parameters"]) < 7


def test_stages_come_back_as_they_were_recorded(paths: Paths) -> None:
    made = fabricate(paths)
    old = next(r for r in made.results if r.target and r.config.steps)
    record = json.loads(paths.record(old.config.key).read_text())
    for stage in record["config"]["pipeline"]["stages"]:
        del stage["data_fingerprint"]  # from before the field existed
    key = fingerprint(record["config"])
    paths.record(old.config.key).unlink()
    write_signed(paths.record(key), record)
    ingest(paths)
    with connect(paths) as database:
        seen = {o.key: o for o in observations(paths, database)}
    for result in made.results:
        if result.target and result.config.steps:
            assert seen[key if result is old else result.config.key].candidate.stages == result.config.pipeline.stages

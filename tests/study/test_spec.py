"""Study files: what is accepted, and one sentence with the right remedy for everything else."""

from pathlib import Path

import pytest
import yaml

from harness.errors import SpecError
from harness.files import expand
from harness.records.trial import ModelRef
from harness.study.family import resolved_families
from harness.study.load import load_study, study_json_schema

GOOD = {
    "name": "s",
    "question": "q",
    "base_models": ["tiny-1m"],
    "tasks": ["t"],
    "families": {"a": {"method": "lora"}},
    "budget": {"trials": 2, "steps": 10},
}


@pytest.fixture
def study(tmp_path):
    def write(**changes):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (GOOD | changes).items() if v is not None}))
        return path

    return write


def test_defaults_are_filled_in_and_short_forms_are_expanded(study):
    loaded = load_study(study())
    assert loaded.base_models[0].name == "tiny-1m"
    assert loaded.confirm.seeds == 5
    stage = resolved_families(loaded)["a"].pipeline(ModelRef("tiny-1m", "r"), {}).stages[0]
    assert (stage.method, stage.objective, stage.retention, stage.curation, stage.share) == (
        "lora",
        "sft",
        "none",
        "as_is",
        1.0,
    )
    assert stage.params["batch_size"] == 16


def test_stages_share_the_budget_and_their_parameters_are_numbered(study):
    stages = [{"method": "full", "objective": "continued_pretraining", "data": "other"}, {"method": "lora"}]
    family = resolved_families(load_study(study(families={"two": {"stages": stages}})))["two"]
    assert [stage.share for stage in family.stages] == [0.5, 0.5]
    assert {"0.learning_rate", "1.learning_rate"} <= set(family.space)
    pipeline = family.pipeline(ModelRef("m", "r"), {"1.learning_rate": 1e-3})
    assert pipeline.stages[1].params["learning_rate"] == 1e-3
    assert pipeline.stages[0].data == "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tsks": ["t"]}, "key must be one of those known, but got 'tsks': did you mean 'tasks'"),
        ({"families": {"a": {"method": "lorra"}}}, "family a: method must be .* 'lorra': did you mean 'lora'"),
        ({"families": {"a": {"method": "lora", "objective": "stf"}}}, "did you mean 'sft'"),
        ({"families": {"a": {"method": "lora", "params": {"rnak": 4}}}}, "did you mean 'rank'"),
        (
            {"families": {"a": {"method": "lora", "params": {"learning_rate": 5}}}},
            "learning_rate must lie in .* but got 5",
        ),
        ({"families": {"a": {"method": "lora", "params": {"rank": {"low": 2, True: 4}}}}}, "key must be .* 'True'"),
        ({"families": {"a": {"method": "lora", "prams": {}}}}, "did you mean 'params'"),
        ({"families": {}}, "at least 1"),
        ({"tasks": None}, "tasks is required"),
        ({"budget": {"trials": 2, "gpu_seconds": 5, "steps": 1}}, "exactly one of trials and gpu_seconds"),
        ({"budget": {"trials": 2}}, "exactly one of steps, epochs and examples"),
        ({"budget": {"trials": 0, "steps": 10}}, "budget.trials: .*greater than or equal to 1, but got 0"),
        ({"search": {"sampler": "tpee"}}, "sampler must be one of those known, but got 'tpee': did you mean 'tpe'"),
        ({"search": {"fractions": [1.0, 0.5]}}, r"fractions must rise"),
        ({"confirm": {"seeds": 1}}, "greater than or equal to 2, but got 1"),
        ({"name": "../x"}, "name must be the file's, s, or be left out, but is '../x'"),
        (
            {"budget": {"trials": 2, "steps": 10**30}},
            "budget.steps: .*less than or equal to 1000000000, but got 10000000",
        ),
        ({"seed": 2**40}, "seed: .*less than 4294967296"),
        ({"confirm": {"seeds": 10**6}}, "less than or equal to 100000"),
        ({"budget": {"trials": 2, "epochs": float("inf")}}, "budget.epochs: .*finite number"),
        ({"families": {"a": {"method": "lora", "params": {"learning_rate": None}}}}, "must lie in .*, but got None"),
        ({"families": {"a": {"method": "lora", "params": {"batch_size": 10**400}}}}, "batch_size must lie in"),
        (
            {"families": {"a": {"stages": [{"method": "lora", "share": 0.5}, {"method": "full"}]}}},
            "every stage a share, or none",
        ),
        ({"families": {"a": {"stages": [{"method": "lora", "share": 0.5}]}}}, "shares must sum to 1"),
    ],
)
def test_mistakes_get_one_sentence(study, change, message):
    with pytest.raises(SpecError, match=message) as caught:
        load_study(study(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [("a: [", "valid YAML"), ("- 1", "mapping"), ("", "mapping")])
def test_a_file_that_is_no_mapping(tmp_path, content, message):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(SpecError, match=message):
        load_study(path)


def test_a_study_that_does_not_say_its_name_has_its_files(study):
    assert load_study(study(name=None)) == load_study(study())


def test_two_families_of_one_name_are_refused_with_both_lines(study):
    path = study()
    lines = path.read_text().splitlines()
    families = lines.index("families:")
    again = next(line for line in lines[families + 1 :] if line.startswith("  ") and line.endswith(":"))
    path.write_text("\n".join([*lines[: families + 1], again, "    method: full", *lines[families + 1 :]]))
    first, second = families + 2, families + 4
    with pytest.raises(
        SpecError, match=f"line {second}, .* the key {again.strip(' :')} stands on line {first} already"
    ):
        load_study(path)


@pytest.mark.parametrize("value", ["1e-4", "1E-4", "1.e-4", "0.0001", ".0001", "1.0e-4"])
def test_a_number_may_be_written_in_any_way(study, value):
    """The study of shared/cases: YAML 1.1 takes a number without a decimal point for a text."""
    path = study()
    path.write_text(
        path.read_text().replace(
            "families:", f"families:\n  other: {{method: lora, params: {{learning_rate: {value}}}}}"
        )
    )
    family = resolved_families(load_study(path))["other"]
    assert family.stages_at({})[0].params["learning_rate"] == 1e-4


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match="must be a readable file"):
        load_study(tmp_path / "none.yaml")


def test_variables_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "/data")
    assert expand("${SOME_FOLDER}/x", "task t") == "/data/x"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(SpecError, match=r"must set SOME_FOLDER.*export SOME_FOLDER"):
        expand("${SOME_FOLDER}/x", "task t")


def test_two_studies_differ_in_their_fingerprint(study):
    first = load_study(study()).fingerprint
    assert load_study(study()).fingerprint == first
    assert load_study(study(seed=1)).fingerprint != first


def test_the_schema_describes_every_key():
    schema = study_json_schema()
    assert set(GOOD) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_study_is_valid(path):
    assert load_study(path).name == path.stem

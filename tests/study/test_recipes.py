"""Recipes: every file loads, plans and trains, and a family may change what it says it may."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from harness.driver.experiment import Site
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.records.paths import Paths
from harness.records.trial import Pipeline
from harness.study.family import resolved_families
from harness.study.load import load_study
from harness.study.recipes import expanded, recipes
from harness.trial.group import Workspace, run_trial
from tests.tiny import config

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = sorted(recipes(STUDIES))


@pytest.fixture
def study(world, tmp_path):
    """Writes a study with one family beside our recipes, and reads it."""
    shutil.copytree(STUDIES / "recipes", tmp_path / "recipes")

    def build(family, tasks=("manners",)):
        content = {
            "name": "mine",
            "question": "Does it?",
            "base_models": [str(world.llama)],
            "tasks": list(tasks),
            "families": {"one": family},
            "budget": {"trials": 1, "steps": 6},
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        return load_study(tmp_path / "mine.yaml")

    return build


def test_there_are_recipes():
    assert {"sft_then_dpo", "rlhf", "generator_evaluator_generator", "misleading_queries"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name):
    recipe = recipes(STUDIES)[name]
    assert 0 < len(recipe.summary) <= 100
    assert "arXiv" in recipe.paper
    assert recipe.stages


@pytest.mark.parametrize("name", NAMES)
def test_it_plans_and_trains(study, world, tmp_path, name):
    """On a task with preferences and choices, which fits all of them; two steps or so of each stage."""
    found = study({"recipe": name})
    experiment = resolve(found, Site(paths=Paths(tmp_path), task_folders=(world.tasks,), device="cpu"))
    family = experiment.families["one"]
    assert len(family.stages) == len(recipes(STUDIES)[name].stages)
    pipeline = family.pipeline(experiment.models[0].ref, {})
    small = tuple(replace(stage, params={**stage.params, "batch_size": 2}) for stage in pipeline.stages)
    trial = replace(
        config(world, task="manners", steps=9, fractions=(1.0,)), pipeline=Pipeline(pipeline.base_model, small)
    )
    result = run_trial(trial, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    assert result.status == "complete", result.reason
    assert result.target is not None
    assert len(result.provenance.effective.stages) == len(small)
    assert sum(stage.steps for stage in result.provenance.effective.stages) == result.curve[-1].step


def test_shares_of_a_recipe_sum_to_one(study):
    for name in NAMES:
        family = resolved_families(study({"recipe": name}))["one"]
        assert sum(stage.share for stage in family.stages) == pytest.approx(1, abs=1e-5)


def test_a_family_changes_parameters_and_data_by_stage(study):
    family = study(
        {"recipe": "sft_then_dpo", "params": {"1.beta": 0.3, "0.rank": {"low": 2, "high": 4}}, "data": {0: "text"}}
    )
    first, second = resolved_families(family)["one"].stages
    assert (first.spec.data, second.spec.data) == ("text", None)
    assert (second.space["beta"].default, second.space["beta"].searched) == (0.3, False)
    assert (first.space["rank"].low, first.space["rank"].high) == (2, 4)
    assert first.space["rank"] != second.space["rank"]
    again = expanded({"recipe": "sft_then_dpo"}, STUDIES)["stages"]
    assert [stage["params"] for stage in again] == [{}, {}]  # the recipe itself is as it was


WRONG = [
    ({"recipe": "sft_then_dop"}, "did you mean 'sft_then_dpo'"),
    ({"recipe": "rlhf", "param": {}}, "did you mean 'params'"),
    ({"recipe": "rlhf", "params": {"rank": 4}}, "params must be named by stage, 0. to 2."),
    ({"recipe": "rlhf", "params": {"3.rank": 4}}, "but got '3.rank'"),
    ({"recipe": "rlhf", "params": {"1.": 4}}, "but got '1.'"),
    ({"recipe": "rlhf", "params": {"0.beta": 0.1}}, "parameter must be one of those known, but got 'beta'"),
    ({"recipe": "rlhf", "data": {3: "text"}}, "data must be named by stage, 0 to 2, but got 3"),
    ({"recipe": "rlhf", "data": {"first": "text"}}, "but got 'first'"),
]


@pytest.mark.parametrize(("family", "message"), WRONG)
def test_what_a_family_gets_wrong(study, family, message):
    with pytest.raises(SpecError, match=message):
        study(family)


@pytest.mark.parametrize(
    "content", ["stages: []\nsummary: a\npaper: b", "summary: a\npaper: b", "- 1", "a: [", "summary: a\nstages: [{}]"]
)
def test_a_file_that_is_no_recipe(tmp_path, content):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(content)
    with pytest.raises(
        SpecError, match=r"mine.yaml must (hold summary, paper and a list of stages|hold a mapping|be valid YAML)"
    ):
        recipes(tmp_path)


def test_preferences_need_a_task_with_preferences(study, world, tmp_path):
    site = Site(paths=Paths(tmp_path), task_folders=(world.tasks,), device="cpu")
    for name in ("sft_then_dpo", "rlhf", "continued_pretraining_then_sft_then_preference"):
        with pytest.raises(SpecError, match="needs rejected answers"):
            resolve(study({"recipe": name}, tasks=("colour",)), site)

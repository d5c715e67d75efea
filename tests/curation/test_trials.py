"""Every curation in a whole trial: planned, run, recorded with its notes."""

from dataclasses import replace

import pytest

from harness.plugins import names
from harness.records.paths import Paths
from harness.trial.group import Workspace, run_trial
from tests.tiny import config, stage

WRITER = {"generator": "tiny-1m", "new_tokens": 24}
SETTINGS = {
    "mixing": {"pools": "echo=2,text"},
    "counterfactual_pairs": {"objective": "dpo", "learning_rate": 1e-4, "style_tokens": 8},
    "synthetic_key_value": {"kv_keys": 1, "kv_digits": 2},
    "token_cleaning": {"cleaning_rounds": 2},
    "perplexity_mask": {"token_perplexity": 260.0},
    "first_tokens": {"prefix_tokens": 2},
    "subset": {"subset_by": "diverse"},
    "self_instruct": WRITER | {"new_rows": 4},
    "evol_instruct": WRITER,
    "explanation_consistency": WRITER | {"shared_words": 0.0},
}


@pytest.mark.parametrize("name", names("curation"))
def test_it_runs(world, tmp_path, name):
    """On a task of choices. A model of a million parameters does not write in self-instruct's form, and the trial says so."""
    plan = config(world, stage("lora", curation=name, **SETTINGS.get(name, {})), steps=3, fractions=(1.0,))
    result = run_trial(plan, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    if name == "self_instruct":
        assert result.status == "crashed"
        assert result.reason.startswith("self-instruct must keep at least one generated row, but dropped all")
        return
    assert result.status == "complete", result.reason
    assert result.cost.supervised_tokens > 0
    silent = {"as_is", "negative_examples", "answer_judgement", "misleading_queries"}  # nothing depends on the rows
    assert result.notes or name in silent


def test_a_curation_that_cannot_work_is_refused_before_anything_is_spent(world, tmp_path):
    """By `refusal`, as planning does it."""
    workspace = Workspace(Paths(tmp_path), (world.tasks,), device="cpu")
    wrong = [
        (stage("lora", curation="counterfactual_pairs"), "colour", "which its objective does not use"),
        (stage("lora", curation="mixing"), "colour", "name them in pools"),
        (stage("lora", curation="negative_examples"), "text", "the task is plain text"),
        (stage("lora", "dpo", curation="token_cleaning", learning_rate=1e-4), "manners", "no loss on single tokens"),
        (stage("lora", "continued_pretraining", curation="first_tokens"), "colour", "joins rows"),
    ]
    for one, task, message in wrong:
        with pytest.raises(Exception, match=message):
            run_trial(config(world, one, task=task), workspace)


def test_two_trials_of_a_seed_are_the_same(world, tmp_path):
    """Also where rows are generated, once with and once without what the first left in the cache."""
    one = stage("lora", "dpo", curation="counterfactual_pairs", learning_rate=1e-4, style_tokens=6)
    plan = config(world, one, steps=3, fractions=(1.0,))
    losses = []
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        result = run_trial(plan, Workspace(Paths(folder), (world.tasks,), device="cpu"))
        losses.append((result.curve[-1].loss, result.target.value))
    assert losses[0] == losses[1] == losses[2]
    other = run_trial(replace(plan, seed=7), Workspace(Paths(tmp_path / "a"), (world.tasks,), device="cpu"))
    assert other.curve[-1].loss != losses[0][0]

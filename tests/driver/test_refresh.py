"""Which records `--refresh` has made anew: those that another version or their site may be to blame for."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import __version__, plugins
from harness.driver.known_records import doubtful
from harness.plugins import code_hash, names, use_project
from harness.records.lost_work import read_lost
from harness.records.trial import ModelRef, Pipeline, Provenance, Stage, TaskRef, TrialConfig, TrialResult, TrialStatus
from harness.trial.provenance import plugin_code
from tests.driver import standin

CONFIG = TrialConfig(
    pipeline=Pipeline(ModelRef("base", "r"), (Stage(method="lora"),)), task=TaskRef("task", "f"), steps=10
)


def record(status="complete", harness=__version__, **versions):
    return TrialResult(
        config=CONFIG, status=TrialStatus(status), provenance=Provenance(harness_version=harness, versions=versions)
    )


@pytest.mark.parametrize(
    ("status", "again"),
    [
        ("complete", False),
        ("pruned", False),
        ("diverged", False),  # its own doing: it would diverge again
        ("out_of_memory", True),
        ("timed_out", True),
        ("crashed", True),
        ("preempted", True),
    ],
)
def test_a_trial_runs_again_where_its_site_may_be_to_blame(status, again):
    assert doubtful(record(status)) is again


def test_a_record_of_other_versions_is_made_anew():
    assert doubtful(record(harness="0.0.1"))
    assert doubtful(record(numpy="0.1"))
    assert not doubtful(record(numpy=version("numpy")))
    assert not doubtful(record(no_such_library="1"))  # nothing here says otherwise


@pytest.mark.parametrize(
    ("recorded", "again"),
    [
        (None, False),  # a record of before: unknown, not changed
        ({"methods/lora": code_hash("methods", "lora")}, False),
        ({"methods/lora": code_hash("methods", "lora"), "objectives/sft": "0" * 12}, True),
        ({"methods/no_such_method": "0" * 12}, True),
    ],
)
def test_a_record_of_other_plugin_code_is_made_anew(recorded, again):
    made = record()
    assert doubtful(replace(made, provenance=replace(made.provenance, plugins=recorded))) is again


def test_a_record_names_the_code_of_the_choices_that_trained_it_and_of_its_metric():
    choices = {"methods/lora", "objectives/sft", "retention/none", "curation/as_is"}
    assert set(plugin_code(CONFIG, ())) == choices
    assert plugin_code(CONFIG, ())["methods/lora"] == code_hash("methods", "lora")
    assert set(plugin_code(replace(CONFIG, steps=0), ())) == {"methods/lora"}
    own = [SimpleNamespace(metric=name) for name in ("acc", names("metrics")[0])]
    assert set(plugin_code(CONFIG, own)) == choices | {f"metrics/{names('metrics')[0]}"}


@pytest.fixture
def project(tmp_path):
    """A project whose method trains nothing, and a function that edits it and begins a new process, as it were."""

    def edit(comment):
        text = (Path(plugins.__file__).parent / "methods" / "none.py").read_text()
        path = tmp_path / "plugins" / "methods" / "mine.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n# {comment}")
        use_project(tmp_path)

    edit("as it was")
    yield edit
    use_project(tmp_path / "nothing")


def test_a_changed_plugin_is_named_once_and_refreshed_on_demand(project, tmp_path, caplog):
    families = {"mine": {"method": "mine", "params": {"weight_decay": {"low": 0.0, "high": 0.1}}}}
    spec, site = standin.study(families=families), standin.site(tmp_path)
    assert standin.run("search", spec, site).notes == ()
    assert standin.run("search", spec, site).notes == ()
    project("edited")
    caplog.clear()
    again = standin.run("search", spec, site)
    assert again.ran == 0
    assert [note.split(" is not")[0] for note in again.notes] == ["the code of methods/mine"]
    assert caplog.messages.count(again.notes[0]) == 1
    confirmed = standin.run("confirm", spec, site)  # chooses finalists by records of the search
    assert confirmed.notes == again.notes
    refreshed = standin.run("search", spec, replace(site, refresh=True))
    assert (refreshed.ran, refreshed.notes) == (6, ())
    assert standin.run("search", spec, site).notes == ()


def test_what_a_record_cost_that_is_made_anew_stays_on_the_bill(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_RAN", str(tmp_path / "ran"))
    spec, site = standin.study(tasks=["one"], budget={"trials": 1, "steps": 9}), standin.site(tmp_path)
    ran = standin.run("search", spec, site).ran
    files = site.paths.study(spec.name)
    monkeypatch.setattr("harness.driver.known_records.doubtful", lambda result: True)
    assert standin.run("search", spec, replace(site, refresh=True)).ran == ran
    lost = read_lost(files.jobs)
    assert [(one.seconds, one.blamed) for one in lost] == [(1.0, False)] * ran
    assert lost[0].reason.startswith("a record that said complete")

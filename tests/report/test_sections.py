"""Every section, whatever its file, on every kind of study."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.plugins import code_hash, load, names
from harness.recommend.backtest import backtest
from harness.records.paths import Paths
from harness.records.trial import Stage
from harness.report.data import StudyData, load_study_data
from harness.report.markup import Html
from harness.report.page import FOLDER
from harness.report.recipe import settings
from harness.report.study_files import Forecasts
from tests.fabricate import fabricate, study_spec
from tests.report.studies import (
    failing_world,
    keep_members,
    large_spec,
    paths_in,
    write_large,
    write_small,
    write_walked,
)

SECTIONS = names(FOLDER)


def empty(folder: Path) -> Paths:
    paths = write_small(folder)
    keep_members(paths, "made_up", lambda member: False)
    return paths


def only_base(folder: Path) -> Paths:
    paths = write_small(folder)
    keep_members(paths, "made_up", lambda member: member["role"] == "base")
    return paths


def only_failures(folder: Path) -> Paths:
    paths = write_small(folder, failing_world())
    keep_members(paths, "made_up", lambda member: member["role"] != "base")
    return paths


def not_run(folder: Path) -> Paths:
    paths = write_small(folder)
    for path in paths.trials.glob("*/*/record.json"):
        path.unlink()
    keep_members(paths, "made_up", lambda member: True)
    return paths


def normal(folder: Path) -> Paths:
    paths = write_walked(folder)
    backtest(paths)
    return paths


def three_sizes(folder: Path) -> Paths:
    return write_large(folder, large_spec(models=3, tasks=1, trials=2, finalists=2))


KINDS: dict[str, Callable[[Path], Paths]] = {
    kind.__name__: kind for kind in (empty, only_base, only_failures, not_run, normal, three_sizes)
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyData]:
    made = {name: kind(tmp_path_factory.mktemp(name)) for name, kind in KINDS.items()}
    return {name: load_study_data(paths, paths.studies()[0].name) for name, paths in made.items()}


class Balance(HTMLParser):
    """Checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_shows_something_or_says_why_not(name: str, kind: str, studies: dict[str, StudyData]) -> None:
    section = load(FOLDER, name)
    assert section.nothing.endswith(".")
    content = section().render(studies[kind])
    if content is None:
        return
    assert isinstance(content, Html), "plain text would not be escaped"
    balance = Balance()
    balance.feed(content)
    assert balance.open == []
    assert set(balance.headings) <= {3}, "the section's own heading is level 2"
    assert content.count("<svg") == content.count('role="img"')
    for number in ("nan", "inf ", "None", "NaT"):
        assert f">{number}" not in content


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_has_its_own_place_and_is_shown_for_a_finished_study(
    name: str, studies: dict[str, StudyData]
) -> None:
    section = load(FOLDER, name)
    others = [load(FOLDER, other) for other in SECTIONS if other != name]
    assert section.order not in [other.order for other in others]
    assert section.title not in [other.title for other in others]
    assert section().render(studies["normal"]), "a finished study has something for every section"


def shown(name: str, study: StudyData) -> str:
    return load(FOLDER, name)().render(study) or ""


def test_the_answer_of_a_study_that_was_not_confirmed_is_that_there_is_none(studies: dict[str, StudyData]) -> None:
    text = shown("answer", studies["only_base"])
    assert "No answer yet for task_0 on tiny-1m and task_1 on tiny-1m" in text
    assert "use <em>" not in text


def test_failures_are_listed_with_reason_number_and_cost(studies: dict[str, StudyData]) -> None:
    study = studies["only_failures"]
    text = shown("failures", study)
    # 2 tasks x 3 families x 4 trials, all of them diverged
    assert "24 of 24 trials ended without a score" in text
    assert "the loss became non-finite at step 20: lower learning_rate" in text
    assert "No trial failed" not in text


def test_scaling_says_what_is_missing_and_draws_three_sizes(studies: dict[str, StudyData]) -> None:
    assert "this study has 1. List 2 more under base_models" in shown("scaling", studies["normal"])
    # the fabricated models all record one million parameters: say so of three models of one size
    study = studies["three_sizes"]
    assert "this study has 1" in shown("scaling", study)
    sizes = {"tiny-1m": 10**6, "tiny-4m": 4 * 10**6, "tiny-16m": 16 * 10**6}
    trials = [replace(trial, total_params=sizes[trial.base_model]) for trial in study.trials]
    drawn = shown("scaling", replace(study, trials=trials))
    assert "3 sizes of base model" in drawn
    assert ">16,000,000<" in drawn


def test_versions_that_differ_inside_a_comparison_are_flagged(tmp_path: Path) -> None:
    from tests.report.studies import change_records

    paths = write_small(tmp_path)
    turn = iter(range(10_000))

    def change(record: dict[str, object]) -> None:
        if next(turn) % 2:
            record["provenance"]["versions"]["torch"] = "2.14.0"  # type: ignore[index]

    assert 'class="warning"' not in shown("provenance", load_study_data(paths, "made_up"))
    change_records(paths, change)
    text = shown("provenance", load_study_data(paths, "made_up"))
    assert 'class="warning"' in text
    assert "torch (2.13.0 and 2.14.0)" in text


def test_code_of_plugins_that_differs_or_has_changed_since_is_flagged(tmp_path: Path) -> None:
    from tests.report.studies import change_records

    paths, now = write_small(tmp_path), code_hash("methods", "lora")
    turn = iter(range(10_000))

    def change(record: dict[str, Any]) -> None:
        record["provenance"]["plugins"] = {"methods/lora": now if next(turn) % 2 else "0123456789ab"}

    change_records(paths, change)
    text = shown("provenance", load_study_data(paths, "made_up"))
    assert "the code of methods/lora is not what it was when some of these trials ran." in text
    assert f"code of methods/lora ({' and '.join(sorted(('0123456789ab', now)))})" in text
    change_records(paths, lambda record: record["provenance"].update(plugins={"methods/lora": now}))
    text = shown("provenance", load_study_data(paths, "made_up"))
    assert 'class="warning"' not in text
    assert now in text


def test_the_forecast_stands_beside_what_happened(small: Paths, tmp_path: Path) -> None:
    study = load_study_data(small, "made_up")
    assert "No forecast was kept" in shown("cost", study)
    searched = [trial for trial in study.ran if trial.role == "search"]
    lora = [trial.total_s for trial in searched if (trial.family, trial.status) == ("lora", "complete")]
    plan = {
        "steps": [{"step": "search", "trials": 24, "seconds": 2 * sum(trial.total_s for trial in searched)}],
        "families": {"lora": {"seconds": sum(lora) / len(lora), "peak_memory_bytes": 1e9, "basis": "formula"}},
    }
    text = shown("cost", replace(study, forecasts=Forecasts.of(plan)))
    assert '<td class="number">0.50</td>' in text  # took half of what was forecast
    assert '<td class="number">1.00</td>' in text
    assert "<td>formula</td>" in text


def test_the_way_between_base_and_tuned_weights_by_hand(tmp_path: Path) -> None:
    """Skills count on their own scales; a trial's final scores are those of the place it kept.

    Tuned, facts lost .9 - .5 and a token of the stories 1 - 5/90 of its probability, mean .672; kept, .025 and 1 - 5/7, mean .155.
    """
    from tests.report.studies import change_records

    def scores(record: dict[str, Any], task: float, facts: float, perplexity: float) -> list[dict[str, Any]]:
        values = (task, facts, perplexity)
        return [score | {"value": value} for score, value in zip(record["scores"], values, strict=True)]

    def change(record: dict[str, Any]) -> None:
        if record.get("path"):
            places = {0.0: (0.2, 0.9, 5.0), 0.5: (0.55, 0.85, 9.0), 1.0: (0.6, 0.5, 90.0)}
            record["path"] = [{"tuned_weight": w, "scores": scores(record, *v)} for w, v in places.items()]
            record["scores"] = scores(record, 0.5, 0.875, 7.0)
            record["config"]["pipeline"]["stages"][0]["params"]["tuned_weight"] = 0.25

    paths = write_walked(tmp_path)
    change_records(paths, change)
    study = load_study_data(paths, "made_up")
    text = shown("weight_path", study)
    # 2 tasks, 5 repetitions; the search's trials of a rate that diverged have no way
    cells = ["20.0 %", "60.0 %", "+67.2 points", "0.25", "50.0 %", "+15.5 points"]
    row = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    searched = [trial for trial in study.trials if (trial.role, trial.family) == ("search", "full_between")]
    complete = sum(trial.status == "complete" for trial in searched)
    assert complete > 0
    assert text.count(f"<td>full_between</td><td>repetition 0</td>{row}") == 2
    assert text.count(row) == 2 * 5 + complete
    assert text.count("<svg") == 2
    caption = re.search("Forgetting is the mean over [^;]*; points are hundredths", text)
    assert caption, re.findall("Forgetting is.{90}", text)
    assert {"facts", "stories_perplexity"} <= set(caption[0].replace(";", " ").split())


def test_studies_without_a_way_say_how_to_get_one(studies: dict[str, StudyData]) -> None:
    section = load(FOLDER, "weight_path")
    assert section().render(studies["three_sizes"]) is None
    assert "interpolation" in section.nothing
    # a way on which nothing but the task was scored shows no forgetting
    study = studies["normal"]
    assert section().render(replace(study, paths=[row for row in study.paths if row.is_target])) is None
    # more of a loss is lost, as a share of a token's probability; or in its own unit where it has no such share
    text = section().render(replace(study, paths=[row for row in study.paths if row.scored != "facts"])) or ""
    assert "Forgetting is measured on stories_perplexity; points" in text
    assert "mean forgetting (points)" in text
    unknown = [
        replace(row, metric="elo") if row.scored != row.task else row for row in study.paths if row.scored != "facts"
    ]
    assert "mean forgetting (elo)" in (section().render(replace(study, paths=unknown)) or "")


def test_pipelines_that_leave_much_of_the_base_are_named(tmp_path: Path) -> None:
    """One family left the experts of a mixture, the others nothing; what an old record does not say is not said."""
    from tests.report.studies import change_records

    def reached(reach: float | None, experts: float | None) -> str:
        def change(record: dict[str, Any]) -> None:
            (stage,) = record["config"]["pipeline"]["stages"] or [{"retention": "none"}]
            left = {"reach": reach, "reach_experts": experts}
            stages = [left if stage["retention"] == "replay" else {"reach": 1.0, "reach_experts": 1.0}]
            record["provenance"]["effective"]["stages"] = stages

        change_records(paths, change)
        return shown("answer", load_study_data(paths, "made_up"))

    paths = paths_in(tmp_path)
    fabricate(paths, study_spec(tasks=1, trials=2, seeds=2))
    text = reached(0.31, 0.0)
    assert "<p>full_replay reached 31% of the base&#x27;s weights (experts were left as they are).</p>" in text
    assert "full_replay reached 31% of the base&#x27;s weights.</p>" in reached(0.31, None)
    assert "full_replay reached none, with what trains beside them, of the base" in reached(0.0, None)
    assert "reached" not in reached(0.95, None)
    assert "reached" not in reached(None, None)


def test_an_empty_setting_is_not_named() -> None:
    params = {"learning_rate": 3e-4, "replay_from": "", "replay_share": 0.25}
    assert (
        settings([Stage(method="full", retention="replay", params=params)]) == "learning rate 0.0003, replay share 0.25"
    )

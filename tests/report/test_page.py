from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from harness.database.ingest import ingest
from harness.errors import SpecError, StorageError
from harness.records.paths import Paths
from harness.report import page
from harness.report.data import load_study_data
from harness.report.page import LIMIT_BYTES, render_report, write_report
from harness.study.family import Family, FamilyStage
from harness.study.spec import FamilySpec, StageSpec, StudySpec
from tests.fabricate import LEARNING_RATE, fabricate
from tests.report.studies import paths_in


class Page(HTMLParser):
    """What a browser would make of the page: elements, ids, headings, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parsed(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_the_report_is_one_file_that_asks_for_nothing_and_runs_nothing(report: Path, parsed: Page) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) <= LIMIT_BYTES
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {t for t, _ in parsed.elements}
    references = [
        a for _, attributes in parsed.elements for k, a in attributes.items() if k in ("href", "src", "xlink:href")
    ]
    assert references
    assert all(reference and reference.startswith("#") for reference in references)
    assert not [k for _, attributes in parsed.elements for k in attributes if k.startswith("on")]


def test_every_reference_within_the_page_has_its_target(parsed: Page, report: Path) -> None:
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = report.read_text(encoding="utf-8")
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(i, "") for i in ids} | {("", i) for i in ids}
    labelled = [a["aria-labelledby"] for a in parsed.all("svg")]
    assert labelled
    assert {part for label in labelled for part in str(label).split()} <= set(ids)


def test_a_screen_reader_finds_its_way(parsed: Page) -> None:
    assert parsed.all("html") == [{"lang": "en"}]
    assert parsed.headings[0] == 1
    assert parsed.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(parsed.headings, parsed.headings[1:], strict=False))
    assert all(a["role"] == "img" for a in parsed.all("svg"))
    assert len(parsed.all("figure")) == len(parsed.all("svg"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in parsed.all("th"))
    assert all(
        a.get("tabindex") == "0" and a.get("aria-label") for a in parsed.all("div") if a.get("class") == "scroll"
    )


def test_every_figure_has_its_numbers_in_a_table(report: Path) -> None:
    for content in re.findall(r"<figure>(.*?)</figure>", report.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert "<table>" in content


def test_the_same_study_gives_the_same_bytes(small: Paths, report: Path) -> None:
    assert render_report(load_study_data(small, "made_up")) == report.read_text(encoding="utf-8")


def test_the_pasted_recipe_is_a_family_of_a_study_file(report: Path, small: Paths) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    recipes = [yaml.safe_load(text) for text in page.text if text.startswith("base_models:")]
    assert len(recipes) == 2
    for recipe in recipes:
        for family in recipe["families"].values():
            stage = FamilySpec.model_validate(family).stages[0]
            assert stage.method in ("full", "lora")
            assert 1e-5 <= stage.params["learning_rate"] <= 1e-1


EVIL = "<script>alert(1)</script> \"'&$x$"


def test_what_users_wrote_is_shown_as_written_and_never_run(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    study = StudySpec.model_validate(
        {
            "name": "evil",
            "question": f"Is {EVIL} safe?",
            "base_models": [EVIL],
            "tasks": [f"task {EVIL}", f"other {EVIL}"],
            "off_target": [f"skill {EVIL}"],
            "families": {f"a {EVIL}": {"method": "full"}, f"b {EVIL}": {"method": "lora"}},
            "budget": {"trials": 2, "steps": 60},
            "confirm": {"finalists": 2, "seeds": 2},
        }
    )
    stages = {name: spec.stages[0].method for name, spec in study.families.items()}
    families = {
        name: Family(name, (FamilyStage(StageSpec(method=method), {"learning_rate": LEARNING_RATE}, 1.0),))
        for name, method in stages.items()
    }
    fabricate(paths, study, families)
    ingest(paths)
    text = write_report(paths, "evil").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert not page.all("script")
    assert f"Is {EVIL} safe?" in page.text
    assert any(EVIL in part for part in page.text)


def test_an_unknown_study_is_refused_with_those_there_are(small: Paths) -> None:
    with pytest.raises(SpecError, match=r"study must be one of those known, but got 'mad_up': did you mean 'made_up'"):
        write_report(small, "mad_up")


def test_where_there_is_no_study_at_all_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="run 'harness search'"):
        write_report(paths_in(tmp_path), "any")


def test_without_a_database_the_remedy_is_named(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    paths.study("made_up").folder.mkdir(parents=True)
    paths.study("made_up").spec.write_text(json.dumps({"study": {"name": "made_up"}}))
    with pytest.raises(StorageError, match="run 'harness database'"):
        write_report(paths, "made_up")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_study_file_is_a_storage_error(tmp_path: Path, content: str) -> None:
    paths = paths_in(tmp_path)
    paths.study("made_up").folder.mkdir(parents=True)
    paths.study("made_up").spec.write_text(content)
    with pytest.raises(StorageError, match=r"study\.json must hold"):
        write_report(paths, "made_up")


def test_what_would_not_fit_is_left_out_and_said(small: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LIMIT_BYTES", 100_000)
    text = render_report(load_study_data(small, "made_up"))
    assert len(text.encode()) <= 100_000
    assert "Left out: this section would take" in text
    assert "Gain over the base model" in text, "the answer always stays"


def test_the_spend_counts_failures_and_shows_reused_trials_apart(small: Paths) -> None:
    study = load_study_data(small, "made_up")
    trials = [replace(trial, reused=trial.role == "base") for trial in study.trials]
    again = replace(study, trials=trials)
    # 2 tasks x (2 base + 3 families x 4 trials + 2 finalists x 5 seeds) = 48, of which 4 base trials are reused
    text = render_report(again)
    assert "In total the study ran 44 trials" in text
    assert "4 more trials worth" in text
    assert "48 trials" in render_report(study)

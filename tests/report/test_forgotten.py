"""What the page says became of each skill, from records and items whose numbers are set by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.analysis.retained import Status
from harness.analysis.statistics import Interval
from harness.analysis.verdict import Contrast, Verdict, Word
from harness.database.ingest import connect
from harness.database.items import Outcomes
from harness.records.codec import decode
from harness.records.paths import Paths
from harness.records.trial import TrialConfig
from harness.report.accepting import limits_in_words
from harness.report.data import load_study_data
from harness.report.findings import BASE, Advice, compare
from harness.report.forgotten import count_lost, how_sure, in_short, interval_in_words
from harness.report.page import render_report
from harness.study.accept import Limits
from tests.fabricate import fabricate, study_spec
from tests.report.studies import change_records

ITEMS = 200
Skill = Mapping[str, Any]
"""Of base and tuned: the share of right answers or the perplexity, and the bits per byte of the right answers."""


def with_skills(folder: Path, skills: Mapping[str, Skill]) -> Paths:
    """A study with one task and two finalists of three seeds, whose off-target skills are these, for all finalists alike."""
    paths = Paths(folder / "results", folder / "reports")
    spec = study_spec(tasks=1, trials=2, seeds=3)
    fabricate(paths, type(spec).model_validate(spec.model_dump(mode="json") | {"off_target": list(skills)}))
    rng = np.random.default_rng(0)

    def change(record: dict[str, Any]) -> None:
        tuned, rows = int(record["config"]["steps"] > 0), []
        for score in record["scores"][1:]:
            skill = skills[score["task"]]
            score |= {"value": skill["scores"][tuned], "chance": skill.get("chance"), "n": ITEMS}
            if skill.get("perplexity"):
                score |= {"metric": "perplexity", "higher_is_better": False}
            noise = rng.normal(0, 0.2, ITEMS)
            for item in range(ITEMS):
                right, bits = float(item < round(score["value"] * ITEMS)), skill.get("bits")
                value = score["value"] * np.exp(noise[item] * tuned) if skill.get("perplexity") else right
                rows.append(
                    {"task": score["task"], "split": score["split"], "metric": score["metric"], "doc_hash": f"{item:03}",
                     "value": value, "prediction": None, "answer_bits": bits and bits[tuned] + tuned * noise[item]}
                )  # fmt: skip
        if rows and record["config"]["evaluation"]["split"] == "test":
            path = paths.items(decode(TrialConfig, record["config"]).key)
            kinds = dict.fromkeys(("task", "split", "metric", "doc_hash", "prediction"), pa.string())
            kinds |= {"value": pa.float64(), "answer_bits": pa.float64()}
            pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), path)

    change_records(paths, change)
    return paths


SKILLS: Mapping[str, Skill] = {
    "arc": {"scores": (0.25, 0.25), "chance": 0.25, "bits": (1.82, 2.19)},
    "facts": {"scores": (0.715, 0.245)},
    "copying": {"scores": (0.0, 0.0)},
    "addition": {"scores": (0.6, 0.6)},
    "stories": {"scores": (5.0, 5000.0), "perplexity": True},
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return with_skills(tmp_path_factory.mktemp("skills"), SKILLS)


def test_every_skill_has_a_status(paths: Paths) -> None:
    for contender in compare(load_study_data(paths, "made_up"))[0].contenders:
        lost = {own.skill: own for own in contender.lost}
        assert {skill: own.status for skill, own in lost.items()} == {
            "arc": Status.LOST,
            "facts": Status.LOST,
            "copying": Status.NO_HEADROOM,
            "addition": Status.KEPT,
            "stories": Status.LOST,
        }
        assert "29." in str(lost["arc"].in_words)  # 2^.37 = 1.292
        assert "more perplexed by each byte of the right answers" in str(lost["arc"].in_words)
        assert lost["facts"].in_words == "47.0 points lost"
        assert lost["stories"].in_words == "perplexity 5 to 5,000, 1,000 times as perplexed: its answers are noise"
        assert (lost["facts"].flips.lost, lost["facts"].flips.gained) == (94, 0)  # 143 right before, 49 of these after
        assert lost["stories"].flips is None
        assert how_sure(contender.lost) == "200 items a skill, 3 seeds"
        said = in_short(contender.lost)
        assert said is not None
        assert said.startswith("lost: 3 of 5 skills (worst: stories, perplexity 5 to 5,000")
        assert said.endswith("; kept: 1; no headroom: 1")


def test_intervals_hold_possible_values_only(paths: Paths) -> None:
    """Where all answers were right and no item changed sides, nothing can have been gained."""
    lost = {own.skill: own for own in compare(load_study_data(paths, "made_up"))[0].best.lost}
    ends = [
        float(end.replace("\u2212", "-"))
        for end in re.findall(r"[+\u2212]?\d+\.\d", interval_in_words(lost["copying"]))
    ]
    assert ends[1] == 0.0  # of a score of 0 nothing can be lost
    low, high = (float(e) for e in re.findall(r"[\d.]+", interval_in_words(lost["facts"]))[:2])
    assert 0 < low < 47 < high < 71.5


def test_the_page_counts_statuses(paths: Paths) -> None:
    page = render_report(load_study_data(paths, "made_up"))
    assert "lost: 3 of 5 skills (worst: stories" in page
    assert "200 items a skill, 3 seeds" in page
    assert "What became of the skills of tiny-1m" in page
    assert "0.0 points lost" not in page.split("What was forgotten, skill by skill")[0]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([Status.LOST, Status.KEPT, Status.TOO_FEW], "1 of 3 skills"),
        ([Status.KEPT, Status.KEPT], "none of 2 skills"),
        ([Status.KEPT, Status.TOO_FEW, Status.NO_HEADROOM], "not known for 2 of 3 skills"),
        ([Status.CANNOT_TELL], "not known for 1 of 1 skill"),
    ],
)
def test_none_is_said_to_be_lost_only_where_all_were_seen_to_be_kept(statuses: list[Status], expected: str) -> None:
    assert count_lost([SimpleNamespace(status=status) for status in statuses]) == expected  # type: ignore[list-item]


def test_without_items_nothing_is_kept_and_the_page_says_so(paths: Paths) -> None:
    study = replace(load_study_data(paths, "made_up"), outcomes=Outcomes(), likelihoods=Outcomes())
    for contender in compare(study)[0].contenders:
        assert {own.status for own in contender.lost} == {Status.CANNOT_TELL, Status.NO_HEADROOM}
        assert in_short(contender.lost) == "lost: not known for 5 of 5 skills; no headroom: 2; cannot tell: 3"
        assert "no single items" in how_sure(contender.lost)


def test_what_the_study_accepts_stands_beside_what_it_costs(paths: Paths) -> None:
    """Both pipelines beat the base; the better one lost 99.9% of a skill, the other nothing."""
    study = load_study_data(paths, "made_up")
    (found,) = compare(study)
    gains = [Interval(mean=gain, low=None, high=None, n=3) for gain in (0.3, 0.2)]
    best, other = (
        replace(contender, gain=gain, over_base=Contrast(word=Word.BETTER, difference=gain))
        for contender, gain in zip(found.contenders, gains, strict=True)
    )
    other = replace(other, lost=tuple(own for own in other.lost if own.skill == "addition"))
    against = {
        other.label: Contrast(word=Word.WORSE, difference=gains[1]),
        BASE: Contrast(word=Word.WORSE, difference=gains[0]),
    }
    verdict = Verdict(leader=best.label, word=Word.BETTER, against=against)
    free = replace(found, contenders=(best, other), verdict=verdict)
    assert free.advice == (Advice.BEST, best)
    limited = replace(free, limits=Limits(forgetting=0.05))
    assert limited.advice == (Advice.WITHIN, other)
    assert limits_in_words(limited) == (
        f"This study accepts at most 5 points lost of any skill. Within that, the answer is {other.label}; without these limits it "
        f"would be {best.label}, +10.0 points. Refused: {best.label} forgets more than is accepted."
    )
    strict = replace(free, limits=Limits(forgetting=0.05, seconds=1e-9))
    assert strict.advice == (Advice.KEEP, None)
    assert "Within that, nothing was shown to beat the base" in limits_in_words(strict)
    wide = replace(free, limits=Limits(forgetting=1.0))
    assert "the answer is " + best.label + "; without these limits that would be the same." in limits_in_words(wide)


def test_limits_of_the_study_file_reach_the_page(paths: Paths) -> None:
    study = load_study_data(paths, "made_up")
    content = {**study.file.content, "accept": {"forgetting": "5 points"}}
    assert "This study accepts at most 5 points" in render_report(
        replace(study, file=replace(study.file, content=content))
    )
    assert "This study accepts" not in render_report(study)


def test_database_and_page_agree_on_what_only_the_answers_show(paths: Paths) -> None:
    (found,) = compare(load_study_data(paths, "made_up"))
    with connect(paths) as connection:
        rows = connection.execute("SELECT family, skill, size FROM skill_forgetting").fetchall()
        board = dict(connection.execute("SELECT family, (worst_skill, forgetting) FROM leaderboard").fetchall())
    sizes = {(family, skill): size for family, skill, size in rows}
    for contender in found.contenders:
        lost = {own.skill: own.size.value for own in contender.lost}
        assert lost == {skill: pytest.approx(sizes[contender.family, skill]) for skill in SKILLS}
        assert lost["arc"] == pytest.approx(1 - 2**-0.37, abs=0.02)
        assert board[contender.family] == ("stories", pytest.approx(0.999))

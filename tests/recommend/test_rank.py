"""Advice on invented studies whose truth is known: good choices, honest refusals, and what was learned from what."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from harness.axes.contract import Situation
from harness.database.ingest import connect, ingest
from harness.errors import StorageError, UsageError
from harness.foreign.take import take
from harness.metrics.base import SHARE
from harness.plugins import load, names
from harness.recommend.backtest import DEFAULTS, RANDOM, Backtest, LeftOut, _summary, evaluate, merits, read_backtest
from harness.recommend.candidates import options
from harness.recommend.evidence import NotEnoughEvidence, lacking
from harness.recommend.features import Observation, default_distance, observations
from harness.recommend.lookup import most_evidence, recorded_base
from harness.recommend.predictor import Outlook
from harness.recommend.rank import Advice, Request, backtest, recommend
from harness.records.codec import to_json
from harness.records.paths import Paths
from harness.records.scale import Scale
from harness.space import check
from harness.study.family import resolved_families
from harness.study.spec import StudySpec
from tests.fabricate import MODEL_FACTS, Fabricated, World, fabricate, study_spec, task_facts, write_signed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, Fabricated, Backtest]:
    folder: Path = tmp_path_factory.mktemp("advice")
    paths = Paths(folder / "results", folder / "reports")
    fabricated = fabricate(paths)
    ingest(paths)
    return paths, fabricated, backtest(paths)


def request(world: World, **changes: object) -> Request:
    asked = Request(
        task="new",
        task_facts=task_facts(world, "new"),
        base_model="tiny-1m",
        model_facts=MODEL_FACTS,
        base_score=world.base("new"),
        scale=SHARE,
        metric="acc",
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


def test_backtest_learns_the_learning_rate(made: tuple[Paths, Fabricated, Backtest]) -> None:
    """The scores hang on the learning rate, which means cannot know."""
    _, _, result = made
    assert result.beats_baselines
    learned = result.regret[result.surrogate]
    assert all(learned < value / 2 for name, value in result.regret.items() if name != result.surrogate)
    assert DEFAULTS in result.regret
    assert len(result.tasks) == 3
    assert all(value >= 0 for left in result.tasks for value in left.regret.values())
    assert not result.enough_tasks  # three tasks
    assert set(result.coverage) == {"gain", "forgetting", "seconds", "memory_bytes"}
    assert "3 left-out tasks" in result.text()


def test_random_choice_regrets_what_hand_arithmetic_says(made: tuple[Paths, Fabricated, Backtest]) -> None:
    _, fabricated, result = made
    searched = {m["key"] for m in fabricated.members if m["role"] == "search"}
    for left in result.tasks:
        scores = [
            r.target.value
            for r in fabricated.results
            if r.config.key in searched and r.target and r.config.task.name == left.task
        ]
        assert left.best == max(scores)
        assert left.pipelines == len(scores)
        assert left.regret[RANDOM] == pytest.approx(max(scores) - sum(scores) / len(scores))
        share = left.regret[RANDOM] / (max(scores) - fabricated.world.base(left.task))
        assert left.normalized[RANDOM] == pytest.approx(share)


def test_backtest_is_kept_and_made_again_when_the_evidence_changes(paths: Paths) -> None:
    fabricate(paths, study_spec("one", tasks=2))
    ingest(paths)
    first = backtest(paths)
    path = paths.backtest
    assert json.loads(path.read_text()) == to_json(first)
    with connect(paths) as database:
        seen = observations(paths, database)
    path.write_text(path.read_text().replace(first.surrogate, "kept"))
    assert read_backtest(paths, seen).surrogate == "kept"
    assert read_backtest(paths, seen[:-1]) == first
    path.write_text("torn")
    assert read_backtest(paths, seen) == first  # same evidence, same seeds, same answer


def test_advice_for_an_unseen_task_is_near_the_best(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, fabricated, result = made
    advice = recommend(paths, request(fabricated.world))
    assert isinstance(advice, Advice)
    assert advice.backtest == result
    first = advice.recommendations[0]
    assert [r.rank for r in advice.recommendations] == list(range(1, len(advice.recommendations) + 1))
    assert len({r.family for r in advice.recommendations}) == len(advice.recommendations)
    truth = fabricated.world.truth(first.family, "new", first.stages[0].params)
    base, best = fabricated.world.base("new"), (1 - fabricated.world.base("new")) * 0.85 + fabricated.world.base("new")
    assert truth.score - base > 0.7 * (best - base)
    assert first.score
    assert first.score.low <= truth.score <= first.score.high
    assert first.score.mean - first.gain.mean == pytest.approx(base)
    assert {e.task for e in first.evidence} <= {"task_0", "task_1", "task_2"}
    assert len(first.evidence) == 3
    for word in ("nearest evidence", "80% intervals", "Backtest over 3", "cannot be calibrated", "held for: gain"):
        assert word in advice.text()
    json.dumps(to_json(advice), allow_nan=False)
    again = recommend(paths, request(fabricated.world))
    assert to_json(again) == to_json(advice)


def test_limits_are_kept_or_refused(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, fabricated, _ = made
    careful = recommend(paths, request(fabricated.world, max_forgetting=0.1))
    assert isinstance(careful, Advice)
    assert all(r.forgetting and r.forgetting.mean <= 0.1 for r in careful.recommendations)
    assert careful.recommendations[0].family != "full"  # which forgets most
    small = recommend(paths, request(fabricated.world, max_memory_bytes=3.5e8))
    assert isinstance(small, Advice)
    assert {r.family for r in small.recommendations} == {"lora"}
    none = recommend(paths, request(fabricated.world, max_seconds=0.1))
    assert isinstance(none, NotEnoughEvidence)
    assert "max_seconds = 0.1" in none.text()


def test_forgetting_of_shares_and_of_losses_is_never_pooled(made: tuple[Paths, Fabricated, Backtest]) -> None:
    """On task_2 only a loss was scored off target, and it rose by 50 bits."""
    paths, _, _ = made
    with connect(paths) as database:
        seen = [o for o in observations(paths, database) if o.gain is not None]
    assert {o.forgetting_is_share for o in seen} == {True}
    mixed = [replace(o, forgetting=50.0, forgetting_is_share=False) if o.task == "task_2" else o for o in seen]
    candidates = [o.candidate for o in seen[:5]]
    found = Outlook(mixed, "mean_of_all").predict(candidates)["forgetting"]
    shares = Outlook([o for o in mixed if o.task != "task_2"], "mean_of_all").predict(candidates)["forgetting"]
    assert found.high.max() < 2
    assert found.mean.tolist() == pytest.approx(shares.mean.tolist())
    assert Outlook(mixed, "mean_of_all", shares=False).predict(candidates)["forgetting"].mean.tolist() == [50.0] * 5
    only_losses = [o for o in mixed if o.task == "task_2"]
    assert "forgetting" not in Outlook(only_losses, "mean_of_all").predict(candidates)


def seen_of(paths: Paths) -> list[Observation]:
    with connect(paths) as database:
        return [o for o in observations(paths, database) if o.gain is not None]


def test_where_everything_lost_it_says_keep_the_base(
    made: tuple[Paths, Fabricated, Backtest], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, fabricated, _ = made
    worse = [replace(o, gain=-0.2) for o in seen_of(paths)]
    monkeypatch.setattr("harness.recommend.rank.observations", lambda *_: worse)
    monkeypatch.setattr("harness.recommend.rank.read_backtest", lambda *_: evaluate(worse))
    advice = recommend(paths, request(fabricated.world))
    assert isinstance(advice, Advice)
    assert all(found.gain.mean < 0 for found in advice.recommendations)
    assert "nothing is expected to beat the base model: keep it" in advice.text()


def test_the_learned_must_beat_the_literature_defaults_too(made: tuple[Paths, Fabricated, Backtest]) -> None:
    """The forest loses less than all other surrogates, and more than the literature defaults."""
    paths, _, _ = made
    lost = dict.fromkeys(names("recommend/surrogates"), 0.4) | {
        "quantile_forest": 0.1,
        "mean_of_all": 0.3,
        DEFAULTS: 0.05,
        RANDOM: 0.5,
    }

    def judged(lost: dict[str, float]) -> Backtest:
        left = LeftOut(
            task="t",
            base_model="m",
            pipelines=5,
            best=1.0,
            base_score=0.0,
            metric="acc",
            regret=lost,
            normalized=lost,
        )
        return _summary(seen_of(paths), [left], lambda _: {})

    result = judged(lost)
    assert not result.beats_baselines
    assert result.surrogate == "mean_of_all"
    assert result.defaults_win
    assert f"{DEFAULTS} lost least" in result.text()
    assert judged({**lost, DEFAULTS: 0.2}).beats_baselines


def _remote(seen: Observation) -> float:
    return default_distance(seen.candidate.stages)


def test_equal_expectations_are_ranked_by_the_same_rule_as_in_the_backtest(
    made: tuple[Paths, Fabricated, Backtest],
) -> None:
    """mean_of_all expects the same of all: the choices that gained most elsewhere, then nearness to the defaults, decide."""
    paths, _, result = made
    seen = seen_of(paths)
    for left in result.tasks:
        train = [o for o in seen if o.task != left.task]
        cell = [o for o in seen if o.task == left.task and o.split == "validation"]
        order = merits(train, [o.candidate for o in cell], [0.0] * len(cell))
        first = cell[max(range(len(cell)), key=lambda i: order[i])]
        assert left.regret["mean_of_all"] == pytest.approx(left.best - first.score)
        alike = [o for o in cell if o.candidate.stages[0].retention == first.candidate.stages[0].retention]
        assert _remote(first) == min(map(_remote, (o for o in alike if o.family == first.family)))


def test_rungs_do_not_lower_means_and_seeds_do_not_count_twice(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, fabricated, result = made
    seen = seen_of(paths)
    rungs = [replace(o, key=f"{o.key}r", gain=-5.0, candidate=replace(o.candidate, fidelity=0.25)) for o in seen]
    for name in ("mean_of_all", "mean_of_method"):
        candidates = [o.candidate for o in seen[:4]]
        with_rungs = Outlook([*seen, *rungs], name, ["gain"]).predict(candidates)["gain"].mean.tolist()
        assert with_rungs == pytest.approx(Outlook(seen, name, ["gain"]).predict(candidates)["gain"].mean.tolist())
    assert evaluate([*seen, *rungs]).regret["mean_of_method"] == result.regret["mean_of_method"]
    one = {o.task: o for o in seen}
    copies = [replace(o, key=f"{o.key}{n}") for o in one.values() for n in range(6)] + rungs
    asked = request(fabricated.world)
    missing = lacking(copies, asked.task, asked.task_facts, asked.base_model, asked.model_facts, [])
    assert missing
    assert missing.trials == 3  # one pipeline on each of three tasks, whatever its seeds and rungs


def test_regrets_in_different_units_are_not_averaged(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, _, result = made
    assert "as share of what was to be gained: quantile_forest" in result.text()
    mixed = evaluate([replace(o, metric="bits_per_byte") if o.task == "task_0" else o for o in seen_of(paths)])
    assert mixed.regret == {}
    assert mixed.normalized_regret == result.normalized_regret
    assert "score units" not in mixed.text()


def test_no_answer_has_a_reason_of_its_own(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, fabricated, _ = made
    with pytest.raises(UsageError, match="top must be at least 1, but got 0"):
        recommend(paths, request(fabricated.world, top=0))
    no_loss = recommend(paths, request(fabricated.world, max_forgetting=0.1, forgetting_is_share=False))
    assert isinstance(no_loss, NotEnoughEvidence)
    assert "max_forgetting cannot be judged" in no_loss.reason
    unbounded = recommend(paths, request(fabricated.world, scale=Scale(low=0.0), metric="elo"))
    assert isinstance(unbounded, NotEnoughEvidence)
    assert "nobody declared the highest value of its metric elo" in unbounded.reason
    assert "say metadata.metrics.elo.bounds in the task file" in unbounded.text()


def test_where_nothing_can_work_it_says_why(
    made: tuple[Paths, Fabricated, Backtest], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, fabricated, _ = made
    monkeypatch.setattr("harness.methods.base.Method.skip", lambda *_: "it needs a GPU", raising=False)
    for name in ("full", "lora"):
        monkeypatch.setattr(load("methods", name), "skip", lambda *_: "it needs a GPU")
    answer = recommend(paths, request(fabricated.world, situation=Situation(device="cpu")))
    assert isinstance(answer, NotEnoughEvidence)
    assert "can work on tiny-1m here: it needs a GPU" in answer.reason


def test_without_a_base_score_only_gains_are_predicted(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, fabricated, _ = made
    advice = recommend(paths, request(fabricated.world, base_score=None))
    assert isinstance(advice, Advice)
    assert advice.recommendations[0].score is None
    assert advice.recommendations[0].gain.mean > 0
    assert any("never scored on new" in note for note in advice.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_type": "loglikelihood_rolling"}, "all tasks known are generate_until"),
        ({"log_rows": 7.0}, "rows of 1e+07"),
    ],
)
def test_a_task_far_from_all_known_is_refused(
    made: tuple[Paths, Fabricated, Backtest], change: dict[str, float | str], words: str
) -> None:
    paths, fabricated, _ = made
    facts = {**task_facts(fabricated.world, "new"), **change}
    answer = recommend(paths, request(fabricated.world, task_facts=facts))
    assert isinstance(answer, NotEnoughEvidence)
    assert words in answer.reason
    study = StudySpec.model_validate(yaml.safe_load(answer.study))  # what it tells to run can be run
    assert study.tasks == ("new",)
    assert answer.command == "harness plan studies/evidence_new.yaml"


def test_another_kind_of_base_model_is_refused(made: tuple[Paths, Fabricated, Backtest]) -> None:
    paths, fabricated, _ = made
    big = {**MODEL_FACTS, "log_parameters": 9.8}
    answer = recommend(paths, request(fabricated.world, base_model="org/big", model_facts=big))
    assert isinstance(answer, NotEnoughEvidence)
    assert answer.trials == 0
    assert "0 tasks" in answer.reason
    like = recommend(paths, request(fabricated.world, base_model="other", model_facts=MODEL_FACTS))
    assert isinstance(like, Advice)


def test_the_base_score_is_of_the_same_task_file_and_of_validation(paths: Paths) -> None:
    made = fabricate(paths, study_spec(tasks=1))
    for result in made.results:
        if result.config.steps == 0 and result.config.evaluation.split == "test":
            path = paths.record(result.config.key)
            record = json.loads(path.read_text())
            record["scores"][0] |= {"value": 0.99, "n": 10_000}
            write_signed(path, record)
    ingest(paths)
    base: Any = SimpleNamespace(ref=made.results[0].config.pipeline.base_model)
    task: Any = SimpleNamespace(name="task_0", metric="acc", ref=made.results[0].config.task)
    assert recorded_base(paths, task, base) == pytest.approx(made.world.base("task_0"))
    task.ref = replace(task.ref, fingerprint="edited since")
    assert recorded_base(paths, task, base) is None
    task.ref = made.results[0].config.task
    for result in made.results:
        if result.config.evaluation.split == "validation":
            paths.record(result.config.key).unlink()
    ingest(paths)
    assert recorded_base(paths, task, base) is None  # there is a test score, which is another split's


def test_nothing_or_one_task_is_not_enough(paths: Paths) -> None:
    with pytest.raises(StorageError, match="harness database"):
        recommend(paths, request(World()))
    ingest(paths)
    nothing = recommend(paths, request(World()))
    assert isinstance(nothing, NotEnoughEvidence)
    assert resolved_families(StudySpec.model_validate(yaml.safe_load(nothing.study)))
    assert most_evidence(paths) is None
    assert "at least two tasks" in backtest(paths).text()
    fabricate(paths, study_spec(tasks=1))
    ingest(paths)
    one = recommend(paths, request(World()))
    assert isinstance(one, NotEnoughEvidence)
    assert "1 tasks" in one.reason
    assert paths.backtest.exists()
    assert most_evidence(paths) == "tiny-1m"


def test_where_nothing_can_be_learned_it_says_so(paths: Paths) -> None:
    """Every family is equally good at any learning rate: noise only."""
    flat = World(
        best={"full": -3, "lora": -3, "full_replay": -3}, quality={"full": 0, "lora": 0, "full_replay": 0}, noise=0.1
    )
    fabricate(paths, study_spec(tasks=4), world=flat)
    ingest(paths)
    result = backtest(paths)
    advice = recommend(paths, request(flat))
    assert isinstance(advice, Advice)
    assert result.beats_baselines is not any("not fitted to the task" in note for note in advice.notes)
    assert advice.recommendations[0].gain.low < 0 < advice.recommendations[0].gain.high
    best = max(found.gain.mean for found in advice.recommendations)
    doubt = "nothing is expected to beat the base model" if best <= 0 else "reaches zero"
    assert any(doubt in note for note in advice.notes)


def test_draws_from_real_spaces_are_offered(paths: Paths) -> None:
    """A study whose families resolve to plug-ins: 64 untried points of each family's space, and all that ran."""
    spec = study_spec(tasks=3, trials=6)
    families = resolved_families(spec)
    made = fabricate(paths, spec, families=families)
    ingest(paths)
    with connect(paths) as database:
        seen = observations(paths, database)
    offered = list(options(seen, [spec], request(made.world)))
    ran = {repr(o.candidate.stages) for o in seen}
    untried = [(family, candidate) for family, candidate in offered if repr(candidate.stages) not in ran]
    assert Counter(family for family, _ in untried) == {"full": 64, "lora": 64, "full_replay": 64}
    assert len(offered) - len(untried) == len(ran)
    for family, candidate in untried:
        check(families[family].stages[0].space, candidate.stages[0].params, family)
    assert isinstance(recommend(paths, request(made.world)), Advice)


def test_runs_without_a_base_score_teach_and_are_no_evidence(tmp_path: Path) -> None:
    """Of a task that only others ran, without its base: advice goes on, says so, and names no such run as evidence."""
    paths = Paths(tmp_path / "results", tmp_path / "reports")
    fabricated = fabricate(paths)
    rows = [f"{method},{10**-power},{score}" for power, score in ((4, 0.4), (3, 0.6)) for method in ("full", "lora")]
    (tmp_path / "runs.csv").write_text("method,lr,acc\n" + "\n".join(rows))
    (tmp_path / "map.yaml").write_text(
        "source: others\ntask: {value: theirs}\nbase_model: {value: tiny-1m}\nmethod: method\nparams: {learning_rate: lr}\n"
        "steps: {value: 100}\nscores: [{column: acc, higher_is_better: true, low: 0, high: 1}]\n"
    )
    take(paths, tmp_path / "runs.csv", tmp_path / "map.yaml", None)
    ingest(paths)
    advice = recommend(paths, request(fabricated.world))
    assert isinstance(advice, Advice)
    assert any("trials on theirs teach only how pipelines compare" in note for note in advice.notes)
    assert all(near.task != "theirs" for advised in advice.recommendations for near in advised.evidence)
    assert len(advice.backtest.tasks) == 3, "no choice is judged by a gain that nobody knows"

"""The main job from a user's seat: `snakemake`, then the report, the advice, and a tuned model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.records.paths import Paths
from harness.records.results import iterate_results
from harness.records.trial import TrialStatus

# Two tasks x three families x two trials; two finalists x two seeds per task; the base on both splits of both tasks.
SEARCHED, CONFIRMED, BASES = 2 * 3 * 2, 2 * 2 * 2, 2 * 2


@pytest.fixture(scope="module")
def results(project):
    return [result for _, result in iterate_results(Paths(project.folder / "results"))]


def test_every_trial_is_recorded_once(results):
    assert len(results) == SEARCHED + CONFIRMED + BASES
    assert {result.status for result in results} == {TrialStatus.COMPLETE}


def test_only_confirm_and_its_base_opened_the_test_split(results):
    opened = [result for result in results if result.config.evaluation.split == "test"]
    assert len(opened) == CONFIRMED + BASES // 2
    assert {score.split for result in opened for score in result.scores} == {"test"}
    assert {score.split for result in results if result not in opened for score in result.scores} == {"validation"}


def test_every_family_got_the_same_budget(project):
    lines = (project.folder / "results/studies/quickstart/members.jsonl").read_text().splitlines()
    members = [json.loads(line) for line in lines]
    counts = {}
    for member in members:
        if member["role"] == "search":
            counts[member["task"], member["family"]] = counts.get((member["task"], member["family"]), 0) + 1
    assert len(counts) == 6
    assert set(counts.values()) == {2}


def test_finalists_share_their_seeds_so_that_they_can_be_paired(project):
    members = [
        json.loads(line)
        for line in (project.folder / "results/studies/quickstart/members.jsonl").read_text().splitlines()
    ]
    paths = Paths(project.folder / "results")
    seeds = {}
    for member in members:
        if member["role"] == "confirm":
            record = json.loads(paths.record(member["key"]).read_text())
            seeds.setdefault((member["task"], member["family"]), set()).add(record["config"]["seed"])
    assert len(seeds) == 4
    assert len(set(map(frozenset, seeds.values()))) == 1
    searched = {
        json.loads(paths.record(m["key"]).read_text())["config"]["seed"] for m in members if m["role"] == "search"
    }
    assert not searched & set.union(*seeds.values())


def test_the_report_is_one_small_file_without_requests(project):
    html = (project.folder / "reports/quickstart.html").read_text()
    assert len(html.encode()) < 1_500_000
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']*|url\((?!#)[^)]*""", html) == []
    assert "<script" not in html


def test_the_terminal_ends_with_what_page_one_says(project):
    said = project.main_job.stderr
    for task in ("tb_sentiment", "tb_newfacts"):
        [line] = [line for line in said.splitlines() if line.startswith(f"For {task} on tiny-1m, ")]
        page = re.sub(r"<[^>]*>", "", (project.folder / "reports/quickstart.html").read_text())
        assert line.split(":")[0].split(". ")[0] in page


def test_running_again_runs_nothing(project):
    records = sorted((project.folder / "results/trials").glob("*/*/record.json"))
    times = [path.stat().st_mtime_ns for path in records]
    assert "Nothing to be done" in project.run("snakemake").stderr
    for verb in ("base", "search", "confirm"):
        project.harness(verb, "quickstart", "--quiet")
    assert [path.stat().st_mtime_ns for path in records] == times


def test_the_database_is_derived(project):
    from harness.database import ingest as store

    def count():
        with store.connect(Paths(project.folder / "results")) as connection:
            return connection.execute("select count(*) from trials").fetchone()[0]

    before = count()
    (project.folder / "results/harness.duckdb").unlink()
    project.harness("database")
    assert before == count() == SEARCHED + CONFIRMED + BASES


def test_advice_for_a_task_in_no_study(project):
    answer = json.loads(project.harness("recommend", "--task", "my_task", "--json").stdout)
    assert answer["task"] == "my_task"
    if answer["advice"] is None:
        assert "harness plan" in answer["not_enough_evidence"]["command"]
        return
    assert len(answer["advice"]["backtest"]["tasks"]) == 2
    best = answer["advice"]["recommendations"][0]
    assert best["rank"] == 1
    assert best["evidence"]
    assert best["score"] is None  # the base was never scored on it
    assert best["gain"]["low"] <= best["gain"]["mean"] <= best["gain"]["high"]


def test_scoring_the_base_first_gives_expected_scores(project):
    answer = json.loads(project.harness("recommend", "--task", "my_task", "--score-base", "--json").stdout)
    if answer["advice"]:
        score = answer["advice"]["recommendations"][0]["score"]
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1


@pytest.mark.thorough
def test_too_little_evidence_says_what_to_run(fresh):
    write = (fresh.folder / "studies" / "quickstart.yaml").read_text().replace("- tb_newfacts\n", "")
    (fresh.folder / "studies" / "quickstart.yaml").write_text(write)
    for verb in ("base", "search"):
        fresh.harness(verb, "quickstart", "--runner", "inline", "--quiet")
    fresh.harness("database")
    answer = fresh.harness("recommend", "--task", "my_task").stdout
    assert answer.startswith("Not enough evidence")
    assert "harness plan" in answer
    study = re.search(r"^name: evidence_my_task.*", answer, re.DOTALL | re.MULTILINE)
    (fresh.folder / "studies" / "evidence_my_task.yaml").write_text(study[0])
    fresh.harness("plan", "evidence_my_task")
    assert "not enough evidence" in fresh.harness("train", "--task", "my_task", code=2).stderr


def test_a_tuned_model_loads_without_the_harness(project):
    pipeline = project.folder / "pipeline.yaml"
    pipeline.write_text("model: tiny-1m\nsteps: 4\nstages:\n- {method: lora, params: {rank: 4}}\n")
    project.harness("train", "--task", "my_task", "--pipeline", str(pipeline), "--output", "tuned")
    card = (project.folder / "tuned/README.md").read_text()
    assert "my_task" in card
    assert "tiny-1m" in card
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('tuned'); tokenizer = AutoTokenizer.from_pretrained('tuned')\n"
        "print(model.generate(**tokenizer('A', return_tensors='pt'), max_new_tokens=2).shape[1] > 1, 'harness' in sys.modules)\n"
    )
    assert project.run(sys.executable, "-c", code).stdout.split() == ["True", "False"]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_tables_are_exported(project, file_format, tmp_path):
    import pandas

    project.harness("export", str(tmp_path), "--format", file_format)
    read = pandas.read_csv if file_format == "csv" else pandas.read_parquet
    assert len(read(tmp_path / f"trials.{file_format}")) == SEARCHED + CONFIRMED + BASES


def test_a_study_is_exported_for_optuna(project, tmp_path):
    import optuna

    project.harness("export", str(tmp_path / "study.db"), "--format", "optuna", "--study", "quickstart")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    assert len(studies) == 6
    assert all(len(study.trials) == 2 for study in studies)


def test_status_tells_how_far_it_is(project):
    (status,) = json.loads(project.harness("status", "quickstart", "--json").stdout)
    assert (status["done"], status["running"], status["failed"]) == (SEARCHED + CONFIRMED + BASES, 0, {})
    assert status["steps_done"] == ["base", "search", "confirm"]


def test_records_move_to_another_project(project, fresh):
    records = list((project.folder / "results/trials").glob("*/*/record.json"))
    summary = json.loads(fresh.harness("import", str(project.folder / "results"), "--json").stdout)
    assert (summary["taken"], summary["damaged"]) == (len(records), [])
    assert len(records) >= SEARCHED + CONFIRMED + BASES
    assert json.loads(fresh.harness("import", str(project.folder / "results"), "--json").stdout)["taken"] == 0
    fresh.harness("search", "quickstart", "--quiet")
    fresh.harness("database")


def test_the_doctor_finds_nothing_wrong_here(project):
    """Whether this machine's Slurm answers is not the harness's doing: its clients are out of sight."""
    findings = json.loads(project.harness("doctor", "--json", PATH=str(Path(sys.executable).parent)).stdout)
    assert "error" not in {finding["level"] for finding in findings}
    assert "no sbatch here" in next(finding["text"] for finding in findings if finding["topic"] == "slurm")


def test_the_doctor_says_that_a_controller_does_not_answer(project, tmp_path):
    for name, answer in (("sbatch", ""), ("sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join((str(Path(sys.executable).parent), str(tmp_path), "/bin"))
    findings = json.loads(project.harness("doctor", "--json", code=1, PATH=path).stdout)
    wrong = [finding for finding in findings if finding["level"] == "error"]
    assert [finding["topic"] for finding in wrong] == ["slurm"]
    assert "Unable to contact slurm controller" in wrong[0]["text"]


def test_help_needs_no_heavy_library():
    code = "import sys, harness.cli; print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'duckdb'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.thorough
def test_a_family_that_never_works_is_a_result_and_not_the_end(fresh):
    """A learning rate that no weights survive: every trial of one family diverges, the report still comes."""
    study = fresh.folder / "studies" / "quickstart.yaml"
    content = yaml.safe_load(study.read_text())
    broken = {"method": "lora", "params": {"learning_rate": 0.02, "max_grad_norm": 0.0, "alpha": 512.0, "rank": 1}}
    content |= {"tasks": ["tb_newfacts"], "off_target": [], "families": {"full": {"method": "full"}, "broken": broken}}
    content |= {"budget": {"trials": 1, "steps": 40}, "confirm": {"finalists": 1, "seeds": 2, "limit": 20}}
    study.write_text(yaml.safe_dump(content))
    fresh.run("snakemake")
    report = (fresh.folder / "reports" / "quickstart.html").read_text()
    assert "broken" in report

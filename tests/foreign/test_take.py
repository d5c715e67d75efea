"""Runs of others: what a table says is what the records say, and what contradicts itself is refused."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.database.ingest import connect, ingest
from harness.errors import SpecError
from harness.foreign.mapping import load_mapping
from harness.foreign.take import take
from harness.plugins import load
from harness.records.bundle import bundled, read_bundle
from harness.records.paths import Paths
from harness.records.results import is_intact, write_result
from harness.records.trial import result_from_json

MAPPING = """
source: somebody, CC0
task: task
base_model: {value: base-1b}
method: {column: kind, map: {LORA: lora, FT: full}}
params: {learning_rate: lr, rank: r}
steps: steps
scores:
  - {column: acc, higher_is_better: true, low: 0, high: 1, items: 100, base: zero_shot}
costs: {train_s: {column: minutes, unit: min}, peak_memory_bytes: {column: gib, unit: GiB}, total_params: {value: 1000000000}}
model_facts: {parameters: {value: 1000000000}, type: {value: llama}}
task_facts: {rows: rows}
"""
COLUMNS = ["task", "kind", "lr", "r", "steps", "acc", "zero_shot", "minutes", "gib", "rows"]
ROWS = [
    ["sums", "LORA", 1e-4, 8, 100, 0.5, 0.25, 2.0, 4.0, 1000],
    ["sums", "FT", 1e-5, None, 100, 0.75, 0.25, 6.0, 16.0, 1000],
    ["names", "LORA", 1e-3, 8, 200, 0.9, 0.4, 3.0, 4.0, 50],
]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "map.yaml").write_text(MAPPING)
    pd.DataFrame(ROWS, columns=COLUMNS).to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path


def records(paths, name="runs"):
    return [result_from_json(json.loads(raw)) for _, raw in bundled(paths.imported(name))]


def change(folder, column, values):
    pd.DataFrame(ROWS, columns=COLUMNS).assign(**{column: values}).to_csv(folder / "runs.csv", index=False)


def test_a_row_is_a_record_with_a_foreign_provenance(paths, folder):
    taken = take(paths, folder / "runs.csv", folder / "map.yaml", None)
    assert (taken.rows, taken.runs, taken.kind, taken.exit_code) == (3, 3, "table", 0)
    runs = {(r.config.task.name, r.config.pipeline.stages[0].method): r for r in records(paths)}
    lora = runs["sums", "lora"]
    assert lora.config.pipeline.stages[0].params == {"learning_rate": 1e-4, "rank": 8}
    assert lora.config.steps == 100
    assert lora.provenance.source == "runs"
    assert (lora.target.value, lora.target.n, lora.target.scale.high) == (0.5, 100, 1)
    # 2 min are 120 s, 4 GiB are 4 x 2^30 bytes
    assert lora.cost.seconds == {"train": 120.0}
    assert lora.cost.peak_memory_bytes == 4 * 2**30
    assert runs["sums", "full"].config.pipeline.stages[0].params == {"learning_rate": 1e-5}, (
        "an empty cell is no parameter"
    )
    assert runs["sums", "none"].target.value == 0.25
    assert runs["names", "none"].target.value == 0.4
    bundle = read_bundle(paths.imported("runs"))
    assert bundle.source == "somebody, CC0"
    assert bundle.models == {"base-1b": {"log_parameters": 9.0, "type": "llama"}}
    assert bundle.tasks["sums"] == {"log_rows": 3.0}


def test_the_database_holds_them_beside_own_records(paths, folder):
    take(paths, folder / "runs.csv", folder / "map.yaml", None)
    assert ingest(paths).trials == 5, "three runs, and the base on two tasks"
    with connect(paths) as connection:
        rows = connection.execute(
            "SELECT t.task, t.method, s.value - b.value FROM trials t JOIN scores s USING (key) JOIN provenance p USING (key) "
            "JOIN base_scores b ON b.task = t.task AND b.comparability = s.comparability WHERE p.source = 'runs' AND t.steps > 0 "
            "ORDER BY ALL"
        ).fetchall()
    assert rows == [("names", "lora", 0.5), ("sums", "full", 0.5), ("sums", "lora", 0.25)]


def test_importing_again_replaces_and_checking_writes_nothing(paths, folder):
    assert take(paths, folder / "runs.csv", folder / "map.yaml", None, check=True).path == ""
    assert paths.bundles() == []
    take(paths, folder / "runs.csv", folder / "map.yaml", None)
    first = paths.imported("runs").read_bytes()
    change(folder, "acc", [0.5, 0.8, 0.9])
    take(paths, folder / "runs.csv", folder / "map.yaml", None)
    assert paths.imported("runs").read_bytes() != first
    assert len(records(paths)) == 5


def test_a_damaged_bundle_is_told_and_the_rest_goes_on(paths, folder):
    take(paths, folder / "runs.csv", folder / "map.yaml", None)
    take(paths, folder / "runs.csv", folder / "map.yaml", "again")
    raw = paths.imported("runs").read_bytes()
    paths.imported("runs").write_bytes(raw[: len(raw) // 2])
    summary = ingest(paths)
    assert summary.trials == 5
    assert "is not a whole bundle of records" in summary.damaged[0].reason


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("higher_is_better: true", "higher_is_better: false", "of acc higher is usually better"),
        ("high: 1", "high: 0.8", "acc must lie from 0.0 to 0.8, but is 0.9 on names"),
        ("unit: GiB", "unit: KB", "gib must give 0.3 to 1000 bytes for each parameter"),
        ("unit: min", "unit: ms", None),
        ("column: minutes, unit: min", "column: lr, unit: ms", "lr must give 1e-05 to 3600 seconds a step"),
    ],
)
def test_what_contradicts_its_own_numbers_is_refused(paths, folder, old, new, words):
    (folder / "map.yaml").write_text(MAPPING.replace(old, new))
    taken = take(paths, folder / "runs.csv", folder / "map.yaml", None)
    if words is None:  # 2 ms for 100 steps: quick, and not impossible
        assert not taken.doubts
        return
    assert taken.exit_code == 3
    assert paths.bundles() == []
    assert words in taken.doubts[0].text
    column = taken.doubts[0].column
    (folder / "map.yaml").write_text(MAPPING.replace(old, new) + f"sure: [{column}]\n")
    assert take(paths, folder / "runs.csv", folder / "map.yaml", None).exit_code == 0


def test_a_direction_is_held_against_curves_bases_and_other_scores(paths, tmp_path):
    """Columns without a telling name: `x` falls while runs train, lies below the base, and moves against `y`."""
    rows = [[i, at, 1 / (1 + at + i / 100), 1 - 1 / (1 + at + i / 100), 2.0] for i in range(10) for at in range(1, 11)]
    frame = pd.DataFrame(rows, columns=["i", "at", "x", "y", "base"])
    frame.to_parquet(tmp_path / "runs.parquet")
    head = "source: a\ntask: {value: t}\nbase_model: {value: b}\nmethod: {value: full}\nparams: {i: i}\n"
    text = head + "scores:\n  - {column: x, higher_is_better: true%s}\n%s"
    for extra, more, words in [
        ("", "at: at\n", "get worse the longer they train"),
        (", base: base", "", "100 of 100 runs are worse than the untuned base"),
        ("", "  - {column: y, higher_is_better: true}\n", "x and y should agree"),
    ]:
        (tmp_path / "map.yaml").write_text(text % (extra, more))
        assert any(
            words in d.text for d in take(paths, tmp_path / "runs.parquet", tmp_path / "map.yaml", None).doubts
        ), words
        (tmp_path / "map.yaml").write_text(
            (text % (extra, more)).replace("column: x, higher_is_better: true", "column: x, higher_is_better: false")
        )
        assert not take(paths, tmp_path / "runs.parquet", tmp_path / "map.yaml", None).doubts, words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("column: acc", "column: accu", "column must be one of those known, but got 'accu'"),
        ("task: task", "taks: task", "task is required: add it; taks: key must be"),
        ("steps: steps", "steps: kind", "column 'kind' must hold numbers, but has 'LORA'"),
        ("unit: min", "unit: fortnight", "unit"),
        ("base: zero_shot", "base: acc", "a base model must have one score on a task"),
        ("method: {column: kind,", "method: {column: r,", "every row must have a value, but row 2 has none"),
        ("steps: steps", "where: {task: [tasks]}", "where: task must leave some rows"),
        ("steps: steps", "status: kind", "status must be one of those known, but got 'FT'"),
        ("source: somebody, CC0\n", "", "source is required"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(paths, folder, old, new, words):
    assert old in MAPPING
    (folder / "map.yaml").write_text(MAPPING.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        take(paths, folder / "runs.csv", folder / "map.yaml", None)
    assert words.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    assert paths.bundles() == []


def test_what_is_no_file_of_runs_is_told_what_is(paths, tmp_path):
    (tmp_path / "runs.txt").write_text("nothing")
    with pytest.raises(SpecError, match=r"must be of a kind that is known, but is not: .*table.*wandb"):
        take(paths, tmp_path / "runs.txt", None, None)
    (tmp_path / "runs.parquet").write_text("nothing")
    (tmp_path / "map.yaml").write_text(MAPPING)
    with pytest.raises(SpecError, match="must be readable as table"):
        take(paths, tmp_path / "runs.parquet", tmp_path / "map.yaml", None)


def test_rows_of_one_run_are_its_curve(paths, tmp_path):
    """Run 1 goes to the end, 2 stops halfway, 3 loses its score and goes on, 4 says that it failed."""
    rows = [(1, at, 1 - at / 10, None) for at in (1, 2, 3, 4)]
    rows += [(2, at, 1 - at / 10, None) for at in (1, 2)]
    rows += [(3, at, 0.9 if at < 3 else None, None) for at in (1, 2, 3, 4)]
    rows += [(4, 1, None, "crashed")]
    pd.DataFrame(rows, columns=["i", "epoch", "value", "how"]).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "map.yaml").write_text(
        "source: a\ntask: {value: t}\nbase_model: {value: b}\nmethod: {value: full}\nparams: {i: i}\nat: epoch\nstatus: how\n"
        "steps: {value: 40}\nscores:\n  - {column: value, split: validation, higher_is_better: false}\n"
    )
    take(paths, tmp_path / "runs.csv", tmp_path / "map.yaml", None)
    runs = {r.config.pipeline.stages[0].params["i"]: r for r in records(paths)}
    assert [(p.fraction, p.step, p.score) for p in runs[1].curve] == [
        (0.25, 10, 0.9),
        (0.5, 20, 0.8),
        (0.75, 30, 0.7),
        (1, 40, 0.6),
    ]
    assert (runs[1].status, runs[1].config.fidelity, runs[1].target.value) == ("complete", 1.0, 0.6)
    assert (runs[2].status, runs[2].config.fidelity, runs[2].target.value) == ("pruned", 0.5, 0.8)
    assert (runs[3].status, runs[3].scores, len(runs[3].curve)) == ("diverged", (), 2), (
        "an early score is not a final one"
    )
    assert (runs[4].status, runs[4].scores) == ("crashed", ())


@settings(deadline=None, max_examples=30)
@given(copies=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_runs_that_are_alike_are_repetitions_and_none_is_lost(tmp_path_factory, copies):
    folder = tmp_path_factory.mktemp("alike")
    pd.DataFrame({"i": copies, "value": range(len(copies))}).to_csv(folder / "runs.csv", index=False)
    (folder / "map.yaml").write_text(
        "source: a\ntask: {value: t}\nbase_model: {value: b}\nmethod: {value: full}\nparams: {i: i}\n"
        "scores:\n  - {column: value, higher_is_better: true}\n"
    )
    paths = Paths(folder / "results", folder / "reports")
    taken = take(paths, folder / "runs.csv", folder / "map.yaml", None)
    assert taken.runs == len(copies)
    assert taken.repeated == len(copies) - len(set(copies))
    assert sorted(r.target.value for r in records(paths)) == list(range(len(copies)))
    assert all(is_intact(key, raw) for key, raw in bundled(paths.imported("runs")))


def test_an_optuna_storage(paths, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/o.db", study_name="sums", direction="maximize")
    for rate in (1e-4, 1e-3):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(rate, rate)})
        study.tell(trial, rate * 100)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    (tmp_path / "map.yaml").write_text(
        "base_model: {value: b}\nmethod: {value: lora}\nparams: {learning_rate: params.lr}\n"
        "scores:\n  - {column: value, metric: acc, split: validation, higher_is_better: true, low: 0, high: 1}\n"
    )
    before = (tmp_path / "o.db").read_bytes()
    taken = take(paths, tmp_path / "o.db", tmp_path / "map.yaml", None)
    assert (taken.kind, taken.tasks) == ("optuna", {"sums": 3})
    assert taken.statuses == {"complete": 2, "crashed": 1}
    assert {r.target.value for r in records(paths, "o") if r.target} == {0.01, 0.1}
    assert (tmp_path / "o.db").read_bytes() == before, "to look at a storage does not change it"


def test_a_journal_of_optuna(tmp_path):
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "j.log")))
    study = optuna.create_study(storage=storage, study_name="s")
    study.tell(study.ask(), 1.5)
    source = load("foreign/sources", "optuna")()
    assert source.reads(tmp_path / "j.log")
    assert source.table(tmp_path / "j.log")["value"].tolist() == [1.5]


def test_results_of_pefts_comparison_need_no_mapping(paths, tmp_path):
    """The shape of its files, of before and after `cuda_` became `accelerator_`."""
    results = tmp_path / "MetaMathQA" / "results"
    results.mkdir(parents=True)
    for name, kind, memory, score in (
        ("a", "LORA", "cuda_memory_max", 0.48),
        ("b", None, "accelerator_memory_max", 0.5),
    ):
        config = {"peft_type": kind, "r": 32, "lora_alpha": 64} if kind else None
        run = {
            "run_info": {
                "created_at": "2025-06-19T19:15:35+00:00",
                "total_time": 1993.5,
                "train_config": {
                    "model_id": "org/m",
                    "batch_size": 4,
                    "max_steps": 5000,
                    "seed": 0,
                    "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
                },
                "peft_config": config,
            },
            "train_info": {
                memory: 22e9,
                "train_time": 1796.0,
                "file_size": 10,
                "num_trainable_params": 9,
                "num_total_params": 3_000_000_000,
                "status": "success",
                "metrics": [
                    {"step": 250, "valid accuracy": 0.3},
                    {"step": 5000, "test accuracy": score, "forgetting": 0.04, "train total tokens": 4_198_051},
                ],
            },
            "meta_info": {"system_info": {"gpu": "L40S"}},
        }
        (results / f"{name}.json").write_text(json.dumps(run))
    taken = take(paths, results, None, "peft")
    assert (taken.kind, taken.tasks, taken.methods, taken.doubts) == (
        "peft_comparison",
        {"MetaMathQA": 2},
        {"lora": 1, "full": 1},
        (),
    )
    lora = next(r for r in records(paths, "peft") if r.config.pipeline.stages[0].method == "lora")
    assert lora.config.pipeline.stages[0].params["rank"] == 32
    assert lora.cost.peak_memory_bytes == 22_000_000_000
    ingest(paths)
    with connect(paths) as connection:
        assert connection.execute("SELECT DISTINCT worst FROM worst_forgetting").fetchall() == [(0.04,)]


def test_results_of_lm_eval(paths, tmp_path):
    for name, value in (("x", 0.5), ("y", 0.625)):
        (tmp_path / f"results_{name}.json").write_text(
            json.dumps(
                {
                    "results": {
                        "gsm8k": {
                            "alias": "gsm8k",
                            "exact_match,strict-match": value,
                            "exact_match_stderr,strict-match": 0.01,
                        }
                    },
                    "configs": {},
                    "n-shot": {},
                    "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}},
                    "config": {"model_args": f"pretrained=org/m,peft=adapters/{name}"},
                    "model_name": "org/m",
                    "date": 1.7e9,
                }
            )
        )
    (tmp_path / "map.yaml").write_text(
        "task: {value: gsm8k}\nbase_model: model_args.pretrained\nmethod: {value: lora}\nparams: {adapter: model_args.peft}\n"
        "scores:\n  - {column: 'gsm8k.exact_match,strict-match', metric: exact_match, higher_is_better: true, low: 0, high: 1, items: 1319,\n"
        "     stderr: 'gsm8k.exact_match_stderr,strict-match'}\n"
    )
    taken = take(paths, tmp_path, tmp_path / "map.yaml", "evals")
    assert (taken.kind, taken.base_models) == ("lm_eval", {"org/m": 2})
    assert {(r.target.value, r.target.stderr) for r in records(paths, "evals")} == {(0.5, 0.01), (0.625, 0.01)}


def test_folders_of_wandb_and_mlflow(tmp_path):
    files = tmp_path / "wandb" / "run-20260101_000000-abc" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text(
        "_wandb:\n  value: {}\nlearning_rate:\n  value: 0.001\nmodel:\n  value:\n    name: m\n"
    )
    (files / "wandb-summary.json").write_text('{"eval": {"acc": 0.5}, "_runtime": 12}')
    (tmp_path / "wandb" / "latest-run").symlink_to(files.parent)
    wandb = load("foreign/sources", "wandb")()
    assert wandb.reads(tmp_path / "wandb")
    row = wandb.table(tmp_path / "wandb").to_dict("records")
    assert row == [
        {
            "run": "run-20260101_000000-abc",
            "config.learning_rate": 0.001,
            "config.model.name": "m",
            "summary.eval.acc": 0.5,
            "summary._runtime": 12,
        }
    ]

    for name, stage in (("r1", "active"), ("r2", "deleted")):
        run = tmp_path / "mlruns" / "0" / name
        for kind in ("params", "metrics", "tags"):
            (run / kind).mkdir(parents=True)
        (run / "meta.yaml").write_text(f"lifecycle_stage: {stage}\nstatus: 3\nstart_time: 1000\nend_time: 4500\n")
        (run / "params" / "lr").write_text("0.001")
        (run / "metrics" / "acc").write_text("1000 0.25 0\n2000 0.5 10\n")
    mlflow = load("foreign/sources", "mlflow")()
    assert mlflow.reads(tmp_path / "mlruns")
    (row,) = mlflow.table(tmp_path / "mlruns").to_dict("records")
    assert (row["run"], row["status"], row["seconds"], row["params.lr"], row["metrics.acc"]) == (
        "r1",
        "FINISHED",
        3.5,
        "0.001",
        0.5,
    )


@pytest.mark.shared
def test_the_public_comparison_of_peft(paths, shared_data, tmp_path):
    """Counts from the file itself: 243 runs of MetaMathQA, 67 with a forgetting that is valid."""
    (tmp_path / "map.yaml").write_text(
        "source: PEFT\nwhere: {suite: [MetaMathQA]}\ntask: suite\nbase_model: {value: llama}\nmethod: peft_type\n"
        "params: {experiment: experiment}\nsteps: cfg_max_steps\nseed: cfg_seed\nscores:\n"
        "  - {column: test_accuracy, higher_is_better: true, low: 0, high: 1}\n"
        "  - {column: forgetting, task: text, higher_is_better: false, base: {value: 0}, valid: {forgetting_valid: [1]}}\n"
    )
    take(paths, shared_data / "runs" / "peft_method_comparison.csv", tmp_path / "map.yaml", "peft")
    ingest(paths)
    frame = pd.read_csv(shared_data / "runs" / "peft_method_comparison.csv").query("suite == 'MetaMathQA'")
    with connect(paths) as connection:
        found = connection.execute(
            "SELECT count(*), avg(value) FROM scores JOIN trials USING (key) WHERE is_target AND steps > 0"
        ).fetchone()
        lost = connection.execute("SELECT count(*), sum(worst) FROM worst_forgetting").fetchone()
    assert found == (len(frame), pytest.approx(frame.test_accuracy.mean()))
    valid = frame[frame.forgetting_valid == 1].forgetting
    assert lost == (valid.notna().sum(), pytest.approx(valid.sum()))


def test_a_mapping_file_is_checked_like_all_others(tmp_path):
    (tmp_path / "map.yaml").write_text("source: a\nsource: b\n")
    with pytest.raises(SpecError, match="source"):
        load_mapping(tmp_path / "map.yaml", {})


def test_the_example_of_the_guide(paths):
    folder = Path(__file__).parents[2] / "studies" / "imports"
    taken = take(paths, folder / "example.csv", folder / "example.yaml", None)
    assert (taken.runs, taken.statuses, taken.doubts) == (8, {"complete": 7, "diverged": 1}, ())
    assert read_bundle(paths.imported("example")).models["org/model-1b"]["log_parameters"] == pytest.approx(
        9.0414, abs=1e-4
    )


def test_a_column_of_configs_is_many_parameters(paths, tmp_path):
    config = '{"r": 8, "targets": ["q", "v"], "inner": {"x": true}, "none": null}'
    pd.DataFrame({"i": [1, 2], "acc": 0.5, "config": [config, "plain"]}).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "map.yaml").write_text(
        "source: a\ntask: {value: t}\nbase_model: {value: b}\nmethod: {value: lora}\nparams: {i: i, c: config}\n"
        "scores:\n  - {column: acc, higher_is_better: true}\n"
    )
    take(paths, tmp_path / "runs.csv", tmp_path / "map.yaml", None)
    first, second = (r.config.pipeline.stages[0].params for r in records(paths))
    assert first == {"i": 1, "c.r": 8, "c.targets": "['q', 'v']", "c.inner.x": True}
    assert second == {"i": 2, "c": "plain"}


def test_runs_of_others_teach_the_recommender(paths, folder):
    """Foreign facts of task and model reach the features; a run with a base has a gain: (.5 - .25) / (1 - .25)."""
    from harness.recommend.features import describe, observations
    from harness.recommend.lookup import most_evidence

    take(paths, folder / "runs.csv", folder / "map.yaml", None)
    ingest(paths)
    with connect(paths) as connection:
        seen = observations(paths, connection)
    lora = next(o for o in seen if o.task == "sums" and o.family == "lora")
    assert lora.gain == pytest.approx(1 / 3)
    assert describe(lora.candidate)["model.log_parameters"] == 9.0
    assert describe(lora.candidate)["task.log_rows"] == 3.0
    assert most_evidence(paths) is None, "nobody here has a base model of which only others have runs"


def test_values_of_any_library_are_read(paths, folder):
    """Arrays, pandas' own missing values and nested lists stand in Parquet files that others wrote."""
    frame = pd.DataFrame(ROWS, columns=COLUMNS).astype({"r": "Int64", "acc": "Float64"})
    frame["lr"] = [np.array([1.0, 2.0])] * len(frame)
    frame.to_parquet(folder / "runs.parquet")
    assert take(paths, folder / "runs.parquet", folder / "map.yaml", None).runs == 3
    params = [r.config.pipeline.stages[0].params for r in records(paths) if r.config.steps]
    assert [own.get("rank") for own in params] == [8, None, 8]
    assert params[0]["learning_rate"] == "[1.0, 2.0]"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("runs.csv", ",".join(COLUMNS) + "\n", "must hold at least one run, but holds none (it has no rows)"),
        (
            "runs.csv",
            ",".join(COLUMNS) + "\na,FT,1,1,-5,.5,.5,1,4,9\n",
            "steps: a run must have at least 1, but row 1 has -5",
        ),
        (
            "runs.csv",
            ",".join(COLUMNS) + "\na,FT,1,1,1e30,.5,.5,1e30,4,9\n",
            "config.steps must be a whole number of 64 bits",
        ),
        ("runs.jsonl", "[1]\n{}\n", "must be readable as table"),
        ("results_1.json", '{"results": {"a": 5}, "configs": {}, "n-shot": {}}', "must be readable as lm_eval"),
    ],
)
def test_files_of_another_shape_are_one_sentence(paths, folder, name, text, words):
    (folder / name).write_text(text)
    with pytest.raises(SpecError) as caught:
        take(paths, folder / name, folder / "map.yaml", None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert paths.bundles() == []


def test_a_database_that_is_not_optunas_is_one_sentence(paths, folder):
    with sqlite3.connect(folder / "other.db") as connection:
        connection.execute("CREATE TABLE runs (x INT)")
    with pytest.raises(SpecError, match="must be readable as optuna"):
        take(paths, folder / "other.db", folder / "map.yaml", None)


def test_a_record_that_stands_in_a_bundle_too_counts_once(paths, folder):
    take(paths, folder / "runs.csv", folder / "map.yaml", "one")
    (result, *_) = records(paths, "one")
    write_result(paths, result)
    assert ingest(paths).trials == 5


def test_imported_runs_go_along_with_a_results_folder(paths, folder, tmp_path):
    from harness.cli.listing import import_records

    there = Paths(tmp_path / "there")
    there.trials.mkdir(parents=True)
    take(there, folder / "runs.csv", folder / "map.yaml", "one")
    import_records(paths, there.results)
    assert paths.imported("one").read_bytes() == there.imported("one").read_bytes()

"""The guide's example of chats, from its text to the report, on two instruct models with templates of their own."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from harness.cli.main import main
from harness.records.paths import Paths
from harness.records.results import find_result
from tests.templates import save_instruct
from tests.tiny import save_gpt2, save_llama

GUIDE = (
    (Path(__file__).parents[2] / "docs" / "guide.md").read_text().partition("## Tune on chats")[2].partition("\n## ")[0]
)
FILES = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))
ROW = json.loads(re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)[0])


def chat(number):
    """The guide's row about another number, and a second question."""
    system, question, answer = ROW["messages"]
    question = {**question, "content": question["content"].replace("7", str(number))}
    answer = {**answer, "content": "Yes" if number % 2 else "No"}
    return [
        system,
        question,
        answer,
        {"role": "user", "content": "Even?"},
        {**answer, "content": "No" if number % 2 else "Yes"},
    ]


def rows(folder, numbers, name):
    (folder / "studies" / "tasks").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"messages": chat(number)}) + "\n" for number in numbers)
    (folder / "studies" / "tasks" / f"support_{name}.jsonl").write_text(text)


@pytest.fixture
def laid_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, range(30), "train")
    rows(tmp_path, range(30, 40), "test")
    for place, text in FILES.items():
        (tmp_path / place).write_text(text)
    save_instruct(tmp_path / "models" / "instruct", "chatml")
    save_instruct(tmp_path / "models" / "other", "llama_3", kind=save_gpt2)
    return tmp_path


def edited(folder, **changes):
    study = folder / "studies" / "support.yaml"
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | changes))


def harness(*arguments, code=0):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_the_guides_chats_are_planned_tuned_scored_and_reported(laid_out):
    edited(laid_out, base_models=["models/instruct", "models/other"])
    assert harness("plan", "support").count("tuned and scored in its chat template") == 2
    for command in ("base", "search", "confirm"):
        harness(command, "support", "--quiet", "--runner", "inline")
    harness("database")
    harness("report", "support")
    report = (laid_out / "reports" / "support.html").read_text()
    records = [
        find_result(Paths(laid_out / "results"), path.parent.name)
        for path in laid_out.glob("results/trials/*/*/record.json")
    ]
    templates = {
        record.config.pipeline.base_model.name: record.config.pipeline.base_model.chat_template for record in records
    }
    assert len(set(templates.values()) - {""}) == 2
    assert all(f"chat template {identity[:8]}" in report for identity in templates.values())
    assert {record.status.value for record in records} == {"complete"}
    scores = [score for record in records for score in record.scores]
    assert {score.metric for score in scores} == {"answer_bits_per_byte"}
    # Every answer of every chat and its end are learned: "Yes" or "No" twice, in tokens of bytes.
    tuned = next(record for record in records if record.config.steps)
    assert tuned.cost.supervised_tokens / tuned.cost.tokens < 0.2


def test_what_a_model_cannot_read_is_refused_when_it_is_planned(laid_out):
    save_llama(laid_out / "models" / "bare")
    edited(laid_out, base_models=["models/bare"])
    assert "holds chats, so models/bare must have a chat template" in harness("plan", "support", code=3)
    edited(laid_out, base_models=[{"name": "models/instruct", "chat_template": False}])
    assert "holds chats, so models/instruct must have a chat template" in harness("plan", "support", code=3)
    edited(laid_out, base_models=[{"name": "models/bare", "chat_template": True}])
    assert "must have a chat template to be tuned in it" in harness("plan", "support", code=3)
    save_instruct(laid_out / "models" / "gemma", "gemma")
    edited(laid_out, base_models=["models/gemma"])
    assert "System role not supported" in harness("plan", "support", code=3)
    assert not (laid_out / "results" / "trials").exists()

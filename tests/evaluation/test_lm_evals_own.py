"""lm-eval's own tasks by their names, on small data of their columns: planned, trained where they can be, and scored as lm-eval scores."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from harness.errors import SpecError
from harness.evaluation.proof import prove_answers, prove_scored
from harness.metrics._sandbox import why_no_sandbox
from harness.metrics.base import SHARE
from harness.models.tokens import encoder
from harness.tasks.built_in import index
from harness.tasks.file import ALLOW_CODE
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows
from tests.hub import Hub
from tests.scoring import evaluate

from .conftest import make_model, make_tokenizer

LETTERS = "ABCDEFGHIJ"
SUBJECTS = {
    name: name.replace("counting_and_probability", "counting_and_prob").replace("number_theory", "num_theory")
    for name in (
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    )
}
FIELDS = "biology,business,chemistry,computer science,economics,engineering,health,history,law,math,other,philosophy,physics,psychology"
Answer = Callable[[Mapping[str, Any], bool], str]
"""What a model says about a row, rightly or not."""


def school(first: int, count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i} and 1?", "answer": f"It is.\n#### {i + 1}"} for i in range(first, first + count)]


def problems(subject: str, first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "problem": f"{subject}: half of {i}?",
            "solution": f"It is $\\boxed{{\\frac{{{i}}}{{2}}}}$.",
            "level": "Level 5",
            "type": subject,
        }
        for i in range(first, first + count)
    ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub", monkeypatch)
    hub.add("openai/gsm8k", "main", train=school(0, 20), test=school(100, 8))
    for number, subject in enumerate(SUBJECTS):
        rows = {"train": problems(subject, 1, 12), "test": problems(subject, 51, 2 + number % 3)}
        hub.add("EleutherAI/hendrycks_math", subject, **rows)
    words = [{"relation": "at least", "num_words": n} for n in range(1, 11)]
    hub.add(
        "google/IFEval",
        train=[
            {
                "key": n,
                "prompt": f"Write {n} words.",
                "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
                "kwargs": [own, {}],
            }
            for n, own in enumerate(words)
        ],
    )
    programs = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f"def add_{n}(x):\n",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            "entry_point": f"add_{n}",
        }
        for n in range(1, 6)
    ]
    hub.add("openai/openai_humaneval", test=programs)
    exams = [
        {
            "question_id": n,
            "question": f"{field} {n}?",
            "options": ["one", "two", "three"],
            "answer": LETTERS[n % 3],
            "answer_index": n % 3,
            "category": field,
            "cot_content": "A: Let's think step by step.",
            "src": "",
        }
        for number, field in enumerate(FIELDS.split(","))
        for n in range(4 + number % 4)
    ]
    hub.add("TIGER-Lab/MMLU-Pro", test=exams, validation=exams[:3])
    return hub


def number_after(beginning: str, end: str) -> Answer:
    return lambda doc, right: f"{beginning}{doc['answer'].split('#### ')[-1] if right else '7'}{end}"


SAID: dict[str, Answer] = {
    "gsm8k": number_after(" It is.\n#### ", ""),
    "gsm8k_cot": number_after(" So it is. The answer is ", "."),
    "minerva_math": number_after(" Final Answer: The final answer is $", "$. I hope it is correct."),
    "ifeval": lambda doc, right: "word " * 12 if right else "word,",
    "humaneval": lambda doc, right: doc["canonical_solution"] if right else "    return None\n",
    "mmlu_pro": lambda doc, right: f" So the answer is ({doc['answer'] if right else 'J'}). Question: more",
}


def is_right(doc: Mapping[str, Any]) -> bool:
    """Of two rows in three."""
    return hashlib.sha256(repr(sorted(doc.items())).encode()).digest()[0] % 3 > 0


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets lm-eval's model say what a task's `Answer` says, whoever asks."""
    from lm_eval.models.huggingface import HFLM

    def script(name: str) -> None:
        def said(self: Any, requests: Sequence[Any], **options: Any) -> list[str]:
            return [SAID[name](request.doc, is_right(request.doc)) for request in requests]

        monkeypatch.setattr(HFLM, "generate_until", said)

    return script


def lm_evals(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What lm-eval itself makes of the same model on the whole task, without examples."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = index().files
    leaf = "minerva_math_algebra" if name == "minerva_math" else name
    folders = {files[one].parent for one in (name, leaf)}  # some groups lie apart from their tasks
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    found: dict[str, Any] = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=[name],
        num_fewshot=0,
        task_manager=manager,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        log_samples=True,
    )
    return found


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = index().files["humaneval"].parent
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("humaneval.yaml", "utils.py")]
    monkeypatch.setenv(ALLOW_CODE, ",".join(hashes))


@pytest.mark.parametrize("name", SAID)
def test_by_name_each_item_is_scored_as_by_lm_eval(
    hub: Hub, scripted: Callable[[str], None], allowed: None, name: str
) -> None:
    if name == "humaneval" and (reason := why_no_sandbox()):
        pytest.skip(reason)
    if name in ("ifeval", "minerva_math"):
        pytest.importorskip("langdetect" if name == "ifeval" else "math_verify")
    scripted(name)
    model, tokenizer = make_model(context=4096), make_tokenizer(bos=False)
    task = find_task(name, ())
    for leaf in task.leaves:
        prove_scored(leaf, "test", lm_eval_task(leaf, "test"))
    ours, theirs = evaluate(model, tokenizer, task, "test", None), lm_evals(name, model, tokenizer)
    metric = "pass@1" if name == "humaneval" else task.metric
    for leaf, own in zip(task.leaves, ours.tasks or (ours,), strict=True):
        samples = {
            one["doc_hash"]: one[metric] for one in theirs["samples"][leaf.name] if one["filter"] == one_filter(leaf)
        }
        assert own.items
        assert [item.value for item in own.items] == [float(samples[item.doc_hash]) for item in own.items]
        assert own.score.value == pytest.approx(fmean(samples[item.doc_hash] for item in own.items))
    assert task.scale == SHARE  # or what was forgotten of it would have no size
    right = [is_right(doc) for leaf in task.leaves for _, doc in lm_eval_task(leaf, "test").doc_iterator()]
    assert 0 < sum(right) < len(right)  # or all would be equal whatever was done
    assert ours.score.value == pytest.approx(fmean(right))
    if name == "minerva_math":  # of a data split as a whole
        parts = {score.task: score.value for score in ours.parts}
        assert parts == {
            leaf.name: pytest.approx(theirs["results"][leaf.name]["exact_match,none"]) for leaf in task.leaves
        }


@pytest.fixture
def suites(hub: Hub) -> Hub:
    """Data of the leaderboard's and of AGIEval's kinds."""
    others = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    gpqa = [{"Question": f"What is {n}?", "Correct Answer": f"it is {n}", **others} for n in range(15)]
    hub.add("Idavidrein/gpqa", "gpqa_main", train=gpqa)
    bbh = [{"input": f"not {n} is", "target": ("False", "True")[n % 2]} for n in range(8)]
    hub.add("SaylorTwift/bbh", "boolean_expressions", test=bbh)
    musr = [
        {
            "narrative": f"Story {n}.",
            "question": "Who?",
            "choices": "['Ann', 'Bob']",
            "answer_index": n % 2,
            "answer_choice": ("Ann", "Bob")[n % 2],
        }
        for n in range(8)
    ]
    hub.add("TAUR-Lab/MuSR", murder_mysteries=musr)
    aqua = [{"query": f"Q: {n}?", "choices": ["(A)1", "(B)2", "(C)33"], "gold": [n % 3, 2]} for n in range(8)]
    hub.add("hails/agieval-aqua-rat", test=aqua)
    hub.add("hails/agieval-math", test=[{"query": f"Q: {n}?", "answer": f"{n}"} for n in range(8)])
    return hub


@pytest.mark.parametrize(
    "name",
    [
        "leaderboard_gpqa_main",
        "leaderboard_bbh_boolean_expressions",
        "leaderboard_musr_murder_mysteries",
        "leaderboard_mmlu_pro",
        "agieval_aqua_rat",
    ],
)
def test_by_name_each_choice_is_scored_as_by_lm_eval(suites: Hub, name: str) -> None:
    model, tokenizer = make_model(context=256), make_tokenizer(bos=False)
    task = find_task(name, ())
    prove_scored(task, "test", lm_eval_task(task, "test"))
    ours, theirs = evaluate(model, tokenizer, task, "test", None), lm_evals(name, model, tokenizer)
    samples = {one["doc_hash"]: float(one[task.metric]) for one in theirs["samples"][name]}
    # GPQA's choices are shuffled row by row, so that a part of the rows has them in another order than all rows have.
    same = [item for item in ours.items if item.doc_hash in samples]
    assert len(same) == len(ours.items) or name == "leaderboard_gpqa_main"
    assert [item.value for item in same] == [samples[item.doc_hash] for item in same]
    assert ours.score.n >= 6


def test_choices_that_a_task_shuffles_stay_where_they_are(suites: Hub) -> None:
    from harness.tasks import task as tasks

    rows = []
    for state in (1, 2):
        random.seed(state)
        tasks._all_rows.cache_clear()
        tasks._rows.cache_clear()
        rows.append(find_task("leaderboard_gpqa_main", ()).split("test").to_list())
        assert random.random() == random.Random(state).random()  # nobody else's numbers are used up
    assert rows[0] == rows[1]
    assert len({row["answer"] for row in rows[0]}) > 1


def test_what_has_nothing_to_train_on_is_scored_only_and_says_so(suites: Hub) -> None:
    task = find_task("leaderboard_gpqa_main", ())
    assert sorted(task.parts) == ["test", "validation"]
    assert task.size("validation") + task.size("test") == 15
    assert "its split 'train' is scored, so that nothing is left to train on" in task.notes
    for name, file in (
        ("leaderboard_gpqa_main", "gpqa_main_zeroshot"),
        ("ifeval", "ifeval"),
        ("gsm8k_cot", "gsm8k-cot"),
    ):
        message = f"{name} must have a train split .* write a task file of your own .* includes lm-eval's .*{file}.yaml"
        with pytest.raises(SpecError, match=message):
            training_rows(find_task(name, ()))


def test_a_data_file_that_lies_on_the_hub(hub: Hub) -> None:
    """lm-eval's `arithmetic` names single files of a dataset."""
    with pytest.raises(
        SpecError, match="the hub dataset EleutherAI/arithmetic must be in the hub's cache or reachable"
    ):
        find_task("arithmetic_1dc", ())
    hub.add("EleutherAI/arithmetic", other=[{"context": "x", "completion": "y"}])
    with pytest.raises(SpecError, match=r"data file hf://.*single_digit_three_ops.jsonl must be in the hub's cache"):
        find_task("arithmetic_1dc", ())
    rows = [{"context": f"Question: What is {n} + 1? Answer:", "completion": f" {n + 1}"} for n in range(10)]
    hub.file("EleutherAI/arithmetic", "data/single_digit_three_ops.jsonl", rows)
    task = find_task("arithmetic_1dc", ())
    assert task.size("validation") + task.size("test") == 10
    outcome = evaluate(make_model(context=256), make_tokenizer(bos=False), task, "test", None)
    assert (outcome.score.metric, outcome.score.n) == ("acc", 8)


def test_gsm8k_proves_itself(hub: Hub) -> None:
    task = find_task("gsm8k", ())
    assert "scored without the 5 examples that its prompt may hold elsewhere" in check_task(task)
    assert training_rows(task)[0].completion.startswith(" It is.\n#### ")
    assert list(prove_answers(task, None, encoder(make_tokenizer(bos=False)), "M")) == []


OWN = """
include: {file}
task: mathematics
doc_to_target: "{{{{solution}}}}\\nFinal Answer: The final answer is ${{{{answer}}}}$. I hope it is correct."
"""


def test_minerva_is_refused_for_training_and_a_file_that_includes_it_is_not(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("math_verify")
    tokens = encoder(make_tokenizer(bos=False))
    task = find_task("minerva_math_algebra", ())
    with pytest.raises(
        SpecError, match=r"row 1 teaches must score the best exact_match, .* write a task of your own that includes"
    ):
        list(prove_answers(task, None, tokens, "M"))
    theirs = index().files["minerva_math_algebra"]
    (tmp_path / "mathematics.yaml").write_text(OWN.format(file=theirs))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (theirs, theirs.parent / "utils.py")]
    monkeypatch.setenv(ALLOW_CODE, ",".join(hashes))
    own = find_task("mathematics", (tmp_path,))
    assert training_rows(own)[0].completion.endswith("The final answer is $\\frac{1}{2}$. I hope it is correct.")
    assert list(prove_answers(own, None, tokens, "M")) == []


def one_filter(task: Any) -> str:
    """The name of the filter that counts."""
    filters = task.config.get("filter_list")
    return str(filters[0]["name"]) if filters else "none"

"""Scores in a chat template are lm-eval's own with `apply_chat_template`, and what is trained is what is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.axes.encoding import encoded
from harness.evaluation.evaluate import Evaluated, Evaluator, comparability, scoring_mode
from harness.evaluation.loglikelihood import StackedModels
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.models.chat import ChatTemplate, in_template, template_of
from harness.models.tokens import TokenCache, encoder
from harness.tasks.lm_eval_task import _built, lm_eval_task
from harness.tasks.task import Task, find_task
from harness.tasks.training_rows import training_rows
from tests.templates import TEMPLATES, save_instruct
from tests.tiny import save_tasks

from ..tasks.writing import CHOICE, GENERATE, write_task

Model = tuple[Any, Any, ChatTemplate]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    found = {}
    for name in TEMPLATES:
        base = in_template(resolve_model(str(save_instruct(tmp_path_factory.mktemp(name), name))))
        template = template_of(base)
        assert template is not None
        found[name] = (load_model(base, {}, "cpu").eval(), load_tokenizer(base), template)
    return found


def ours(model: Model, task: Task) -> Evaluated:
    live, tokenizer, template = model
    (outcome,) = Evaluator(TokenCache()).evaluate(StackedModels(live), tokenizer, task, "test", None, template=template)
    assert isinstance(outcome, Evaluated), outcome
    return outcome


def lm_evals(model: Model, task: Task) -> tuple[float, list[Any]]:
    """Score and responses by lm-eval from the plain task, which renders its prompts itself."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    live, tokenizer, _ = model
    with scoring_mode(live):
        peer = HFLM(pretrained=live, tokenizer=tokenizer, batch_size=1, softmax_dtype=torch.float32)
        built = _built.__wrapped__(task, "test", None, None)
        results = lm_eval.evaluate(
            peer,
            {"tasks": {task.name: built}},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    samples = results["samples"][task.name]
    value = results["results"][task.name][f"{task.metric},{samples[0]['filter']}"]
    return value, [sample["resps"] for sample in samples]


KINDS: dict[str, dict[str, Any]] = {
    "choices": CHOICE,
    "choices after a prefix": CHOICE | {"gen_prefix": "It is"},
    "choices in the question": CHOICE
    | {"doc_to_text": "{{0}}", "doc_to_choice": "{{['Is ' + text, 'Or ' + text]}}", "doc_to_target": " so"},
    "normalised choices": CHOICE
    | {"metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}]},
    "an answer": CHOICE
    | {
        "output_type": "loglikelihood",
        "doc_to_choice": None,
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    },
    "generated": GENERATE,
    "generated after a prefix": GENERATE | {"gen_prefix": "It is"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_tasks_get_lm_evals_score(models: dict[str, Model], tmp_path: Path, name: str, kind: str) -> None:
    write_task(
        tmp_path,
        KINDS[kind],
        test=[{"text": f"word{i}" * (i % 3 + 1), "label": ["no", "yes"][i % 2]} for i in range(5)],
    )
    task = find_task("mine", (tmp_path,))
    value, responses = lm_evals(models[name], task)
    found = ours(models[name], task)
    assert found.score.value == pytest.approx(value, rel=1e-5)
    built = lm_eval_task(task, "test", None, models[name][2])
    own = [[instance.resps[0] for instance in built.instances if instance.doc_id == number] for number in range(5)]
    flat = [[response[0] for response in item] for item in responses]
    if task.output_type == "generate_until":
        assert own == flat
    else:
        assert [nats for item in own for nats, _ in item] == pytest.approx(
            [nats for item in flat for nats, _ in item], rel=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_is_what_is_scored(models: dict[str, Model], tmp_path: Path, name: str, kind: str) -> None:
    rows = [{"text": f"word{i}", "label": ["no", "yes"][i % 2]} for i in range(4)]
    write_task(tmp_path, KINDS[kind] | {"validation_split": "test"}, rows, rows)
    _, tokenizer, template = models[name]
    task = find_task("mine", (tmp_path,))
    built = lm_eval_task(task, "train", None, template)
    built.build_all_requests()
    generates = task.output_type == "generate_until"
    own = training_rows(task, template)
    asked = [instance.args for instance in built.instances]
    for row, sequence in zip(own, encoded(own, encoder(tokenizer), generates), strict=True):
        if generates:
            assert row.prompt in [prompt for prompt, _ in asked]
            (prompt,) = encoder(tokenizer).prompts([row.prompt])
            assert sequence.input_ids[: len(prompt)] == prompt
            continue
        assert (row.prompt, row.completion) in asked
        ((prompt, completion),) = encoder(tokenizer).pairs([(row.prompt, row.completion)])
        assert sequence.input_ids[: len(prompt) + len(completion)] == prompt + completion
        # What follows is the end of the turn: the answer is learned to its end.
        assert tokenizer.decode(sequence.input_ids[len(prompt) + len(completion) :]).startswith(row.end)


def test_the_score_of_a_chat_is_that_of_its_last_answer(models: dict[str, Model], tmp_path: Path) -> None:
    import math

    import torch

    chats = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"it is {i}"}] for i in range(6)]
    chats = [[*chat, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}] for chat in chats]
    config = {key: value for key, value in CHOICE.items() if not key.startswith("doc_to")}
    config |= {
        "output_type": "loglikelihood",
        "metric_list": [{"metric": "answer_bits_per_byte"}],
        "metadata": {"chat": {}},
    }
    write_task(tmp_path, config, [{"messages": chat} for chat in chats[:4]], [{"messages": chat} for chat in chats[4:]])
    task = find_task("mine", (tmp_path,))
    live, tokenizer, _ = models["llama_3"]
    bits = []
    for chat in chats[4:]:
        prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt + "yes", add_special_tokens=False, return_tensors="pt")["input_ids"]
        logits = live(ids).logits[0].log_softmax(-1)
        # The white space before the answer is scored with it, as lm-eval does.
        places = range(len(ids[0]) - len("\n\nyes"), len(ids[0]))
        bits.append(-sum(logits[place - 1, ids[0, place]].item() for place in places) / math.log(2) / len("yes"))
    with torch.no_grad():
        found = ours(models["llama_3"], task)
    assert found.score.value == pytest.approx(sum(bits) / 2, rel=1e-5)
    assert not found.score.higher_is_better


def test_scores_in_a_template_are_not_compared_with_plain_ones(models: dict[str, Model], tmp_path: Path) -> None:
    _, tokenizer, template = models["chatml"]
    task = find_task("echo", (save_tasks(tmp_path),))
    facts = TokenCache().facts(tokenizer)
    plain, chat = comparability(task, tokenizer, facts), comparability(task, tokenizer, facts, template=template)
    other = comparability(task, tokenizer, facts, template=models["marked"][2])
    assert len({plain, chat, other}) == 3

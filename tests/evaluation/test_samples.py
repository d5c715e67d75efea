"""Several answers to an item: drawn as the task's file says, from the model's own distribution, the same in any company."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.evaluation.evaluate import scoring_mode
from harness.evaluation.generation import seeded
from harness.evaluation.loglikelihood import StackedModels
from harness.evaluation.responses import Responder
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import Task, find_task
from tests.scoring import comparable, evaluate, evaluate_together

from ..tasks.writing import GENERATE, write_task
from .conftest import make_model
from .test_together import assert_close, lora_stack

DRAWN = GENERATE | {
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0},
    "repeats": 5,
}
ASKED = [{"text": "x" * size, "label": "no"} for size in (1, 7, 30, 12, 3)]
LETTER = "([!-~])"
MAJORITY = [{"function": "regex", "regex_pattern": LETTER}, {"function": "majority_vote"}, {"function": "take_first"}]


@pytest.fixture
def task(tmp_path: Path) -> Any:
    def build(**changes: Any) -> Task:
        write_task(tmp_path, DRAWN | changes, test=ASKED)
        return find_task("mine", (tmp_path,))

    return build


def given(model: Any, tokenizer: Any, one: Task, batch_size: int | None = None) -> list[list[str]]:
    built = lm_eval_task(one, "test", None, None)
    built.build_all_requests()
    with scoring_mode(model):
        (found,) = Responder().respond(StackedModels(model), tokenizer, built, batch_size)
    assert found is not None
    return found


def frequencies(options: dict[str, Any], logits: list[float], draws: int = 20000) -> np.ndarray:
    import torch

    process = seeded(options, list(range(draws)), prompt=3)
    scores = process(torch.zeros(draws, 3, dtype=torch.long), torch.tensor([logits]).repeat(draws, 1))
    return np.bincount(scores.argmax(1).numpy(), minlength=len(logits)) / draws


def test_draws_follow_the_softmax() -> None:
    """Logits ln 5, ln 3, ln 2 are shares .5, .3, .2; at temperature 1/2 their squares, 25, 9, 4 of 38."""
    logits = [float(np.log(5)), float(np.log(3)), float(np.log(2))]
    # three standard deviations of a share from 20000 draws are at most .011
    assert frequencies({}, logits) == pytest.approx([0.5, 0.3, 0.2], abs=0.011)
    assert frequencies({"temperature": 0.5}, logits) == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.011)
    assert frequencies({"top_k": 2}, logits) == pytest.approx([5 / 8, 3 / 8, 0], abs=0.011)
    assert frequencies({"top_p": 0.4}, logits).tolist() == [1.0, 0.0, 0.0]
    assert frequencies({"min_p": 0.5}, logits) == pytest.approx([5 / 8, 3 / 8, 0], abs=0.011)


def test_positions_and_seeds_are_drawn_independently() -> None:
    import torch

    scores, seeds = torch.zeros(4000, 2), list(range(4000))
    first, second = (seeded({}, seeds, 1)(torch.zeros(4000, size), scores).argmax(1) for size in (1, 2))
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.024)
    assert first[:-1].eq(first[1:]).float().mean().item() == pytest.approx(0.5, abs=0.024)


def test_each_item_has_as_many_answers_as_asked_for(task: Any, model: Any, tokenizer: Any) -> None:
    found = given(model, tokenizer, task())
    assert [len(texts) for texts in found] == [5] * 5
    assert len({text for texts in found for text in texts}) > 20


def test_draws_depend_on_nothing_but_the_prompt(task: Any, model: Any, tokenizer: Any) -> None:
    import torch

    state = torch.get_rng_state()
    whole = given(model, tokenizer, task())
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert given(model, tokenizer, task()) == whole
    for size in (1, 2):
        assert given(model, tokenizer, task(), size) == whole


def test_one_answer_is_the_first_of_many(task: Any, model: Any, tokenizer: Any) -> None:
    many, one = given(model, tokenizer, task()), given(model, tokenizer, task(repeats=1))
    assert [texts[:1] for texts in many] == one


def test_a_text_is_what_its_logits_and_noise_say(task: Any, model: Any, tokenizer: Any) -> None:
    """Token by token without a cache, from the model's logits and the noise of the prompt's seed."""
    import torch

    from harness.records.trial import derive_seed

    one = task(repeats=2, generation_kwargs=DRAWN["generation_kwargs"] | {"until": []})
    built = lm_eval_task(one, "test", None, None)
    built.build_all_requests()
    found = given(model, tokenizer, one)
    model.eval()
    for instance, texts in zip(built.instances, found, strict=True):
        prompt = tokenizer.encode(instance.args[0])
        for repeat, text in enumerate(texts):
            noise = seeded({}, [derive_seed("answer", repeat, *prompt)], len(prompt))
            ids = torch.tensor([prompt])
            for _ in range(6):
                with torch.no_grad():
                    scores = model(input_ids=ids).logits[:, -1]
                ids = torch.cat([ids, noise(ids, scores).argmax(1, keepdim=True)], 1)
            new = ids[0, len(prompt) :].tolist()
            new = new[: new.index(0)] if 0 in new else new
            assert text == tokenizer.decode(new, skip_special_tokens=True).split("</s>")[0]


def test_low_temperature_and_top_1_are_greedy(task: Any, model: Any, tokenizer: Any) -> None:
    kinds = DRAWN["generation_kwargs"]
    greedy = given(model, tokenizer, task(generation_kwargs=kinds | {"do_sample": False}))
    assert [len(texts) for texts in greedy] == [1] * 5
    for changes in ({"temperature": 1e-6}, {"top_k": 1}):
        cold = given(model, tokenizer, task(generation_kwargs=kinds | changes))
        assert cold == [texts * 5 for texts in greedy]


def test_several_models_draw_as_each_alone(task: Any, bos_tokenizer: Any) -> None:
    models, stack = lora_stack(3)
    for changes in ({}, {"filter_list": [{"name": "vote", "filter": MAJORITY}]}):
        one = task(**changes)
        together = evaluate_together(stack, 3, bos_tokenizer, one, "test", None)
        alone = [evaluate(model, bos_tokenizer, one, "test", None) for model in models]
        for own, found in zip(alone, together, strict=True):
            assert_close(own, found)
        assert len({outcome.items for outcome in alone}) > 1


def test_votes_are_counted(task: Any, model: Any, tokenizer: Any) -> None:
    """lm-eval's filters on our samples: the first letter that most of nine answers have."""
    kinds = DRAWN["generation_kwargs"] | {"temperature": 0.3}
    one = task(repeats=9, generation_kwargs=kinds, filter_list=[{"name": "vote", "filter": MAJORITY}])
    found = evaluate(model, tokenizer, one, "test", None)
    wanted = []
    for texts in given(model, tokenizer, one):
        letters = [match[0] if (match := re.search(LETTER, text)) else "[invalid]" for text in texts]
        wanted.append(Counter(letters).most_common(1)[0][0])
    assert [item.prediction for item in found.items] == wanted
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_of_several_answers_count_for_filters(task: Any, model: Any, tokenizer: Any, count: int) -> None:
    first = [{"function": "take_first_k", "k": count}, {"function": "majority_vote"}, {"function": "take_first"}]
    one = task(filter_list=[{"name": "few", "filter": first}])
    found = evaluate(model, tokenizer, one, "test", None)
    wanted = [Counter(texts[:count]).most_common(1)[0][0] for texts in given(model, tokenizer, one)]
    assert [item.prediction for item in found.items] == wanted


def test_clusters_are_a_filter(task: Any, model: Any, tokenizer: Any) -> None:
    from harness.metrics._clusters import chosen

    cluster = [{"function": "cluster_vote", "pattern": ".", "clusters": 2}, {"function": "take_first"}]
    one = task(repeats=7, filter_list=[{"name": "cluster", "filter": cluster}])
    found = evaluate(model, tokenizer, one, "test", None)
    assert [item.prediction for item in found.items] == [chosen(t, ".", 2) for t in given(model, tokenizer, one)]


def test_programs_are_scored_over_all_samples(task: Any, token_after: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """A model sure of ' 1' after ':' and of a line's end after that: 'x = 1' holds in each of three samples."""
    from harness.metrics._sandbox import why_no_sandbox
    from harness.tasks.file import ALLOW_CODE, file_sha256

    if reason := why_no_sandbox():
        pytest.skip(reason)
    space, number, end, colon = tokenizer.encode(" 1\n:")
    sure = token_after({colon: space, space: number, number: end, end: end})
    entry = {"metric": "pass_at_k", "k": 2, "program": "x = {{completion}}\nassert x == {{text|length}}"}
    try:
        task(metric_list=[entry], repeats=3, unsafe_code=True)
    except Exception as error:
        path = Path(re.findall(r"\S+mine\.yaml", str(error))[0])
        monkeypatch.setenv(ALLOW_CODE, file_sha256(path))
    one = task(metric_list=[entry], repeats=3, unsafe_code=True)
    found = evaluate(sure, tokenizer, one, "test", 5)
    assert [len(texts) for texts in given(sure, tokenizer, one)] == [3] * 5
    assert sorted(item.value for item in found.items) == [0.0] * 4 + [1.0]  # one of five texts has one character


def test_a_recurrent_model_generates_as_alone(tmp_path: Path) -> None:
    """transformers' RWKV mixes up the states of a batch's rows, and reads padding as text."""
    import torch
    from transformers import RwkvConfig, RwkvForCausalLM

    from tests.tiny import save_tokenizer

    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=258, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, bos_token_id=0, eos_token_id=0
    )
    model = RwkvForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "rwkv"
    model.save_pretrained(folder)
    save_tokenizer(folder)
    base = resolve_model(str(folder))
    model, tokenizer = load_model(base, {}, "cpu"), load_tokenizer(base)
    write_task(tmp_path, GENERATE | {"generation_kwargs": {"until": [], "max_gen_toks": 6}}, test=ASKED)
    one = find_task("mine", (tmp_path,))
    built = lm_eval_task(one, "test", None, None)
    built.build_all_requests()
    for instance, (text,) in zip(built.instances, given(model, tokenizer, one), strict=True):
        ids = tokenizer(instance.args[0], return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(6):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        new = ids[0, start:].tolist()
        new = new[: new.index(0)] if 0 in new else new
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_seconds_are_no_part_of_what_two_evaluations_share(task: Any, tokenizer: Any) -> None:
    model = make_model()
    first, again = (evaluate(copy.deepcopy(model), tokenizer, task(), "test", None) for _ in range(2))
    assert first == again
    assert first.latency_s != again.latency_s


def test_a_trials_record_says_how_long_generation_took(world: Any, tmp_path: Path) -> None:
    from harness.records.paths import Paths
    from harness.trial.group import Workspace, run_trial
    from tests.tiny import config, stage

    plan = config(world, stage(), task="echo", off_target=("colour",), steps=2, fractions=(1.0,))
    result = run_trial(plan, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    latency = result.provenance.effective.latency_s
    assert set(latency) == {"echo"}  # nothing is generated for choices
    assert 0 < latency["echo"] * 8 <= result.cost.seconds["evaluate"]


def test_scores_of_drawn_answers_are_not_compared_with_those_of_likeliest_ones(task, tokenizer):
    """A built-in task's fingerprint is that of its file, which was scored greedily before."""
    drawn = task()
    greedy = replace(drawn, config=dict(drawn.config) | {"generation_kwargs": {"do_sample": False}, "repeats": 1})
    assert greedy.ref == drawn.ref
    assert comparable(greedy, tokenizer) != comparable(drawn, tokenizer)
    thrice = replace(drawn, config=dict(drawn.config) | {"repeats": drawn.config["repeats"] + 2})
    assert comparable(thrice, tokenizer) != comparable(drawn, tokenizer)

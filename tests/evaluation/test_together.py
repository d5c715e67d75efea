"""Models scored side by side get what each gets alone, and each gets what lm-eval gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.axes.contract import Situation
from harness.evaluation.evaluate import Evaluated, Evaluator, ScoreOutcome, scoring_mode
from harness.evaluation.loglikelihood import StackedModels
from harness.evaluation.responses import Responder
from harness.methods.base import Method
from harness.models.base_model import load_tokenizer, resolve_model
from harness.models.facts import model_facts
from harness.models.tokens import TokenCache
from harness.plugins import load, names
from harness.records.trial import Ended
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import Task, find_task
from tests.conftest import World
from tests.patience import THOROUGH
from tests.scoring import evaluate, evaluate_together

from ..tasks.writing import CHOICE, GENERATE, ROLLING, ROWS, write_task
from ..tiny import attached, stage
from .conftest import make_model, make_tokenizer

Writer = Callable[..., Task]
LIKELIHOOD: dict[str, Any] = CHOICE | {
    "output_type": "loglikelihood",
    "doc_to_choice": None,
    "doc_to_target": " {{label}}",
}
KINDS = {"choice": CHOICE, "likelihood": LIKELIHOOD, "text": ROLLING, "generate": GENERATE}


@pytest.fixture
def task(tmp_path: Path) -> Writer:
    def build(config: dict[str, Any], test: list[dict[str, Any]] = ROWS[30:], **changes: Any) -> Task:
        write_task(tmp_path, config | changes, test=test)
        return find_task("mine", (tmp_path,))

    return build


def random_model(seed: int) -> Any:
    """A model that is sure enough of what it says for rounding not to matter."""
    import torch

    model = make_model(seed=seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def side_by_side(models: list[Any]) -> Any:
    """Models of one class as one, without stacking a thing: each is called with its own rows."""
    import torch

    host = deepcopy(models[0])

    def forward(input_ids: Any, logits_to_keep: int = 0, **options: Any) -> Any:
        parts = input_ids.chunk(len(models))
        shared = {key: value for key, value in options.items() if key not in ("attention_mask", "position_ids")}
        own = {
            key: value.chunk(len(models)) for key, value in options.items() if key not in shared and value is not None
        }
        shared |= {"use_cache": False, "past_key_values": None}
        outputs = [
            model(input_ids=part, **{key: value[k] for key, value in own.items()}, **shared).logits
            for k, (model, part) in enumerate(zip(models, parts, strict=True))
        ]
        return SimpleNamespace(logits=torch.cat(outputs), past_key_values=None)

    host.forward = forward
    host.get_output_embeddings = lambda: None
    return host


def lora_stack(count: int) -> tuple[list[Any], Any]:
    """Models with LoRA of mixed ranks, and the same stacked."""
    import torch

    from harness.axes.contract import StageSetup
    from harness.nn.stack import Stack
    from harness.space import Params, defaults

    models, methods = [], []
    for number in range(count):
        method = load("methods", "lora")()
        params = Params(defaults(method.space), rank=2 + number)
        setup = StageSetup(
            params=params,
            tokenizer=make_tokenizer(False),
            device="cpu",
            seed=1,
            steps=1,
            load_base=make_model,
            corpus=list,
        )
        torch.manual_seed(number)
        models.append(method.attach(random_model(0), setup).eval())
        for name, parameter in models[-1].named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        methods.append(method)
    return models, Stack(models, methods).model


def assert_close(one: Evaluated, other: ScoreOutcome) -> None:
    """Equal predictions and outcomes; log-likelihoods within rounding."""
    assert isinstance(other, Evaluated)
    assert [item.doc_hash for item in one.items] == [item.doc_hash for item in other.items]
    assert [item.prediction for item in one.items] == [item.prediction for item in other.items]
    assert [item.value for item in one.items] == pytest.approx([item.value for item in other.items], rel=1e-5)
    assert one.score.value == pytest.approx(other.score.value, rel=1e-5)
    assert one.score.comparability == other.score.comparability


@pytest.mark.parametrize("kind", ["choice", "likelihood", "text"])
def test_side_by_side_is_like_alone(task: Writer, tokenizer: Any, kind: str) -> None:
    models = [random_model(seed) for seed in range(3)]
    rows = [{"text": f"t{i}", "label": "abc"} for i in range(9)]
    one = task(KINDS[kind], test=rows, doc_to_choice=["abc", "yes", "no"] if kind == "choice" else None)
    together = evaluate_together(side_by_side(models), 3, tokenizer, one, "test", None)
    alone = [evaluate(model, tokenizer, one, "test", None) for model in models]
    assert len({outcome.items for outcome in alone}) == 3 or kind == "likelihood"
    for own, found in zip(alone, together, strict=True):
        assert_close(own, found)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_stack_of_adapters_is_scored_like_each_alone(task: Writer, bos_tokenizer: Any, kind: str) -> None:
    models, stack = lora_stack(3)
    rows = [{"text": "x" * size, "label": "no"} for size in (1, 7, 90, 30)]
    one = task(
        KINDS[kind], test=rows, doc_to_choice=["no way", "no", "yes, of course", "yes"] if kind == "choice" else None
    )
    for split, limit in (("test", None), ("test", 2)):
        together = evaluate_together(stack, 3, bos_tokenizer, one, split, limit)
        for model, found in zip(models, together, strict=True):
            assert_close(evaluate(model, bos_tokenizer, one, split, limit), found)
    if kind != "generate":
        built = lm_eval_task(one, "test", None, None)
        with scoring_mode(stack):
            given = Responder().respond(StackedModels(stack, 3), bos_tokenizer, built)
            for model, found in zip(models, given, strict=True):
                (alone,) = Responder().respond(StackedModels(model), bos_tokenizer, built)
                assert np.allclose(np.array(found, dtype=float), np.array(alone, dtype=float), atol=1e-4, rtol=0)


STACKABLE = [name for name in names("methods") if not load("methods", name).alone]


@pytest.mark.parametrize("method", STACKABLE)
def test_every_method_that_stacks_is_scored_like_alone(world: World, method: str) -> None:
    """Choices that branch, whole texts, and generation; positions are stacked, too, where they are learned.

    Outside CI on one architecture.
    """
    able = [folder for folder in (world.llama, world.gpt2) if not refusal(method, folder)]
    for folder in able if THOROUGH else [able[STACKABLE.index(method) % len(able)]]:
        assert_scored_like_alone(method, folder, world.tasks)


def refusal(method: str, folder: Path) -> str | None:
    """Why a method cannot be put on a model."""
    plugin: Method = load("methods", method)()
    return plugin.skip(Situation(device="cpu", model=model_facts(resolve_model(str(folder)))))


def assert_scored_like_alone(method: str, folder: Path, tasks: Path) -> None:
    """Score three adapters of a method in one pass and one by one, and compare."""
    import torch

    from harness.nn.stack import Stack

    models, methods = [], []
    for seed in range(3):
        learner, _ = attached(folder, stage(method=method), seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in learner.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        models.append(learner.model)
        methods.append(learner.choices.method)
    tokenizer = load_tokenizer(resolve_model(str(folder)))
    stack = Stack(models, methods).model
    for name in ("colour", "echo", "text"):
        one = find_task(name, (tasks,))
        together = evaluate_together(stack, 3, tokenizer, one, "validation", None)
        for model, found in zip(models, together, strict=True):
            assert_close(evaluate(model, tokenizer, one, "validation", None), found)


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_that_diverged_does_not_take_the_others_with_it(task: Writer, tokenizer: Any, kind: str) -> None:
    import torch

    models, _ = lora_stack(3)
    with torch.no_grad():
        # torch's attention kernel turns queries of NaNs into zeros in short rows: not q_proj
        next(p for name, p in models[1].named_parameters() if "down_proj.lora_A" in name).fill_(math.nan)
    from harness.nn.stack import Stack

    stack = Stack(models, [load("methods", "lora")()] * 3).model
    one = task(KINDS[kind])
    first, second, third = evaluate_together(stack, 3, tokenizer, one, "test", None)
    assert isinstance(second, Ended)
    assert second.status == "diverged"
    assert "must be finite" in second.reason
    assert_close(evaluate(models[0], tokenizer, one, "test", None), first)
    assert_close(evaluate(models[2], tokenizer, one, "test", None), third)


def test_side_by_side_leaves_no_trace(task: Writer, tokenizer: Any, capfd: Any) -> None:
    import torch

    _, stack = lora_stack(2)
    stack.train()
    state = torch.get_rng_state()
    for kind in KINDS:
        evaluate_together(stack, 2, tokenizer, task(KINDS[kind]), "test", None)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in stack.modules())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in stack.parameters())
    assert "".join(capfd.readouterr()) == ""


def lm_evals(model: Any, tokenizer: Any, one: Task) -> tuple[float, list[tuple[str, Any, Any]]]:
    """Value, and (hash, outcome, answer) of each item, by lm-eval alone, one row at a time."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    rolling = one.output_type == "loglikelihood_rolling"
    with scoring_mode(model):
        peer = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=1,
            softmax_dtype=torch.float32,
            add_bos_token=False if rolling else None,
            logits_cache=not rolling,
        )
        built = lm_eval_task(one, "test", None, None)
        results = lm_eval.evaluate(peer, {"tasks": {one.name: built}}, bootstrap_iters=0, log_samples=True)
    samples = results["samples"][one.name]
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    value = results["results"][one.name][f"{one.metric},{samples[0]['filter']}"]
    return value, [(sample["doc_hash"], sample[one.metric], sample["filtered_resps"]) for sample in kept]


METRICS = ["acc", "acc_norm", "acc_bytes", "exact_match", "acc_mutual_info", "f1", "mcc", "brier_score"]


@pytest.mark.parametrize("metric", METRICS)
def test_choices_get_lm_evals_score(task: Writer, bos_tokenizer: Any, metric: str) -> None:
    rows = [{"text": f"t{i}" * (i + 1), "label": i % 2} for i in range(9)]
    choices = ["no", "yes"] + (["no, or yes"] if metric not in ("f1", "mcc") else [])
    kind = {"f1": "f1", "mcc": "matthews_corrcoef", "brier_score": "brier_score"}.get(metric, "mean")
    one = task(CHOICE, test=rows, doc_to_choice=choices, metric_list=[{"metric": metric, "aggregation": kind}])
    model = random_model(5)
    value, samples = lm_evals(model, bos_tokenizer, one)
    found = evaluate(model, bos_tokenizer, one, "test", None)
    assert found.score.value == pytest.approx(value, rel=1e-5)
    assert [item.doc_hash for item in found.items] == [doc_hash for doc_hash, _, _ in samples]
    if not isinstance(samples[0][1], tuple):
        assert [item.value for item in found.items] == pytest.approx([outcome for _, outcome, _ in samples])


@pytest.mark.parametrize("metric", ["word_perplexity", "byte_perplexity", "bits_per_byte"])
def test_texts_get_lm_evals_score(task: Writer, bos_tokenizer: Any, metric: str) -> None:
    kind = "bits_per_byte" if metric == "bits_per_byte" else "weighted_perplexity"
    rows = [{"text": "some words " * count, "label": "no"} for count in (1, 3, 9, 20)]  # up to four windows
    one = task(ROLLING, test=rows, metric_list=[{"metric": metric, "aggregation": kind, "higher_is_better": False}])
    model = make_model(seed=3)
    value, samples = lm_evals(model, bos_tokenizer, one)
    found = evaluate(model, bos_tokenizer, one, "test", None)
    assert found.score.value == pytest.approx(value, rel=1e-5)
    assert [item.doc_hash for item in found.items] == [doc_hash for doc_hash, _, _ in samples]


FILTERS = [
    {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(.)"}, {"function": "take_first"}]},
    {"name": "second", "filter": [{"function": "take_first"}]},
]


@pytest.mark.parametrize("changes", [{}, {"filter_list": FILTERS}], ids=["plain", "filters"])
@pytest.mark.parametrize("until", [["\n"], ["\n", "o", "ab"], []])
def test_generated_texts_are_lm_evals(task: Writer, tokenizer: Any, until: list[str], changes: dict[str, Any]) -> None:
    generation = {"until": until, "max_gen_toks": 12}
    one = task(GENERATE, generation_kwargs=generation, **changes)
    model = random_model(1)
    value, samples = lm_evals(model, tokenizer, one)
    found = evaluate(model, tokenizer, one, "test", None)
    assert found.score.value == pytest.approx(value)
    assert [item.prediction for item in found.items] == [answers[0] for _, _, answers in samples]


def test_generation_ends_when_each_row_has_met_a_stop_of_its_own(
    task: Writer, token_after: Any, tokenizer: Any
) -> None:
    """After 'a' comes '.', after 'b' a line's end: either stops its row, and two steps are all that is needed."""
    a, b, dot, end = tokenizer.encode("ab.\n")
    sure = token_after({a: dot, b: end, dot: dot, end: end})
    rows = [{"text": f"{i} {letter}", "label": "no"} for i, letter in enumerate("abab")]
    generation = {"until": [".", "\n"], "max_gen_toks": 30}
    one = task(GENERATE, test=rows, doc_to_text="{{text}}", generation_kwargs=generation)
    steps: list[int] = []
    sure.register_forward_hook(lambda module, given, out: steps.append(1))
    found = evaluate(sure, tokenizer, one, "test", None)
    assert {item.prediction for item in found.items} == {""}
    assert len(steps) == 2  # one to look for non-finite logits, one to generate


def test_a_pack_generates_in_one_pass(task: Writer, tokenizer: Any) -> None:
    _, stack = lora_stack(4)
    rows: list[int] = []
    embedding = stack.get_input_embeddings()
    embedding.register_forward_hook(lambda module, given, out: rows.append(given[0].shape[0]))
    evaluate_together(stack, 4, tokenizer, task(GENERATE), "test", None)
    assert rows[1:] == [40] * 4  # ten prompts of four models, four tokens


def test_items_are_rendered_encoded_and_hashed_once(task: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.evaluation import responses as module

    one, model = task(CHOICE), random_model(0)
    calls: list[int] = []
    plain = module._pairs
    monkeypatch.setattr(module, "_pairs", lambda *given: calls.append(1) or plain(*given))
    evaluator = Evaluator(TokenCache())
    for own in (make_tokenizer(bos=False), make_tokenizer(bos=True)):
        first, again = (evaluator.evaluate(StackedModels(model), own, one, "test", None) for _ in range(2))
        assert first == again
    assert len(calls) == 2

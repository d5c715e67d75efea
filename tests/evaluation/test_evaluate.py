"""Scores derived by hand from models whose probabilities are known; what evaluation must leave alone."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import SpecError
from harness.evaluation.evaluate import bos_policy, comparability
from harness.evaluation.item_files import write_items
from harness.records.trial import Ended
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import Task, find_task
from harness.tasks.training_rows import check_task
from tests.scoring import comparable, evaluate, evaluate_together

from ..tasks.writing import CHOICE, GENERATE, ROLLING, ROWS, write_task
from .conftest import make_tokenizer


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    def build(config: dict[str, Any], test: list[dict[str, Any]] = ROWS[30:], **changes: Any) -> Task:
        write_task(tmp_path, config | changes, test=test)
        return find_task("mine", (tmp_path,))

    return build


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_byte(task: Any, uniform: Any, tokenizer: Any) -> None:
    found = evaluate(uniform, tokenizer, task(ROLLING), "test", None)
    assert found.score.value == pytest.approx(math.log2(259), abs=1e-5)  # one token per byte
    assert [item.value for item in found.items] == pytest.approx([math.log2(259)] * 10, abs=1e-5)
    assert (found.score.n, found.score.stderr, found.score.higher_is_better) == (10, None, False)
    assert {item.prediction for item in found.items} == {None}


def test_a_text_has_one_beginning_token_whatever_the_tokenizer_adds(
    task: Any, uniform: Any, bos_tokenizer: Any
) -> None:
    """With a second one the uniform model would pay for n+1 tokens on n bytes."""
    found = evaluate(uniform, bos_tokenizer, task(ROLLING), "test", None)
    assert found.score.value == pytest.approx(math.log2(259), abs=1e-5)


def test_texts_longer_than_the_context_are_scored_whole(task: Any, uniform: Any, tokenizer: Any) -> None:
    long = [{"text": "x" * 300, "label": "no"}, {"text": "é" * 100, "label": "no"}]
    found = evaluate(uniform, tokenizer, task(ROLLING, test=long), "test", None)
    assert found.score.value == pytest.approx(math.log2(259), abs=1e-5)


def test_an_empty_text_has_no_bits_per_byte(task: Any, uniform: Any, tokenizer: Any) -> None:
    rows = [{"text": "", "label": "no"}, {"text": "ab", "label": "no"}]
    found = evaluate(uniform, tokenizer, task(ROLLING, test=rows), "test", None)
    assert found.score.value == pytest.approx(math.log2(259), abs=1e-5)
    assert sorted(math.isnan(item.value) for item in found.items) == [False, True]


def test_windows_of_equal_tokens_do_not_share_scores(task: Any, model: Any, tokenizer: Any) -> None:
    """lm-eval's cache of logits takes the first tokens of a longer window for the last ones of a shorter."""
    import torch

    text = "ab" * 75  # windows of 64, 64 and 22 tokens; with its context, the last reads like the second
    found = evaluate(model, tokenizer, task(ROLLING, test=[{"text": text, "label": "no"}] * 2), "test", None)
    ids = torch.tensor([[0, *tokenizer.encode(text)]])
    with torch.no_grad():
        nats = 0.0
        for start, stop in ((0, 64), (64, 128), (128, 150)):
            first = max(0, stop - 64)
            logits = model(ids[:, start if stop < 150 else first : stop]).logits[0, start - stop :]
            nats -= logits.log_softmax(-1).gather(1, ids[0, start + 1 : stop + 1, None]).sum().item()
    assert found.items[0].value == pytest.approx(nats / math.log(2) / 150, rel=1e-5)


def test_bits_per_byte_weighs_texts_by_their_bytes(task: Any, token_after: Any, tokenizer: Any) -> None:
    """Sure of 'a' after anything: 'aaaaaaa' costs nothing; each 'b' costs about the head's margin."""
    a, eos = tokenizer.encode("a")[0], 0
    sure = token_after({a: a, eos: a})
    rows = [{"text": "a" * 7, "label": "no"}, {"text": "ab", "label": "no"}]
    found = evaluate(sure, tokenizer, task(ROLLING, test=rows), "test", None)
    by_text = sorted(item.value for item in found.items)
    assert by_text[0] == pytest.approx(0.0, abs=1e-3)
    assert found.score.value == pytest.approx((7 * by_text[0] + 2 * by_text[1]) / 9)


def test_choices_of_a_uniform_model_by_hand(task: Any, uniform: Any, tokenizer: Any) -> None:
    """-n ln 259 is highest for the shortest choice, ' no': right on the rows that say no, half of them."""
    found = evaluate(uniform, tokenizer, task(CHOICE, metadata={"chance": 0.5}), "test", None)
    outcomes = [1.0 if row["label"] == "no" else 0.0 for row in ROWS[30:]]
    assert sum(outcomes) == 5
    assert [item.value for item in found.items] == outcomes
    assert {item.prediction for item in found.items} == {"no"}
    assert found.score.value == 0.5
    assert found.score.stderr == pytest.approx(statistics.stdev(outcomes) / math.sqrt(10))
    assert (found.score.metric, found.score.chance, found.score.split) == ("acc", 0.5, "test")


def test_the_share_of_pairs_ranked_right_is_offered_and_is_what_the_offer_says(
    tmp_path: Path, uniform: Any, tokenizer: Any
) -> None:
    """To a uniform model the shorter answer is likelier: it ranks two pairs of three right."""
    pairs = [("a", "aaa"), ("b", "bbb"), ("ccc", "c")]
    rows = [{"text": f"t{n}", "label": "yes", "good": good, "bad": bad} for n, (good, bad) in enumerate(pairs)]
    asked = {"metadata": {"preference": {"chosen": "good", "rejected": "bad"}}}
    # columns of like names are no pair of answers
    rows = [row | {"goods": "x", "badly": "y"} for row in rows]
    write_task(tmp_path, CHOICE | asked | {"doc_to_choice": "{{['yes', goods, badly]}}"}, train=rows, test=rows[::-1])
    [offer] = [note for note in check_task(find_task("mine", (tmp_path,))) if "pairs" in note]
    written = re.search(r"write (output_type: .*), (doc_to_choice: .*), (doc_to_target: 0) and metric acc", offer)
    assert written
    changes = {key: value for line in written.groups() for key, value in yaml.safe_load(line).items()}
    write_task(tmp_path, CHOICE | asked | changes, train=rows, test=rows[::-1], name="mine")
    task = find_task("mine", (tmp_path,))
    assert not [note for note in check_task(task) if "pairs" in note]
    found = evaluate(uniform, tokenizer, task, "test", None)
    assert sorted(item.value for item in found.items) == [0.0, 1.0, 1.0]
    assert found.score.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changes", "chance"),
    [
        ({}, 1 / 2),
        ({"doc_to_choice": ["yes", "no", "perhaps", "never"]}, 1 / 4),
        ({"metadata": {"chance": 0.0}}, 0.0),
        ({"metric_list": [{"metric": "f1"}]}, None),
    ],
)
def test_chance_is_what_the_task_says_or_one_of_the_choices(
    task: Any, uniform: Any, tokenizer: Any, changes: dict[str, Any], chance: float | None
) -> None:
    """An F1 belongs to all items together: what guessing gives there is not one over their choices."""
    assert evaluate(uniform, tokenizer, task(CHOICE | changes), "test", None).score.chance == chance


@pytest.mark.parametrize(("changes", "majority"), [({}, 3 / 4), ({"metric_list": [{"metric": "f1"}]}, None)])
def test_one_answer_to_all_items_scores_the_share_of_the_commonest(
    task: Any, uniform: Any, tokenizer: Any, changes: dict[str, Any], majority: float | None
) -> None:
    """Three rows of four say yes; to a uniform model the shorter no is likelier."""
    rows = [{"text": f"t{n}", "label": "no" if n == 2 else "yes"} for n in range(4)]
    score = evaluate(uniform, tokenizer, task(CHOICE | changes, test=rows), "test", None).score
    assert score.majority == majority
    if majority:
        assert score.value == 1 / 4


def test_generation_by_hand(task: Any, token_after: Any, tokenizer: Any) -> None:
    """After ':' come ' ', 'o', 'k' and a line's end: exactly the target of every row but one."""
    space, o, k, end, colon = tokenizer.encode(" ok\n:")
    sure = token_after({colon: space, space: o, o: k, k: end, end: end})
    rows = [{"text": f"t{i}", "label": "ok" if i else "ko"} for i in range(4)]
    one = task(GENERATE, test=rows, target_delimiter="", doc_to_target=" {{label}}")
    found = evaluate(sure, tokenizer, one, "test", None, batch_size=3)
    assert {item.prediction for item in found.items} == {" ok"}
    assert [item.value for item in found.items] == [0.0, 1.0, 1.0, 1.0]
    assert found.score.stderr == pytest.approx(0.25)  # stdev of 0, 1, 1, 1 is 1/2, and sqrt(4) is 2


def test_log_likelihood_task_by_hand(task: Any, token_after: Any, tokenizer: Any) -> None:
    space, o, k, colon = tokenizer.encode(" ok:")
    sure = token_after({colon: space, space: o, o: k})
    rows = [{"text": "t", "label": label} for label in ("ok", "no")]
    config = CHOICE | {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{label}}"}
    found = evaluate(sure, tokenizer, task(config, test=rows), "test", None)
    assert [item.value for item in found.items] == [1.0, 0.0]


def test_a_metric_that_is_no_mean_has_no_standard_error(task: Any, uniform: Any, tokenizer: Any) -> None:
    """Always 'no' (class 0): no true positives of class 1, so F1 is 0."""
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(6)]
    f1 = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    found = evaluate(uniform, tokenizer, task(CHOICE, test=rows, metric_list=f1), "test", None)
    assert (found.score.value, found.score.stderr) == (0.0, None)
    assert all(math.isnan(item.value) for item in found.items)


def test_twice_is_the_same_and_batches_do_not_matter(task: Any, model: Any, tokenizer: Any) -> None:
    for config in (CHOICE, GENERATE, ROLLING):
        one = task(config)
        first, again, single = (evaluate(model, tokenizer, one, "test", None, size) for size in (64, 64, 1))
        assert first == again
        assert [item.prediction for item in first.items] == [item.prediction for item in single.items]
        assert first.score.value == pytest.approx(single.score.value, rel=1e-5)


def test_limit_and_split(task: Any, model: Any, tokenizer: Any) -> None:
    one = task(CHOICE)
    whole, part = (evaluate(model, tokenizer, one, "test", limit) for limit in (None, 4))
    assert part.score.n == 4
    assert {item.doc_hash for item in part.items} < {item.doc_hash for item in whole.items}
    validation = evaluate(model, tokenizer, one, "validation", None)
    assert (validation.score.n, validation.score.split) == (3, "validation")
    assert not {item.doc_hash for item in validation.items} & {item.doc_hash for item in whole.items}


def test_evaluation_leaves_no_trace(task: Any, model: Any, tokenizer: Any, capfd: Any) -> None:
    import torch

    model.train()
    model.model.layers[0].eval()  # a part that was frozen on purpose
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for config in (CHOICE, GENERATE, ROLLING):
        evaluate(model, tokenizer, task(config), "test", None)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert "".join(capfd.readouterr()) == ""


def test_the_callers_mixed_precision_holds(task: Any, model: Any, tokenizer: Any) -> None:
    import torch

    seen = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = evaluate(model, tokenizer, task(ROLLING), "test", None).score.value
    assert set(seen) == {torch.bfloat16}
    assert half == pytest.approx(evaluate(model, tokenizer, task(ROLLING), "test", None).score.value, rel=1e-2)


def test_dropout_is_off(task: Any, model: Any, tokenizer: Any) -> None:
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert evaluate(model, tokenizer, task(CHOICE), "test", None) == evaluate(
        model, tokenizer, task(CHOICE), "test", None
    )


@pytest.mark.parametrize("config", [CHOICE, GENERATE, ROLLING], ids=["choice", "generate", "text"])
def test_a_model_of_nans_has_no_score(task: Any, model: Any, tokenizer: Any, config: dict[str, Any]) -> None:
    model.lm_head.weight.data.fill_(math.nan)
    model.train()
    (outcome,) = evaluate_together(model, 1, tokenizer, task(config), "test", None)
    assert isinstance(outcome, Ended)
    assert outcome.status == "diverged"
    assert "must be finite" in outcome.reason
    assert model.training


def test_what_does_not_fit_the_context_is_refused(task: Any, model: Any, tokenizer: Any) -> None:
    one = task(GENERATE, generation_kwargs={"until": ["\n"], "max_gen_toks": 64})
    with pytest.raises(SpecError, match="must fit the model's context of 64 tokens"):
        evaluate(model, tokenizer, one, "test", None)


def test_an_answer_that_does_not_fit_the_context_is_refused(task: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(SpecError, match="context of 64 tokens, but an answer has 71: shorten"):
        evaluate(model, tokenizer, task(CHOICE, doc_to_choice=["no", "yes", "y" * 70]), "test", None)


def test_an_answer_without_a_token_is_refused(task: Any, model: Any, tokenizer: Any) -> None:
    config = CHOICE | {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{label}}"}
    rows = [{"text": "t", "label": "yes"}, {"text": "t", "label": ""}]
    with pytest.raises(SpecError, match="must have a token, but one of its texts has none"):
        evaluate(model, tokenizer, task(config, test=rows), "test", None)


def test_a_tokenizer_without_a_first_or_last_token_is_refused(task: Any, model: Any) -> None:
    bare = make_tokenizer(bos=False)
    bare.eos_token = None
    with pytest.raises(SpecError, match="must have a beginning- or end-of-text token"):
        evaluate(model, bare, task(ROLLING), "test", None)


def test_a_tokenizer_without_any_special_token_scores_what_has_a_context(task: Any, uniform: Any, model: Any) -> None:
    """Neither end nor padding: answers go on until a stop string or their length."""
    bare, whole = make_tokenizer(bos=False), make_tokenizer(bos=False)
    bare.eos_token = bare.pad_token = None
    for config in (CHOICE, GENERATE):
        assert evaluate(model, bare, task(config), "test", None).items == (
            evaluate(model, whole, task(config), "test", None).items
        )


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # peft, of prompt tuning
@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_adapters_count(task: Any, model: Any, tokenizer: Any, kind: str) -> None:
    import torch
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    one = task(ROLLING, test=[{"text": "x" * 150, "label": "no"}, {"text": "short", "label": "no"}])
    base = evaluate(model, tokenizer, one, "test", None).score.value
    config: Any = {
        "lora": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    }[kind]
    torch.manual_seed(1)
    tuned = get_peft_model(model, config)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    lengths: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, given, out: lengths.append(out.shape[1]))
    for each in (ROLLING, CHOICE, GENERATE):
        one = task(each, test=[{"text": "x" * 150, "label": "no"}, {"text": "short", "label": "no"}])
        batched, single = (evaluate(tuned, tokenizer, one, "test", None, size) for size in (2, 1))
        assert [item.prediction for item in batched.items] == [item.prediction for item in single.items]
        assert batched.score.value == pytest.approx(single.score.value, rel=1e-5)
        if each is ROLLING:
            assert batched.score.value != pytest.approx(base, abs=1e-4)
    assert max(lengths) == (64 if kind == "lora" else 59), "virtual tokens take room in the context"
    if kind != "prompt":
        with tuned.disable_adapter():
            assert evaluate(tuned, tokenizer, task(ROLLING), "test", None).score.value == pytest.approx(
                evaluate(tuned.get_base_model(), tokenizer, task(ROLLING), "test", None).score.value
            )


def test_comparability_follows_what_changes_scores(task: Any, tokenizer: Any, bos_tokenizer: Any) -> None:
    key = comparable(task(CHOICE), tokenizer)
    assert comparable(task(CHOICE), make_tokenizer(bos=False)) == key
    assert comparable(task(CHOICE), bos_tokenizer) != key
    assert comparable(task(CHOICE, doc_to_text="{{text}}:"), tokenizer) != key
    templated = make_tokenizer(bos=False)
    templated.chat_template = "{{messages}}"
    assert comparable(task(CHOICE), templated) != key
    truncating = make_tokenizer(bos=False)
    truncating("a", padding="max_length", truncation=True, max_length=4)  # as trainers do
    assert comparable(task(CHOICE), truncating) == key


@pytest.mark.parametrize(
    ("config", "rows", "differs"),
    [
        (CHOICE, [{"text": "a", "label": "no"}], False),
        (CHOICE, [{"text": "<s>a", "label": "no"}], True),  # scored after one begin token, but trained after two
        (ROLLING, [{"text": "a", "label": "no"}], False),
        (ROLLING, [{"text": "a\n" * 5_001, "label": "no"}], False),  # bytes are the same line by line
        (ROLLING, [{"text": "<s>a", "label": "no"}], True),
        (GENERATE, [{"text": "a", "label": "no"}], False),
        (GENERATE, [{"text": "<s>a", "label": "no"}, {"text": "a", "label": "no"}], True),
    ],
)
def test_scores_of_other_tokens_are_compared_with_none_of_before(
    task: Any, model: Any, bos_tokenizer: Any, config: dict[str, Any], rows: Any, differs: bool
) -> None:
    one = task(config | {"doc_to_text": "{{text}}"} if config is not ROLLING else config, test=rows)
    found = evaluate(model, bos_tokenizer, one, "test", None).score.comparability
    assert (found != comparable(one, bos_tokenizer)) is differs


def test_bos_policy_is_found_by_encoding(tokenizer: Any, bos_tokenizer: Any) -> None:
    assert bos_policy(tokenizer) == "[[], []]"
    assert bos_policy(bos_tokenizer) == "[[1], []]"


def test_items_as_parquet(task: Any, uniform: Any, tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    f1 = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(6)]
    outcomes = [evaluate(uniform, tokenizer, task(CHOICE), "test", None)]
    outcomes.append(evaluate(uniform, tokenizer, task(CHOICE, test=rows, metric_list=f1), "test", None))
    write_items(tmp_path / "deep" / "items.parquet", outcomes)
    table = pq.read_table(tmp_path / "deep" / "items.parquet")
    assert table.column_names == [
        "task",
        "split",
        "metric",
        "doc_hash",
        "prediction",
        "value",
        "answer_bits",
        "pseudo_value",
    ]
    assert table["value"].to_pylist() == [item.value for item in outcomes[0].items] + [None] * 6
    assert set(table["metric"].to_pylist()) == {"acc", "f1"}
    # Each byte is a token of log2(259) bits, the blank before the answer too: " no" takes 3 for its 2 bytes, " yes" 4 for 3.
    per_byte = {"no": 3 / 2 * math.log2(259), "yes": 4 / 3 * math.log2(259)}
    expected = [per_byte[row["label"]] for row in ROWS[30:]] + [per_byte[("no", "yes")[row["label"]]] for row in rows]
    assert table["answer_bits"].to_pylist() == pytest.approx(expected, rel=1e-5)
    stand_ins = table["pseudo_value"].to_pylist()
    assert stand_ins[: len(outcomes[0].items)] == [None] * len(outcomes[0].items)  # a mean's items need none
    assert sum(stand_ins[-6:]) / 6 == pytest.approx(outcomes[1].score.value)
    write_items(tmp_path / "none.parquet", [])
    assert pq.read_table(tmp_path / "none.parquet").schema == table.schema


def test_comparability_stays_what_records_hold(task: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of two keys are never shown together: a key that changes by accident parts old records from new ones."""
    monkeypatch.setattr("lm_eval.__version__", "0")
    drawn = {"generation_kwargs": {"do_sample": True, "top_p": 0.9}, "repeats": 4}
    configs = (CHOICE, GENERATE, ROLLING, GENERATE | drawn)
    # The real facts of a tokenizer change with the version of its library. Generated answers have other keys than before
    # the delimiter was no part of them.
    assert [comparability(task(config), tokenizer, "bytes") for config in configs] == [
        "1d1972bdc90e4ccd9933",
        "34ab1342a5a2381c57e3",
        "08ec204f5049f27b2b03",
        "373926c08726e18f8e4d",
    ]


def test_a_task_whose_template_renders_no_prompt_is_one_sentence(task: Any) -> None:
    """Nothing trains on an off-target task, so that lm-eval's own refusal would be the first to see it."""
    built = lm_eval_task(task(CHOICE | {"doc_to_text": None}), "test", None)
    with pytest.raises(
        SpecError, match=r"task mine: its rows must give prompts .*Context is not a string.*correct a template"
    ):
        built.build_all_requests()

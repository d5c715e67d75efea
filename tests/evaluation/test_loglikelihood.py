"""Rows of trees by hand, and log-likelihoods that are lm-eval's own on models that can and cannot take a tree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from harness.evaluation import forward as shortcuts
from harness.evaluation import loglikelihood as scoring
from harness.evaluation.evaluate import scoring_mode
from harness.evaluation.loglikelihood import LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Request, RowPlan
from harness.evaluation.responses import Responder

from .conftest import make_model, make_tokenizer


def requests(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Request]:
    return [Request(*pair) for pair in pairs]


def listed(row: Any) -> dict[str, list[int]]:
    return {field.name: getattr(row, field.name).tolist() for field in fields(row)}


def test_continuations_that_differ_in_their_last_token_share_all_positions() -> None:
    """After 1 2 come 3 4, 3 5 or 6: the context predicts 3 and 6, and 3 predicts 4 and 5."""
    (row,) = RowPlan(requests(((1, 2), (3, 4)), ((1, 2), (3, 5)), ((1, 2), (6,))), 10, 64).tree_rows
    found = listed(row)
    assert (found["tokens"], found["depth"], found["end"]) == ([1, 2, 3], [0, 1, 2], [3, 3, 3])
    scored = sorted(zip(found["requests"], found["positions"], found["targets"], strict=True))
    assert scored == [(0, 1, 3), (0, 2, 4), (1, 1, 3), (1, 2, 5), (2, 1, 6)]
    assert not row.has_branches


def test_a_tree_by_hand() -> None:
    """1 2 goes on with 3 4, 3 6 and 8 (the last tokens 5, 7 and 9 are only predicted)."""
    given = requests(((1, 2), (3, 4, 5)), ((1, 2), (8, 9)), ((1, 2), (3, 6, 7)))
    (row,) = RowPlan(given, 10, 64).tree_rows
    found = listed(row)
    assert found["tokens"] == [1, 2, 3, 4, 6, 8]
    assert found["depth"] == [0, 1, 2, 3, 3, 2]
    assert found["end"] == [6, 6, 5, 4, 5, 6]
    scored = zip(found["requests"], found["positions"], found["targets"], strict=True)
    assert sorted(scored) == [(0, 1, 3), (0, 2, 4), (0, 3, 5), (1, 1, 8), (1, 5, 9), (2, 1, 3), (2, 2, 6), (2, 4, 7)]
    assert row.has_branches
    assert [line.tokens.tolist() for line in RowPlan(given, 10, 64).plain_rows] == [
        [1, 2, 3, 4],
        [1, 2, 3, 6],
        [1, 2, 8],
    ]


def test_a_tree_is_no_longer_than_the_context_and_no_wider_than_pays() -> None:
    """Ten branches of three tokens: seven positions are left in a context of 9; sqrt(2 * (2 + 2 * 9)) = 6 pay back."""
    given = requests(*(((1, 2), (10 + i, 20, 30, 40)) for i in range(10)))
    rows = RowPlan(given, 9, 9).tree_rows
    assert [len(row.tokens) for row in rows] == [2 + 3 + 3] * 5
    assert [len(row.tokens) for row in RowPlan(given, 100, 10_000).tree_rows] == [32]
    assert sorted(int(request) for row in rows for request in set(row.requests.tolist())) == list(range(10))


def test_a_context_that_does_not_fit_loses_its_beginning() -> None:
    """Five positions: of 1 2 3 4 and 5 6 7, whose last token is only predicted, 1 is lost."""
    plan = RowPlan(requests(((1, 2, 3, 4), (5, 6, 7)), ((1, 2, 3, 4), (5,))), 5, 64)
    assert sorted(row.tokens.tolist() for row in plan.tree_rows) == [[1, 2, 3, 4], [2, 3, 4, 5, 6]]


def test_equal_requests_are_computed_once() -> None:
    (row,) = RowPlan(requests(((1,), (2, 3)), ((1,), (2, 3))), 5, 64).tree_rows
    assert row.tokens.tolist() == [1, 2]


def test_nothing_to_score_is_no_scores() -> None:
    found = LikelihoodScorer().score(StackedModels(make_model(), 2), RowPlan([], 5, 64))
    assert (found.values.shape, found.greedy.shape, found.finite.tolist()) == ((2, 0), (2, 0), [True, True])


def some_requests(seed: int = 0, longest: int = 40) -> list[Request]:
    """Contexts of all lengths, also too long ones, each with one to five continuations that share tokens or not."""
    draw = random.Random(seed)
    found = []
    for _ in range(12):
        context = tuple(draw.randrange(3, 250) for _ in range(draw.randrange(1, longest)))
        stem = tuple(draw.randrange(3, 250) for _ in range(3))
        for _ in range(draw.randrange(1, 6)):
            rest = tuple(draw.randrange(3, 250) for _ in range(draw.randrange(1, 6)))
            found.append(Request(context, stem[: draw.randrange(4)] + rest))
    return found


def by_hand(model: Any, given: Sequence[Request], longest: int) -> list[tuple[float, bool]]:
    """Each request in a forward pass of its own."""
    import torch

    found = []
    for request in given:
        ids = torch.tensor([(request.context + request.continuation)[-longest - 1 :]])
        wanted = torch.tensor(request.continuation)
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits[0, -len(wanted) :]
        values = logits.log_softmax(-1)[range(len(wanted)), wanted]
        found.append((values.double().sum().item(), bool((logits.argmax(-1) == wanted).all())))
    return found


def assert_like_by_hand(
    model: Any,
    longest: int = 32,
    given: list[Request] | None = None,
    width: int = 64,
    scorer: LikelihoodScorer | None = None,
) -> None:
    given, scorer = given or some_requests(), scorer or LikelihoodScorer()
    model.eval()
    with scoring_mode(model):
        found = scorer.score(StackedModels(model), RowPlan(given, longest, width))
    expected = by_hand(model, given, longest)
    assert found.values[0].tolist() == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert found.greedy[0].tolist() == [greedy for _, greedy in expected]


@pytest.fixture
def scorer() -> LikelihoodScorer:
    """One that has learned nothing about kinds of models."""
    return LikelihoodScorer()


def config_of(kind: str, **changes: Any) -> Any:
    """A model with random weights that are large enough to tell sequences apart."""
    import torch
    import transformers

    sizes = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes, initializer_range=0.3, **changes)
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config).eval()


PLAIN = {"intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("Llama", PLAIN), ("GPT2", {"n_positions": 64}), ("Qwen2", PLAIN), ("GPTNeoX", PLAIN), ("Gemma", PLAIN)],
)
def test_models_with_plain_attention_take_trees(
    kind: str, changes: dict[str, Any], attention: str, scorer: LikelihoodScorer
) -> None:
    model = config_of(kind, attn_implementation=attention, **changes)
    assert_like_by_hand(model, scorer=scorer)
    assert list(scorer.verified.values()) != [0]
    assert len(scorer.verified) == 1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Bloom", {}),  # the distance between tokens is a bias, which follows their place in the row
        ("Mistral", PLAIN | {"sliding_window": 6}),  # a mask of one's own would widen the window
        ("Mamba", {"state_size": 4}),  # no attention
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_models_score_one_continuation_per_row(
    kind: str, changes: dict[str, Any], scorer: LikelihoodScorer
) -> None:
    assert_like_by_hand(config_of(kind, **changes), scorer=scorer)
    assert list(scorer.verified.values()) == [0]


def test_a_window_is_found_once_a_row_is_longer_than_it(scorer: LikelihoodScorer) -> None:
    """Rows within the window agree, which says nothing about longer ones."""
    model = config_of("Mistral", **PLAIN, sliding_window=12)
    short = requests(((5, 6, 7), (8, 9, 10)), ((5, 6, 7), (11, 12, 13)))
    assert_like_by_hand(model, given=short, scorer=scorer)
    assert list(scorer.verified.values()) == [7]
    assert_like_by_hand(model, scorer=scorer)
    assert list(scorer.verified.values()) == [0]


def test_a_model_of_nans_decides_nothing_about_its_kind(scorer: LikelihoodScorer) -> None:
    import math

    import numpy as np

    model = config_of("Llama", **PLAIN)
    model.lm_head.weight.data.fill_(math.nan)
    with scoring_mode(model):
        assert np.isnan(scorer.score(StackedModels(model), RowPlan(some_requests(), 32, 64)).values).all()
    assert not scorer.verified


@pytest.mark.shared
def test_a_recurrent_model_is_scored_like_by_hand(shared_data: Path, scorer: LikelihoodScorer) -> None:
    """Padding comes after what is scored, so that a state is never carried through it."""
    from transformers import AutoModelForCausalLM

    assert_like_by_hand(AutoModelForCausalLM.from_pretrained(shared_data / "checkpoints" / "tiny-rwkv4"), scorer=scorer)
    assert list(scorer.verified.values()) == [0]


@pytest.mark.parametrize(("kind", "changes"), [("Llama", {}), ("Gemma2", {"final_logit_softcapping": 5.0})])
def test_logits_are_computed_a_bounded_number_at_a_time(
    kind: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven positions of 259 logits at once; a model that caps its logits runs again for each piece."""
    model = config_of(kind, **PLAIN, **changes)
    monkeypatch.setattr(scoring, "LOGITS", 7 * 259)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, out: sizes.append(out.shape[0] * out.shape[1]))
    given = some_requests()
    with scoring_mode(model):
        found = LikelihoodScorer().score(StackedModels(model), RowPlan(given, 32, 64))
    assert max(sizes) == 7
    assert found.values[0].tolist() == pytest.approx([value for value, _ in by_hand(model, given, 32)], abs=1e-4)


def test_the_output_layer_is_given_what_is_scored_only() -> None:
    model = config_of("Llama", **PLAIN)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, out: sizes.append(out.shape[0] * out.shape[1]))
    given = requests((tuple(range(10, 30)), (5,)), (tuple(range(10, 30)), (6,)), (tuple(range(40, 50)), (7, 8)))
    with scoring_mode(model):
        LikelihoodScorer().score(StackedModels(model), RowPlan(given, 32, 64))
    assert sizes[-1] == 3


def test_batches_follow_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty tokens at a time on two threads, by two members: twenty each; a longer row stands alone."""
    import torch

    model = config_of("Llama", **PLAIN)
    monkeypatch.setattr(scoring, "CORE_TOKENS", 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    shapes: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_hook(lambda module, given, out: shapes.append(tuple(given[0].shape)))
    given = requests(*(((n, *range(100, 99 + size)), (5,)) for n, size in enumerate((30, 10, 9, 8, 5, 5, 5))))
    with scoring_mode(model):
        LikelihoodScorer().score(StackedModels(model, 2), RowPlan(given, 32, 64, shares_rows=False))
    assert shapes == [(2, 30), (4, 10), (4, 8), (4, 5)]


# lm-eval's own encoding


TEXTS = ["", "a", "a b", "word ", "two  ", "<s>a", "é", "line\n", " lead", "x" * 100]


@pytest.mark.parametrize("bos", [False, True])
def test_texts_are_encoded_and_scored_as_by_lm_eval(bos: bool) -> None:
    """Empty contexts, spaces at the border, beginning-of-text tokens that are there already, contexts that are cut."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer, model = make_tokenizer(bos), make_model()
    torch.nn.init.normal_(model.lm_head.weight)
    pairs = [(context, rest) for context in TEXTS for rest in (" yes", "no", " no")]
    instances = [Instance("loglikelihood", {}, pair, 0, ("mine", i, 1)) for i, pair in enumerate(pairs)]
    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype=torch.float32)
    with scoring_mode(model):
        (found,) = Responder().respond(StackedModels(model), tokenizer, Built("loglikelihood", instances))
        expected = peer.loglikelihood(instances, disable_tqdm=True)
    assert found is not None
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


class Built:
    """What `answers` needs of a task."""

    class config:
        task = "mine"

    def __init__(self, kind: str, instances: list[Any]) -> None:
        self.OUTPUT_TYPE, self.instances = kind, instances


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_trees_follow_the_callers_mixed_precision(kind: str, scorer: LikelihoodScorer) -> None:
    import torch

    model = config_of(kind, **(PLAIN if kind == "Llama" else {"n_positions": 64}))
    given, seen = some_requests(), []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with scoring_mode(model), torch.autocast("cpu", torch.bfloat16):
        found = scorer.score(StackedModels(model), RowPlan(given, 32, 64))
    assert seen[-1] is torch.bfloat16
    assert list(scorer.verified.values()) != [0]
    assert found.values[0].tolist() == pytest.approx([value for value, _ in by_hand(model, given, 32)], rel=3e-2)


def test_long_rows_attend_in_blocks(scorer: LikelihoodScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five queries; the model's own attention is back afterwards."""
    monkeypatch.setattr(shortcuts, "QUERIES", 5)
    model = config_of("Llama", **PLAIN)
    assert_like_by_hand(model, scorer=scorer)
    assert list(scorer.verified.values()) != [0]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stories260K", "gpt2"])
def test_real_tokenizers_split_as_by_lm_eval(shared_data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, GPT2Tokenizer

    from harness.evaluation.responses import _pairs
    from harness.models.tokens import encoder

    folder = shared_data / "tokenizers" / "gpt2"
    if name == "gpt2":
        tokenizer = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    else:
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "checkpoints" / name)
    with (shared_data / "rotten_tomatoes" / "validation.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][:150]
    borders = ["", " ", "\n", ":", " :  ", "'"]
    rests = [" positive", "negative", "s", "'s", "\n", "  x"]
    pairs = [(text + borders[i % 6], rests[(i // 6) % 6]) for i, text in enumerate(texts)]
    pairs += [("", rest) for rest in rests]
    seen: list[Any] = []
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", lambda self, requests, **options: seen.extend(requests))
    peer = HFLM(pretrained=make_model(), tokenizer=tokenizer)
    peer.loglikelihood([Instance("loglikelihood", {}, pair, 0, ("m", 0, 1)) for pair in pairs], disable_tqdm=True)
    apart = 0
    for (context, rest), request, (_, before, after) in zip(
        pairs, _pairs(encoder(tokenizer), pairs), seen, strict=True
    ):
        if (
            context
            and peer.tok_encode(context.rstrip() + context[len(context.rstrip()) :] + rest)[: len(before)] != before
        ):
            # A token spans the border, such as :' of a text with : and an answer 's, of which lm-eval would score s alone.
            after, apart = tokenizer(rest, add_special_tokens=False)["input_ids"], apart + 1
        assert (list(request.context), list(request.continuation)) == (before, after)
    assert apart < len(pairs) / 10

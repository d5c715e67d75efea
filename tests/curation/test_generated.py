"""Rows that a model writes: drawn by seed, the same alone as in a batch, filtered for stated reasons, kept by content."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from harness.axes.contract import Situation
from harness.curation import _generation
from harness.curation._generation import Sampling, continuations
from harness.curation._novelty import Novelty
from harness.errors import SpecError, TrialFailure
from harness.metrics._overlap import rouge_l, words
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.plugins import load
from harness.space import Params
from harness.tasks.facts import TaskFacts
from harness.tasks.training_rows import Row
from tests.curation.test_tokens import setup_with, shaken
from tests.tiny import ROWS, save_tokenizer, stage, trained

PROMPTS = ["a", "a much longer prompt", "bb", "another one:", "a"]


def peer(folder):
    base = resolve_model(str(folder))
    return load_model(base, {}, "cpu"), load_tokenizer(base)


@pytest.fixture(scope="module")
def rwkv(tmp_path_factory):
    from transformers import RwkvConfig, RwkvForCausalLM

    folder = tmp_path_factory.mktemp("rwkv")
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=258, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, bos_token_id=0, eos_token_id=0
    )
    model = RwkvForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2", "rwkv"])
def test_a_prompt_is_continued_in_a_batch_as_alone(world, rwkv, kind):
    """Padding is read as text by a model without attention: it continues one at a time."""
    model, tokenizer = peer(rwkv if kind == "rwkv" else getattr(world, kind))
    greedy = Sampling(6, temperature=0.0)
    together = continuations(model, tokenizer, PROMPTS, greedy, 0)
    assert together == [continuations(model, tokenizer, [prompt], greedy, 0)[0] for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(6):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        wanted = ids[0, len(tokenizer(prompt)["input_ids"]) :].tolist()
        wanted = wanted[: wanted.index(0)] if 0 in wanted else wanted
        assert text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_draws_are_the_seeds_and_leave_the_random_state(world):
    model, tokenizer = peer(world.llama)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    once, again, other = (continuations(model, tokenizer, PROMPTS, Sampling(8), seed) for seed in (1, 1, 2))
    assert once == again != other
    assert once[0] != once[4]  # the same prompt twice is drawn twice
    assert torch.equal(state, torch.get_rng_state())


def test_a_text_ends_before_the_first_stop_string_and_prompts_are_cut_to_the_context(world):
    model, tokenizer = peer(world.llama)
    (whole,) = continuations(model, tokenizer, ["x" * 500], Sampling(20), 3)
    (same,) = continuations(model, tokenizer, ["x" * 76], Sampling(20), 3)
    assert whole == same
    stop = whole[5]
    (ended,) = continuations(model, tokenizer, ["x" * 76], Sampling(20, stop=("never there", stop)), 3)
    assert ended == whole[: whole.index(stop)]


def test_rouge_l_by_hand():
    """Common subsequences: 'the cat ... mat' of 5 and 4 words is 3, so 2 * 3 / 9; none is 0; equal is 1."""
    assert rouge_l(words("The cat on a mat!"), words("the cat, mat too")) == pytest.approx(6 / 9)
    assert rouge_l(words("police kill the gunman"), words("the gunman kill police")) == pytest.approx(2 * 2 / 8)
    assert rouge_l(["a"], ["b"]) == rouge_l([], ["b"]) == 0.0
    assert rouge_l(["a", "b"], ["a", "b"]) == 1.0


def test_novelty_skips_only_what_cannot_be_similar():
    texts = ["sort these words", "sort the words", "add two numbers", "words these sort", "two numbers", ""]
    for limit in (0.3, 0.5, 0.7):
        novelty = Novelty(texts, limit)
        for text in [*texts, "add numbers", "sort"]:
            highest = max(rouge_l(words(text), words(known)) for known in texts)
            assert (novelty.nearest(text) > limit) == (highest > limit)


def written(texts):
    """Stands for a model: hands out texts in order, then empty ones, and keeps what it was asked."""
    asked, left = [], list(texts)

    def give(model, tokenizer, prompts, sampling, seed):
        asked.append(list(prompts))
        return [left.pop(0) if left else "" for _ in prompts]

    return give, asked


CHOICES = [Row(prompt=f"Item {i} of kind {i * 7}:", completion=" yes" if i % 2 else " no", wrong=()) for i in range(9)]


def test_self_instruct_reads_and_filters(setup_for, monkeypatch):
    curation, setup, notes = setup_for("self_instruct", new_rows=2)
    texts = [
        "A quite different thing?\n### Answer:\nyes\n\n",
        "no answer here",
        "Item 3 of kind 21:\n### Answer:\n no",  # there already
        "Whatever else?\n### Answer:\n perhaps",  # not an answer of the task's
        "One more thing to say:\n### Answer:\nno",
        "never reached:\n### Answer:\nno",
    ]
    give, asked = written(texts)
    monkeypatch.setattr(_generation, "continuations", give)
    found = curation.rows(CHOICES, setup)
    assert found[:9] == CHOICES
    assert found[9:] == [
        Row(prompt="A quite different thing?", completion=" yes"),
        Row(prompt="One more thing to say:", completion=" no"),
    ]
    assert notes[-1] == (
        "self-instruct: 5 rows were generated, 2 kept; dropped were 1 too similar, 1 unreadable, "
        "1 without one of the task's answers"
    )
    for prompt in asked[0]:
        assert prompt.count("### Prompt:\n") == 7
        assert prompt.endswith("### Prompt:\n")


def test_self_instruct_gives_up_after_four_times_as_many(setup_for, monkeypatch):
    curation, setup, _ = setup_for("self_instruct", new_rows=10)
    give, asked = written([])
    monkeypatch.setattr(_generation, "continuations", give)
    with pytest.raises(TrialFailure, match=r"must keep at least one generated row, but dropped all \(40 unreadable\)"):
        curation.rows(ROWS, setup)
    assert [len(prompts) for prompts in asked] == [32, 8]


def test_evolved_prompts_are_answered_and_go_on_evolving(setup_for, monkeypatch):
    curation, setup, notes = setup_for("evol_instruct", evolved_share=0.25, evolutions=2)
    give, asked = written(
        [
            *("Harder thing?", "the given prompt is", " one two", " three"),  # first turn: prompts, then answers
            *("Harder thing!", "Rarer animal", " four", " Sorry, no"),  # second: too similar to the first; an apology
        ]
    )
    monkeypatch.setattr(_generation, "continuations", give)
    found = curation.rows(ROWS, setup)
    assert found[8:] == [Row(prompt="Harder thing?", completion=" one two")]
    assert asked[1] == ["Harder thing?", "the given prompt is"]
    assert asked[2][0].startswith("Harder thing?\n\n")  # what was kept evolves on, what was dropped starts again
    assert not asked[2][1].startswith("the given prompt is")
    assert notes[-1].endswith("1 kept; dropped were 1 about the rewriting, 1 apologies, 1 too similar")


def test_rewordings_keep_the_answer(setup_for, monkeypatch):
    rows = [Row(prompt="the cat sat on the mat", completion=" yes", doc={"id": 1})]
    curation, setup, notes = setup_for("explanation_consistency", rewordings=4, shared_words=0.5)
    give, _ = written(["on the mat the cat sat", "", "The cat sat on the mat.", "dogs bark"])
    monkeypatch.setattr(_generation, "continuations", give)
    assert curation.rows(rows, setup)[1:] == [replace(rows[0], prompt="on the mat the cat sat")]
    assert notes[-1].endswith("1 kept; dropped were 1 about something else, 1 empty, 1 the same again")


def test_pairs_are_the_bases_answers_with_and_without_the_style(setup_for):
    curation, setup, notes = setup_for(
        "counterfactual_pairs", style_prompt="Be kind. ", style_temperature=0.0, style_tokens=5
    )
    base = shaken(setup.load_base(), scale=3.0)  # as it is, a random model repeats what it read last
    setup = setup_with(setup, load_base=lambda: base)
    found = curation.rows(ROWS, setup)
    greedy = Sampling(5, 0.0, ("\n\n",))
    pairs = {row.prompt: (row.completion, row.rejected) for row in found}
    for row in ROWS:
        answers = [
            continuations(base, setup.tokenizer, [prompt], greedy, 0)[0]
            for prompt in ("Be kind. " + row.prompt, row.prompt)
        ]
        assert pairs.get(row.prompt, (answers[0],) * 2) == tuple(answers)
    assert notes[-1] == f"{len(found)} of 8 pairs of the model's answers differ and were kept"
    turned = setup_with(setup, params=Params(setup.params, style_wanted="discourage"))
    assert [(row.rejected, row.completion) for row in curation.rows(ROWS, turned)] == list(pairs.values())


def test_pairs_train_a_preference_objective_on_a_task_without_preferences(world):
    one = trained(
        world.llama,
        stage("lora", "dpo", curation="counterfactual_pairs", style_tokens=6, learning_rate=1e-4),
        rows=ROWS,
        steps=3,
    )
    assert one.step == 3
    assert one.failure is None
    situation = Situation(
        task=TaskFacts("generate_until", ("prompt", "completion")),
        beside={"objective": load("objectives", "dpo"), "curation": load("curation", "counterfactual_pairs")},
    )
    assert load("objectives", "dpo")().skip(situation) is None
    assert load("curation", "counterfactual_pairs")().skip(situation) is None
    plain = {"objective": load("objectives", "sft")}
    assert "does not use" in load("curation", "counterfactual_pairs")().skip(Situation(beside=plain))


def test_what_was_written_is_kept_by_content(setup_for, tmp_path):
    curation, setup, _ = setup_for("counterfactual_pairs", style_tokens=4)
    loads = []

    def load_base():
        loads.append(1)
        return plain()

    plain = setup.load_base
    kept = setup_with(setup, cache=tmp_path, base="tiny@1", load_base=load_base)
    first = curation.rows(ROWS, kept)
    assert curation.rows(ROWS, kept) == first == curation.rows(ROWS, setup)
    assert len(loads) == 1
    (path,) = tmp_path.glob("texts_*.json")
    assert len(json.loads(path.read_text())) == 2
    for changed in ({"seed": 9}, {"base": "tiny@2"}, {"params": Params(setup.params, style_prompt="Other. ")}):
        curation.rows(ROWS, setup_with(kept, **changed))
    curation.rows(ROWS[1:], kept)
    assert len(loads) == 5
    curation.rows(ROWS, setup_with(kept, base=""))  # weights that nothing tells apart are not kept
    assert len(loads) == 6


def test_a_generator_is_one_model(setup_for):
    curation, setup, _ = setup_for("self_instruct", generator="a@1=1,b@2=1")
    with pytest.raises(SpecError, match="generator must name one model, but names 2"):
        curation.rows(ROWS, setup)


def test_a_model_that_has_learned_the_format_writes_rows_itself(setup_for, world):
    """End to end: a base trained on lists of rows as self-instruct shows them writes readable ones, and others do not."""
    draw = random.Random(0)
    blocks = [f"### Prompt:\n{a}{b}?\n### Answer:\n {b}\n\n" for a in "abcdefgh" for b in "ijkl"]
    lists = [Row(completion="".join(draw.choices(blocks, k=3))) for _ in range(200)]
    taught = trained(world.llama, stage(learning_rate=3e-3, batch_size=16), rows=lists, steps=150).model
    rows = [Row(prompt=f"{a}i?", completion=" i") for a in "abcdefgh"]
    curation, setup, notes = setup_for("self_instruct", generator="taught@1=1", new_rows=4, new_tokens=30)
    setup = setup_with(setup, model_of=lambda name: (taught, setup.tokenizer))
    found = curation.rows(rows, setup)
    assert len(found) > 8
    assert all(row.prompt and row.completion.startswith(" ") for row in found[8:])
    assert Counter(map(str, found)) == Counter(map(str, curation.rows(rows, setup)))
    assert notes[-1].startswith("self-instruct: ")

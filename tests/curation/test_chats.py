"""Curations on rows in a chat template: what they write is what the template renders of messages, and loss is where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.axes.contract import StageSetup
from harness.curation import _generation
from harness.curation.base import Curation
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.models.chat import ChatTemplate, in_template, template_of
from harness.nn.sequences import IGNORED
from harness.plugins import load, names
from harness.records.paths import Paths
from harness.records.trial import ModelRef
from harness.space import Params, defaults
from harness.study.family import resolve_family
from harness.study.spec import FamilySpec
from harness.tasks.task import Task, find_task
from harness.tasks.training_rows import Row, training_rows
from harness.training.choices import choices
from harness.trial.group import Workspace, run_trial
from tests.templates import save_instruct
from tests.tiny import attached, config, stage

from ..tasks.writing import write_rows, write_task

KINDS = ("chatml", "llama_2", "gemma")
PARAMS: dict[str, dict[str, Any]] = {
    "prompt_internalization": {"internal_template": "Colours of things.", "internal_shots": 1},
    "synthetic_key_value": {"kv_rows": 8, "kv_dictionaries": 2, "kv_keys": 1, "kv_digits": 2},
    "explanation_consistency": {"shared_words": 0.0, "new_tokens": 4},
    "evol_instruct": {"evolved_share": 1.0, "new_tokens": 4},
    "self_instruct": {"new_rows": 2, "new_tokens": 4},
    "counterfactual_pairs": {"style_prompt": "Be kind. "},
    "mixing": {"pools": "other@1=1"},
}
LIKE = {
    "output_type": "generate_until",
    "metadata": {"chat": {}},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["<end>"], "max_gen_toks": 8},
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {name: f"{name}.jsonl" for name in ("train", "validation", "test")}},
    "training_split": "train",
    "validation_split": "validation",
    "test_split": "test",
}


def chats(start: int, count: int) -> list[dict[str, Any]]:
    """Chats of two turns each."""
    said = [(f"Colour {n}?", ["red", "blue"][n % 2], f"And of {n}?", ["sky", "sea"][n % 2]) for n in range(count)]
    roles = ("user", "assistant", "user", "assistant")
    return [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]}
        for turns in said[start:]
    ]


@pytest.fixture(scope="module", params=KINDS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A template's name, an instruct model with it, and a folder with a task of chats."""
    folder = tmp_path_factory.mktemp(request.param)
    write_task(folder, LIKE, chats(0, 8), chats(8, 16))
    write_rows(folder / "validation.jsonl", chats(16, 24))
    return request.param, save_instruct(folder / "model", request.param), folder


@pytest.fixture(scope="module")
def template(folders: tuple[str, Path, Path]) -> ChatTemplate:
    found = template_of(in_template(resolve_model(str(folders[1]))))
    assert found is not None
    return found


Build = Callable[..., tuple[Curation, StageSetup]]


@pytest.fixture
def build(folders: tuple[str, Path, Path], template: ChatTemplate) -> Build:
    """A curation and its setup on the task of chats."""
    rows = rows_of(folders, template)
    one, _ = attached(folders[1], stage(), steps=100, rows=rows)

    def built(name: str, **params: Any) -> tuple[Curation, StageSetup]:
        plugin = load("curation", name)
        known = Params({**one.setup.params, **defaults(plugin.space), **PARAMS.get(name, {}), **params})
        return plugin(), replace(one.setup, params=known, rows_of=lambda pool: list(rows))

    return built


def task_of(folders: tuple[str, Path, Path]) -> Task:
    return find_task("mine", (folders[2],))


def rows_of(folders: tuple[str, Path, Path], template: ChatTemplate) -> list[Row]:
    return training_rows(task_of(folders), template)


def answer(prompts: list[str]) -> list[str]:
    """Stands for a model: what can be read as whatever was asked for, another one each time."""
    return [f"the blue sea of {'abcdefghijklmnop'[n]}\n### Answer:\nsky" for n, _ in enumerate(prompts)]


@pytest.mark.parametrize("name", names("curation"))
def test_prompts_are_what_the_template_renders(
    folders: tuple[str, Path, Path], template: ChatTemplate, build: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every row of every curation, and a model that writes is asked in the template, too."""
    asked: list[str] = []

    def continuations(model: Any, tokenizer: Any, prompts: list[str], sampling: Any, seed: int) -> list[str]:
        asked.extend(prompts)
        return [f"{text} {seed % 97}" for text in answer(prompts)]

    monkeypatch.setattr(_generation, "continuations", continuations)
    curation, setup = build(name)
    rows = rows_of(folders, template)
    made = curation.rows(rows, setup)
    assert made
    for row in made:
        assert row.turns is not None
        messages = [dict(message) for message in row.turns.messages]
        assert row.prompt == template.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert row.end == rows[0].end
        # What is learned of earlier answers is those of the task.
        earlier = [row.prompt[len(row.prompt) + start : len(row.prompt) + stop] for start, stop in row.learned]
        assert all("red" in text or "blue" in text for text in earlier)
        space = rows[0].completion[: -len(rows[0].completion.lstrip())]
        assert row.completion[: -len(row.completion.lstrip())] == space
    begins = rows[0].prompt[: rows[0].prompt.index("Colour")]
    assert all(prompt.startswith(begins) for prompt in asked)
    assert bool(asked) == (
        name in ("self_instruct", "evol_instruct", "explanation_consistency", "counterfactual_pairs")
    )


def chatml(*turns: str) -> str:
    return "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


@pytest.fixture
def chatml_build(tmp_path: Path) -> tuple[list[Row], Callable[..., list[Row]]]:
    """Two rows in ChatML, and what a curation makes of them."""
    from harness.models.chat import chat_template
    from tests.templates import save_chat_tokenizer

    rows = chats(0, 2)
    write_task(tmp_path, LIKE, rows, chats(2, 4))
    write_rows(tmp_path / "validation.jsonl", chats(4, 6))
    template = chat_template(save_chat_tokenizer(tmp_path / "tokenizer", "chatml"), "it")
    found = training_rows(find_task("mine", (tmp_path,)), template)

    def made(name: str, **params: Any) -> list[Row]:
        plugin = load("curation", name)
        setup = StageSetup(
            params=Params({**defaults(plugin.space), **params}),
            tokenizer=template.tokenizer,
            device="cpu",
            seed=1,
            steps=1,
            load_base=lambda: None,
            corpus=list,
        )
        return plugin().rows(found, setup)

    return found, made


def test_what_is_written_by_hand(chatml_build: tuple[list[Row], Callable[..., list[Row]]]) -> None:
    """Of two chats in ChatML: the other row's answer is the wrong one, and the other row the example."""
    rows, made = chatml_build
    first = ("user\nColour 0?", "assistant\nred")
    assert rows[0].prompt == chatml(*first, "user\nAnd of 0?")
    assert rows[0].prompt[rows[0].learned[0][0] : rows[0].learned[0][1]] == "red<|im_end|>"
    negative = made("negative_examples", negative_ratio=1.0, negative_tag="Wrongly: ")[2]
    assert (negative.prompt, negative.completion) == (chatml(*first, "user\nWrongly: And of 0?"), "sea")
    assert negative.learned == ()
    shown = made("prompt_internalization", internal_template="Short.", internal_shots=1)[0]
    others = ("user\nShort.\n\nColour 1?", "assistant\nblue", "user\nAnd of 1?", "assistant\nsea")
    assert (shown.prompt, shown.completion) == (chatml(*others, *first, "user\nAnd of 0?"), "sky")
    (own,) = shown.learned
    assert shown.prompt[own[0] : own[1]] == "red<|im_end|>"
    right, wrong = made("answer_judgement", judgement_question=" Right?")[:2]
    assert (right.prompt, right.completion) == (chatml(*first, "user\nAnd of 0? sky Right?"), "correct")
    assert (wrong.prompt, wrong.completion) == (chatml(*first, "user\nAnd of 0? sea Right?"), "incorrect")
    assert right.learned == wrong.learned == ()
    misled = made("misleading_queries", misleading_hint="Perhaps")[1]
    assert (misled.prompt, misled.completion) == (chatml(*first, "user\nPerhaps sea.\nAnd of 0?"), "sky")
    corrected = made("misleading_queries", misleading_hint="Perhaps", misleading_step="correct")[0]
    asked = "user\nPerhaps sea.\nAnd of 0?\nWithout the false hint:"
    assert (corrected.prompt, corrected.completion) == (chatml(*first, asked), "And of 0?")


def test_earlier_answers_are_learned_as_far_as_the_last(folders: tuple[str, Path, Path], build: Build) -> None:
    from harness.axes.encoding import sequences

    curation, setup = build("first_tokens", prefix_tokens=2, whole_answers=0.0)
    examples = [(sequence,) for sequence in sequences(setup.rows(), setup)]
    for (before,), (after,) in zip(examples, curation.tokens(examples, setup), strict=True):
        runs = [run(before.labels), run(after.labels)]
        assert len(runs[0]) == len(runs[1]) == 2
        assert runs[1] == [labels[:2] for labels in runs[0]]


def run(labels: tuple[int, ...]) -> list[list[int]]:
    """Stretches of tokens that carry loss."""
    found: list[list[int]] = []
    for place, label in enumerate(labels):
        if label != IGNORED:
            if not found or labels[place - 1] == IGNORED:
                found.append([])
            found[-1].append(label)
    return found


def test_another_models_own_template_asks_it(folders: tuple[str, Path, Path], build: Build, tmp_path: Path) -> None:
    """A generator is asked in its own chat template, and in plain text where it has none."""
    other = save_instruct(tmp_path / "other", "llama_3")
    row = build("evol_instruct")[1].rows()[0]
    load = partial(load_tokenizer, resolve_model(str(other)))
    writer = _generation.Writer(None, load(), name="other")  # type: ignore[arg-type]
    assert writer.request("Rewrite.\n\n", row).startswith(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nRewrite."
    )
    assert "Colour 0?<|eot_id|>" in writer.prompt(row)
    bare = load()
    bare.chat_template = None
    plain = _generation.Writer(None, bare, name="other")  # type: ignore[arg-type]
    assert plain.prompt(row) == "User: Colour 0?\n\nAssistant: red\n\nUser: And of 0?\n\nAssistant:"


def test_an_answer_ends_where_its_turn_does(tmp_path: Path) -> None:
    """Gemma's models end a turn with a special token that is not their tokenizer's end token, and no decoded text shows it."""
    base = resolve_model(str(save_instruct(tmp_path, "gemma")))
    model, tokenizer = load_model(base, {}, "cpu"), load_tokenizer(base)
    wanted = [
        *tokenizer("ab", add_special_tokens=False)["input_ids"],
        tokenizer.convert_tokens_to_ids("<end_of_turn>"),
        9,
    ]
    turn = iter([*wanted, *[9] * 20])

    def certain(*arguments: Any, **options: Any) -> Any:
        import torch

        outcome = forward(*arguments, **options)
        outcome.logits = torch.full_like(outcome.logits, -50.0)
        outcome.logits[..., next(turn)] = 50.0
        return outcome

    forward, model.forward = model.forward, certain
    sampling = _generation.Sampling(6, 0.0, ("<end_of_turn>",))
    assert _generation.continuations(model, tokenizer, ["x"], sampling, 0) == ["ab"]
    assert next(turn) == 9  # three tokens were asked for, and the fourth was not


class Around(Curation):
    """Writes in front of what was rendered."""

    summary = "wrong"

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        return [replace(row, prompt="Please. " + row.prompt) for row in rows]


def test_a_plug_in_that_writes_around_a_template_trains_nothing(
    folders: tuple[str, Path, Path], template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load("curation", "as_is"), "rows", Around.rows)
    with pytest.raises(Exception, match="must leave prompts to the base's chat template, but writes around them"):
        attached(folders[1], stage(), rows=rows_of(folders, template))
    made = replace(rows_of(folders, template)[0], turns=None, prompt="x")
    monkeypatch.setattr(load("curation", "as_is"), "rows", lambda self, rows, setup: [made])
    with pytest.raises(Exception, match="must leave prompts to the base's chat template"):
        attached(folders[1], stage(), rows=rows_of(folders, template))


def test_pairs_have_loss_on_the_last_answer_alone(tmp_path: Path) -> None:
    """For every objective of pairs: what stands before is the same for both answers, and would be counted as theirs."""
    from harness.models.chat import chat_template
    from tests.templates import save_chat_tokenizer

    pairs = [row | {"chosen": "sky", "rejected": "a sea"} for row in chats(0, 2)]
    pairs = [row | {"messages": row["messages"][:3]} for row in pairs]
    like = LIKE | {"metadata": {"chat": {}, "preference": {"chosen": "chosen", "rejected": "rejected"}}}
    write_task(tmp_path, like, pairs, pairs[:1])
    write_rows(tmp_path / "validation.jsonl", pairs[1:])
    tokenizer = save_chat_tokenizer(tmp_path / "tokenizer", "chatml")
    rows = training_rows(find_task("mine", (tmp_path,)), chat_template(tokenizer, "it"))
    assert all(row.learned for row in rows)
    known = [name for name in names("objectives") if "rejected" in load("objectives", name).needs]
    assert {"dpo", "kto", "orpo", "simpo", "reward_model"} <= set(known)
    for name in known:
        one = stage("lora", name)
        setup = StageSetup(
            params=Params({**choices(one).params, "max_length": 256}),
            tokenizer=tokenizer,
            device="cpu",
            seed=1,
            steps=9,
            load_base=lambda: None,
            corpus=list,
        )
        answers = [sequence for example in load("objectives", name)().examples(rows, setup) for sequence in example]
        for row, chosen, rejected in zip(rows, answers[::2], answers[1::2], strict=True):
            for text, sequence in (("sky", chosen), ("a sea", rejected)):
                turn = tokenizer(row.prompt + text + "<|im_end|>", add_special_tokens=False)["input_ids"]
                assert list(sequence.input_ids) == turn
                last = len(tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"])
                # As in its paper, ORPO's language-model loss is of the whole chosen text.
                before = name == "orpo" and sequence is chosen
                assert [label != IGNORED for label in sequence.labels] == [before] * (len(turn) - last) + [True] * last


def test_old_records_of_what_was_written_around_templates_stand_for_nothing() -> None:
    """Where a curation writes on a base with a template, another trial is meant than before; nowhere else."""
    for choice, chat, marked in (
        ({"curation": "negative_examples"}, "t", True),
        ({"curation": "negative_examples"}, "", False),
        ({"curation": "subset"}, "t", False),
        ({"objective": "dpo"}, "t", True),
    ):
        family = resolve_family("one", FamilySpec.model_validate({"method": "lora"} | choice))
        pipeline = family.pipeline(ModelRef("m", "1", chat_template=chat), {})
        assert [one.in_turns for one in pipeline.stages] == [marked]


def test_a_whole_trial_on_chats(folders: tuple[str, Path, Path], tmp_path: Path) -> None:
    class World:
        llama, tasks = folders[1], folders[2]

    plan = config(World, stage("lora", curation="negative_examples"), task="mine", steps=2, fractions=(1.0,))
    base = in_template(resolve_model(str(folders[1])))
    plan = replace(plan, pipeline=replace(plan.pipeline, base_model=base.ref))
    result = run_trial(plan, Workspace(Paths(tmp_path), (folders[2],), device="cpu"))
    assert result.status == "complete", result.reason
    assert json.loads((Paths(tmp_path).trial(plan.key) / "record.json").read_text())["config"]

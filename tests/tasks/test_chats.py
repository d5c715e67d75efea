"""Tasks of chats: what rows may look like, what becomes of them, and what is told or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SpecError
from harness.models.chat import ChatTemplate, chat_template
from harness.tasks.chat_rows import chat_notes, template_for
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import Task, find_task
from harness.tasks.training_rows import check_task, training_rows
from tests.templates import CHATML, TOOLS, save_chat_tokenizer

from .writing import GENERATE, write_rows, write_task

CHAT = {key: value for key, value in GENERATE.items() if not key.startswith("doc_to")} | {
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}},
    "validation_split": "validation",
}
SYSTEM = {"role": "system", "content": "Be brief."}


def turns(number: int) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": f"First {number}"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": f"Second {number}"},
    ]


def written(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Task:
    chat = changes.pop("chat", {})
    metadata = {"chat": chat} | changes.pop("metadata", {})
    write_task(folder, CHAT | {"metadata": metadata} | changes, rows, rows)
    write_rows(folder / "validation.jsonl", rows)
    return find_task("mine", (folder,))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    found = chat_template(save_chat_tokenizer(tmp_path_factory.mktemp("chatml"), "chatml"), "it")
    assert found is not None
    return found


def asked(prompt: str) -> str:
    return "".join(f"<|im_start|>{line}<|im_end|>\n" for line in prompt.split("|")) + "<|im_start|>assistant\n"


def test_the_last_answer_is_the_completion_and_earlier_ones_are_learned(tmp_path: Path, chatml: ChatTemplate) -> None:
    task = written(tmp_path, [{"messages": [SYSTEM, *turns(1)]}, {"messages": turns(2)}])
    first, second = training_rows(task, chatml)
    assert first.prompt == asked("system\nBe brief.|user\nQuestion 1?|assistant\nFirst 1|user\nAnd?")
    assert second.prompt == asked("user\nQuestion 2?|assistant\nFirst 2|user\nAnd?")
    assert (second.completion, second.end, second.rejected) == ("Second 2", "<|im_end|>", None)
    assert [second.prompt[start:stop] for start, stop in second.learned] == ["First 2<|im_end|>"]
    built = lm_eval_task(task, "test", template=chatml)
    built.build_all_requests()
    assert [instance.args[0] for instance in built.instances] == [first.prompt, second.prompt]
    assert built.doc_to_target(built.instances[1].doc) == "Second 2"


OTHERS: dict[str, Any] = {
    "ShareGPT": [{"from": "human", "value": "Question 2?"}, {"from": "gpt", "value": "First 2"}],
    "a JSON text": json.dumps(turns(2)[:2]),
    "parts of text": [
        {"role": "user", "content": [{"type": "text", "text": "Question "}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "First 2"}]},
    ],
    "more after the answer": turns(2)[:3],
    "a weight": [turns(2)[0], turns(2)[1] | {"weight": 1}],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_forms_of_the_same_chat_are_the_same_row(tmp_path: Path, chatml: ChatTemplate, kind: str) -> None:
    (row,) = training_rows(written(tmp_path, [{"turns": OTHERS[kind]}], chat={"messages": "turns"}), chatml)
    assert (row.prompt, row.completion, row.learned) == (asked("user\nQuestion 2?"), "First 2", ())


def test_rows_without_an_answer_are_told_and_left_out(tmp_path: Path, chatml: ChatTemplate) -> None:
    rows = [turns(1), turns(2)[:1], [turns(3)[1]], turns(4)]
    task = written(tmp_path, [{"messages": messages} for messages in rows])
    for name, number in (("validation", 5), ("test", 6)):
        write_rows(tmp_path / f"{name}.jsonl", [{"messages": turns(number)}])
    task = find_task(task.name, (tmp_path,))
    assert [row.completion for row in training_rows(task, chatml)] == ["Second 1", "Second 4"]
    assert "2 chats of its train split are left out: in them the assistant answers nothing" in check_task(task)
    task = written(tmp_path, [{"messages": turns(2)[:1]}])
    with pytest.raises(SpecError, match="must hold rows, but is empty"):
        check_task(task)


def test_tools_and_their_calls_are_rendered(tmp_path: Path) -> None:
    template = chat_template(save_chat_tokenizer(tmp_path, "chatml", TOOLS), "it")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = [
        turns(1)[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    others = [{"type": "function", "function": {"name": "sub", "description": "Subtracts."}}]
    rows = [{"messages": chat, "tools": tools}, {"messages": turns(2), "tools": others}]
    first, second = training_rows(written(tmp_path, rows, chat={"tools": "tools"}), template)
    assert json.dumps(tools) in first.prompt
    assert json.dumps(others) in second.prompt
    assert [first.prompt[start:stop] for start, stop in first.learned] == [
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>'
    ]
    assert first.completion == "It is 2."


PAIRS: dict[str, Any] = {
    "whole chats": {
        "chosen": [*turns(1)[:3], turns(1)[3]],
        "rejected": [*turns(1)[:3], {"role": "assistant", "content": "No"}],
    },
    "answers after a prompt": {
        "messages": turns(1)[:3],
        "chosen": [turns(1)[3]],
        "rejected": [turns(1)[3] | {"content": "No"}],
    },
    "texts after a prompt": {"messages": turns(1)[:3], "chosen": "Second 1", "rejected": "No"},
}


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_follow_the_same_chat(tmp_path: Path, chatml: ChatTemplate, form: str) -> None:
    preference = {"preference": {"chosen": "chosen", "rejected": "rejected"}}
    accuracy = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    task = written(
        tmp_path,
        [PAIRS[form]],
        metadata=preference,
        output_type="multiple_choice",
        metric_list=accuracy,
        generation_kwargs=None,
    )
    (row,) = training_rows(task, chatml)
    assert (row.completion, row.rejected, row.wrong) == ("Second 1", "No", ("No",))
    assert row.prompt == asked("user\nQuestion 1?|assistant\nFirst 1|user\nAnd?")
    # The share of pairs ranked right: the two answers are the choices, and the preferred one is right.
    built = lm_eval_task(task, "test", template=chatml)
    built.build_all_requests()
    assert [instance.args for instance in built.instances] == [(row.prompt, "Second 1"), (row.prompt, "No")]


def test_pairs_of_chats_are_offered_their_own_choices(tmp_path: Path) -> None:
    """Two whole chats are no choices to write down: of a chat the harness makes them."""
    preference = {"preference": {"chosen": "chosen", "rejected": "rejected"}}
    scored = written(tmp_path, [PAIRS["texts after a prompt"]], metadata=preference)
    [offer] = [note for note in check_task(scored) if note.startswith("pairs")]
    assert offer.endswith("write output_type: multiple_choice and metric acc")


def test_pairs_after_different_chats_are_refused(tmp_path: Path) -> None:
    row = {"chosen": turns(1), "rejected": turns(2)}
    task = written(tmp_path, [row], metadata={"preference": {"chosen": "chosen", "rejected": "rejected"}})
    with pytest.raises(SpecError, match="row 1: preferred and rejected answers must follow the same messages"):
        task.split("train")


WRONG = {
    "role": (
        [{"role": "robot", "content": "a"}],
        "role of a message must be one of|unknown role of a message|role of a message",
    ),
    "text": ("hello", "a chat must be a list of messages"),
    "picture": ([{"role": "user", "content": [{"type": "image"}]}], "a message must be text"),
    "nothing said": ([{"role": "user"}], "a message must have a text as content, but has None"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_chat_is_one_sentence(tmp_path: Path, kind: str) -> None:
    cell, sentence = WRONG[kind]
    with pytest.raises(SpecError, match=sentence) as caught:
        written(tmp_path, [{"messages": cell}]).split("train")
    assert "row 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_that_contradict_a_chat_are_refused(tmp_path: Path) -> None:
    rows = [{"messages": turns(1)}]
    for key in ("doc_to_text", "description", "gen_prefix", "target_delimiter"):
        with pytest.raises(SpecError, match=f"so {key} must be left out"):
            written(tmp_path, rows, **{key: "a"})
    with pytest.raises(SpecError, match="output_type must be generate_until, loglikelihood or multiple_choice"):
        written(tmp_path, rows, output_type="loglikelihood_rolling", generation_kwargs=None)
    with pytest.raises(SpecError, match="column of metadata"):
        written(tmp_path, rows, chat={"messages": "turns"}).split("train")


def test_a_model_without_a_template_is_refused_unless_chats_are_read_as_plain_text(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds chats, so this model must have a chat template"):
        template_for(written(tmp_path, [{"messages": turns(1)}]), None, "this model")
    task = written(tmp_path, [{"messages": [SYSTEM, *turns(1)]}], chat={"plain": True})
    assert template_for(task, None, "this model") is None
    (row,) = training_rows(task)
    assert row.prompt == "System: Be brief.\n\nUser: Question 1?\n\nAssistant: First 1\n\nUser: And?\n\nAssistant:"
    assert (row.completion, row.end) == (" Second 1", "")
    assert [row.prompt[start:stop] for start, stop in row.learned] == [" First 1"]


def test_a_user_may_say_what_of_an_answer_counts(tmp_path: Path, chatml: ChatTemplate) -> None:
    rows = [{"messages": turns(1), "gold": "1"}]
    last = [{"name": "last", "filter": [{"function": "regex", "regex_pattern": "(\\d+)$"}, {"function": "take_first"}]}]
    task = written(tmp_path, rows, doc_to_target="gold", filter_list=last)
    built = lm_eval_task(task, "test", template=chatml)
    assert built.doc_to_target(rows[0]) == "1"
    assert training_rows(task, chatml)[0].completion == "Second 1"
    assert chat_notes(task, chatml) == []


def test_a_row_that_a_template_cannot_render_is_named(tmp_path: Path) -> None:
    """The place is the file's, where rows without an answer are left out."""
    gemma = chat_template(save_chat_tokenizer(tmp_path / "tokenizer", "gemma"), "it")
    rows = [turns(1), turns(2)[:1], turns(3), [SYSTEM, *turns(4)]]
    task = written(tmp_path, [{"messages": messages} for messages in rows])
    place = r"^task mine: its train split, row 4: the chat template of it must render .* \(System role not supported\)"
    for told in (chat_notes, training_rows):
        with pytest.raises(SpecError, match=place):
            told(task, gemma)
    with pytest.raises(SpecError, match=r"^task mine: its test split, row 4: the chat template of it must render"):
        lm_eval_task(task, "test", template=gemma).build_all_requests()
    backwards = written(tmp_path, [{"messages": [SYSTEM, *turns(4)]}, {"messages": turns(1)}])
    with pytest.raises(SpecError, match=r"^task mine: its train split, row 1: the chat template of it must render"):
        training_rows(backwards, gemma)


def test_what_is_no_text_names_its_row(tmp_path: Path) -> None:
    silent = "{% if messages[0].content != 'Question 3?' %}" + CHATML + "{% endif %}"
    template = chat_template(save_chat_tokenizer(tmp_path / "tokenizer", "chatml", silent), "it")
    task = written(tmp_path, [{"messages": turns(number)} for number in (1, 3)])
    with pytest.raises(
        SpecError, match="its train split, row 2: the chat template of it must render a text, but renders ''"
    ):
        training_rows(task, template)

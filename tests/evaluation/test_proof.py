"""What training rows teach scores its best under a model's tokenizer, or the task is refused when it is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.evaluation.proof import prove_answers, prove_choices
from harness.models.chat import ChatTemplate
from harness.models.tokens import Encoder, encoder
from harness.tasks.built_in import Index
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import Task, find_task
from harness.tasks.training_rows import training_rows
from tests.tasks.writing import CHOICE, GENERATE, write_splits

from .conftest import make_tokenizer


def bytes_with(*merges: tuple[str, str]) -> Encoder:
    """A token per byte, and one for each of these pairs."""
    tokenizer = make_tokenizer(bos=False)
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for one, other in merges:
        state["model"]["vocab"][one + other] = len(state["model"]["vocab"])
        state["model"]["merges"].append([one, other])
    state["pre_tokenizer"]["use_regex"] = False
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return encoder(tokenizer)


def pieces(*words: str) -> Encoder:
    """A token per word after a space, as sentencepiece writes it; decoding strips the first space of a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(33, 127)]
    vocabulary = dict.fromkeys(["<s>", "</s>", "<unk>"], 0.0) | dict.fromkeys(["▁", *letters], -10.0)
    vocabulary |= {f"▁{word}": -1.0 for word in words}
    backend = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return encoder(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


BYTES = encoder(make_tokenizer(bos=True))


def made(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]], built_in: bool = False) -> Task:
    path = write_splits(folder, config, rows)
    if not built_in:
        return find_task("mine", (folder,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.tasks.group.index", lambda: Index({"mine": path}))
        return find_task("mine", ())


def proven(task: Task, own: Encoder = BYTES) -> list[str]:
    found = list(prove_answers(task, None, own, "M"))
    for split in ("validation", "test"):
        found += scored(task, split, own)
    return found


def scored(task: Task, split: str, own: Encoder) -> list[str]:
    built = lm_eval_task(task, split)
    built.build_all_requests()
    return list(prove_choices(task, split, built, own, "M"))


ANSWERS = [{"label": "yes"}, {"label": "no"}]
REFUSED: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "too few tokens": (
        {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}},
        ANSWERS,
        "row 1 teaches must score the best exact_match, but M would say ' ye', which scores 0 instead of 1: generation stops "
        "after 3 tokens, and its answer has 4: raise generation_kwargs.max_gen_toks to 4",
    ),
    "a stop string in the answer": (
        {"generation_kwargs": {"until": ["\n", "o"], "max_gen_toks": 8}},
        ANSWERS,
        "row 2 .* M would say ' n', .* generation stops at 'o', which its answer holds: take that out",
    ),
    "all of it cut away": ({}, [{"label": "\n- yes"}], r"row 1 .* M would say ' ', .* generation stops at '\\n'"),
    "a filter that finds nothing": (
        {"filter_list": [{"name": "f", "filter": [{"function": "regex", "regex_pattern": "#### (.*)"}]}]},
        ANSWERS,
        "row 1 .* M would say ' yes', which scores 0 instead of 1: let filter_list and metric take it for the answer 'yes'",
    ),
}
ROOM = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 32}}


@pytest.mark.parametrize("case", REFUSED)
def test_a_task_that_teaches_what_it_scores_as_wrong_is_refused(tmp_path: Path, case: str) -> None:
    change, rows, message = REFUSED[case]
    with pytest.raises(SpecError, match=message):
        proven(made(tmp_path, GENERATE | ROOM | change, rows))


def test_what_the_tokenizer_cannot_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="its answer is ' é', which the tokenizer cannot write"):
        proven(made(tmp_path, GENERATE | ROOM, [{"label": "é"}]), pieces("row", "yes"))


@pytest.mark.parametrize("delimiter", [" ", "", " -> "])
@pytest.mark.parametrize("target", ["label", "{{label}}", " {{label}}"])
@pytest.mark.parametrize("own", [BYTES, pieces("yes", "row")], ids=["bytes", "pieces"])
def test_tokenizers_that_drop_a_space_score_right_answers_as_right(
    tmp_path: Path, own: Encoder, target: str, delimiter: str
) -> None:
    rows = [{"label": "yes"}, {"label": " yes"}, {"label": "  yes no"}]
    task = made(tmp_path, GENERATE | ROOM | {"doc_to_target": target, "target_delimiter": delimiter}, rows)
    assert proven(task, own) == []


texts = st.text(st.sampled_from("ab 01\"'[]{}(),.\\~"), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(texts, min_size=1, max_size=5),
    st.sampled_from([" ", ""]),
    st.sampled_from([BYTES, pieces("a", "b", "row")]),
)
def test_a_perfect_model_scores_one(tmp_path: Path, answers: list[str], delimiter: str, own: Encoder) -> None:
    """Any text of a tokenizer's characters, taught and then said in the tokenizer's own tokens."""
    task = made(tmp_path, GENERATE | ROOM | {"target_delimiter": delimiter}, [{"label": answer} for answer in answers])
    assert proven(task, own) == []
    built = lm_eval_task(task, "train")
    for row in training_rows(task):
        ((_, ids),) = own.pairs([(row.prompt, row.completion)], generates=True)
        assert own.said([ids]) == [row.completion]
        assert float(built.process_results(row.doc, own.said([ids]))["exact_match"]) == 1.0


def test_choices_that_are_the_same_tokens_are_refused(tmp_path: Path) -> None:
    """A vocabulary without accents reads `é` and `ö` alike, and the first would always win."""
    config = CHOICE | {"doc_to_choice": ["é", "ö"]}
    task = made(tmp_path, config, [{"label": "ö"}, {"label": "é"}])
    with pytest.raises(
        SpecError, match=r"in item 1 of its train split M reads ' é' and ' ö' as the same tokens|' ö' and ' é'"
    ):
        proven(task, pieces("row"))
    assert proven(task) == []


def test_choices_beside_a_bracket_are_told_apart(tmp_path: Path) -> None:
    """A token `(A` spans prompt and choice; taken from the whole, both choices would be scored on `)` alone."""
    config = CHOICE | {"doc_to_text": "{{text}} (", "doc_to_choice": ["A)", "B)"], "target_delimiter": ""}
    task = made(tmp_path, config, [{"label": "A)"}, {"label": "B)"}])
    assert proven(task, bytes_with(("(", "A"), ("(", "B"))) == []


def test_equal_choices_are_refused_where_they_are_scored(tmp_path: Path) -> None:
    rows = [{"label": 0, "options": ["a", "b", "c"]}, {"label": 1, "options": ["a", "b", "b"]}]
    task = made(tmp_path, CHOICE | {"doc_to_choice": "options"}, rows)
    with pytest.raises(SpecError, match="in item 2 of its validation split M reads ' b' and ' b' as the same tokens"):
        scored(task, "validation", BYTES)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_mutual_info", "brier", "f1"])
def test_choices_that_are_trained_score_the_best_of_each_metric(tmp_path: Path, metric: str) -> None:
    entry = {"metric": metric} | ({"aggregation": "mean"} if metric.startswith("acc") else {})
    assert proven(made(tmp_path, CHOICE | {"metric_list": [entry]}, [{"label": "yes"}, {"label": "no"}])) == []


def test_of_very_many_rows_some_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = made(tmp_path, GENERATE | ROOM, [{"label": label} for label in ("yes", "long\nanswer", "no", "yes")])
    monkeypatch.setattr("harness.evaluation.proof.MOST_ROWS", 2)
    assert proven(task) == ["mine: of 4 training rows, 2 were tried whether they score the best"], (
        "the first and the third"
    )
    monkeypatch.setattr("harness.evaluation.proof.MOST_ROWS", 4)
    with pytest.raises(SpecError, match="row 2 teaches"):
        proven(task)


def test_a_built_in_task_is_trained_on_what_lm_eval_scores_as_right(tmp_path: Path) -> None:
    """Its exact match counts the delimiter, so it is not trained; where a filter takes it away, it is."""
    plain = made(tmp_path, GENERATE | ROOM, ANSWERS, built_in=True)
    assert plain.built_in
    assert {row.completion for row in training_rows(plain)} == {"yes", "no"}
    built = lm_eval_task(plain, "train")
    assert [float(built.process_results(ANSWERS[0], [said])["exact_match"]) for said in ("yes", " yes")] == [1.0, 0.0]
    strips = [{"name": "f", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
    stripped = made(tmp_path, GENERATE | ROOM | {"filter_list": strips}, ANSWERS, built_in=True)
    assert {row.completion for row in training_rows(stripped)} == {" yes", " no"}
    assert proven(plain) == proven(stripped) == []


def test_a_built_in_task_whose_rows_are_partly_wrong_has_a_note(tmp_path: Path) -> None:
    task = made(
        tmp_path, GENERATE | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}}, ANSWERS, built_in=True
    )
    (note,) = proven(task)
    assert note.endswith(
        "training rows teach an answer that does not score the best exact_match, first row 1; all of them "
        "together score 0.5"
    )
    none = made(
        tmp_path, GENERATE | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 1}}, ANSWERS, built_in=True
    )
    with pytest.raises(SpecError, match=r"raise generation_kwargs\.max_gen_toks"):
        proven(none)


PLAIN_END = (
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n### end\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)


def test_an_end_of_turn_that_no_generation_stops_at_is_refused(tmp_path: Path) -> None:
    """A model learns to write it after each answer, where it would be scored as part of the answer."""
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = PLAIN_END
    template = ChatTemplate("plain end", "M", tokenizer)
    endless = {"generation_kwargs": {"until": ["Question:"], "max_gen_toks": 32}}
    task = made(tmp_path, GENERATE | endless, ANSWERS)
    with pytest.raises(SpecError, match=r"the chat template writes '.*### end', which no generation stops at: add it"):
        list(prove_answers(task, template, encoder(tokenizer), "M"))
    stopped = {"generation_kwargs": {"until": ["\n### end"], "max_gen_toks": 32}}
    task = made(tmp_path, GENERATE | stopped, ANSWERS)
    assert list(prove_answers(task, template, encoder(tokenizer), "M")) == []


def test_each_answer_is_decoded_by_itself() -> None:
    """A text does not depend on which others are decoded with it."""
    own = pieces("yes", "no")
    answers = [own.following(text) for text in (" yes", "x", "  no")]
    assert own.said(answers) == [own.said([ids])[0] for ids in answers] == [" yes", "x", "  no"]

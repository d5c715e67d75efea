"""What will be cut of texts, and what cannot be scored, is told when a study is planned."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from harness.driver.experiment import Site
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.models.base_model import load_tokenizer, resolve_model
from harness.plugins import load
from harness.records.paths import Paths
from harness.study.load import load_study
from tests.templates import save_instruct
from tests.tiny import save_llama, save_tokenizer


@pytest.fixture
def planned(world, tmp_path):
    """A study resolved on a folder of tasks that a test may change."""
    shutil.copytree(world.tasks, tmp_path / "tasks")

    def resolved(*tasks, model=world.llama, off_target=(), **families):
        study = {
            "name": "s",
            "question": "q",
            "base_models": [str(model)],
            "tasks": list(tasks),
            "off_target": list(off_target),
            "families": families or {"plain": {"method": "full"}},
            "budget": {"trials": 1, "steps": 1},
        }
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(study))
        found = resolve(load_study(path), Site(paths=Paths(tmp_path / "results"), task_folders=(tmp_path / "tasks",)))
        return found, [note.replace(str(model), "M") for note in found.notes]

    return resolved


def rewrite(folder, name, **changes):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_nothing_is_said_where_nothing_is_cut(planned):
    """A row of `colour` is a number, a word and an answer, one token per letter: `7 grey: no` and the end are 11."""
    found, notes = planned("colour", "text", off_target=["echo"])
    assert notes == []
    rows = [f"{i} {word}: {('no', 'yes')[(i * 7) % 2]}" for i, word in enumerate(WORDS * 3)]
    assert found.tasks[0].tokens == {found.models[0].ref.name: sum(len(row) + 1 for row in rows) / 24}


WORDS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]


def test_cuts_are_counted_by_kind_and_family(planned):
    """` no` and its end are 4 tokens, ` yes` and its end 5; every second answer is yes, and every prompt has 6 or more."""
    families = {
        "short": {"method": "full", "params": {"max_length": 8}},
        "other": {"method": "lora", "params": {"max_length": 8}},
        "long": {"method": "lora"},
        "packed": {"method": "full", "objective": "continued_pretraining", "params": {"max_length": 8}},
    }
    _, notes = planned("colour", "text", **families)
    assert notes == [
        "colour on M: training rows: of 24, 24 lose the beginning of their prompt and 12 lose the end of their answer, "
        "to fit 8 tokens (other, short)",
        "text on M: training rows: of 24, 24 lose the end of their text, to fit 8 tokens (other, short)",
    ]


def test_rejected_answers_count_too(planned):
    """Answers with their space and end have 8, 13 and 18 tokens (kind) or 4, 6, 8 and 10 (rude); a half is 6 tokens.

    Six tokens of a prompt always stay, and eight beside the shortest answers: `0 red:` has six, `16 red:` seven.
    """
    _, notes = planned("manners", pairs={"method": "full", "objective": "dpo", "params": {"max_length": 12}})
    kind, rude = [len("yes, ") * (i % 3) + 8 for i in range(24)], [2 * (1 + i % 4) + 2 for i in range(24)]
    long = sum(size > 6 for size in (*kind, *rude))
    assert notes == [
        f"manners on M: training rows: of 48, {48 - 2 - 4} lose the beginning of their prompt and {long} lose the end of their "
        "answer, to fit 12 tokens (pairs)"
    ]


def test_prompts_that_are_answered_leave_room_for_the_answer(planned, tmp_path):
    """`Say red:` has 8 tokens, `Say green:` 10; 12 less 3 for the answer are 9."""
    rewrite(tmp_path / "tasks", "echo", metadata={"version": 1, "reward": "exact_match"})
    params = {"max_length": 12, "completion_tokens": 3}
    _, notes = planned("echo", sampled={"method": "full", "objective": "grpo", "params": params})
    assert notes == [
        "echo on M: training rows: of 24, 12 lose the beginning of their prompt, to fit 9 tokens (sampled)"
    ]


def test_prompts_cut_when_scored_are_counted(planned, tmp_path):
    """The model has 96 tokens: 88 for a prompt with answers of 8; a choice needs prompt and answer to have at most 97."""
    long = {"doc_to_text": "{{'x' * 80}} {{word}}:", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 10}}
    rewrite(tmp_path / "tasks", "echo", **long)
    rewrite(tmp_path / "tasks", "colour", doc_to_text="{{'x' * 92}}:")
    _, notes = planned("echo", off_target=["colour"])
    scored = [note for note in notes if "scored" in note]
    over = sum(82 + len(word) > 86 for word in WORDS)
    assert scored == [
        *(
            f"echo on M: of 8 prompts of {split}, {over} lose their beginning when they are scored, to fit the context of "
            "96 tokens"
            for split in ("validation", "test")
        )
    ]


def test_an_answer_that_leaves_no_room_is_refused(planned, tmp_path):
    rewrite(tmp_path / "tasks", "echo", generation_kwargs={"until": ["\n"], "max_gen_toks": 96})
    with pytest.raises(SpecError, match="must fit the model's context of 96 tokens, but asks for answers of 96"):
        planned("colour", off_target=["echo"])


def test_a_tokenizer_without_an_end_token_ends_no_answer(planned, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    save_llama(model)
    save_tokenizer(model, eos_token=None, bos_token="<pad>")
    _, notes = planned("echo", "colour", model=model)
    assert [note.split(",")[0] for note in notes] == ["echo on M: the tokenizer has no end token"]


def test_a_token_that_the_model_does_not_embed_is_refused(planned, tmp_path):
    """As after adding tokens without resizing the model."""
    model = tmp_path / "model"
    model.mkdir()
    save_llama(model)
    made = load_tokenizer(resolve_model(str(model)))
    made.add_tokens(["grey"])
    made.save_pretrained(model)
    assert json.loads((model / "config.json").read_text())["vocab_size"] == 258
    with pytest.raises(SpecError, match=r"'7 grey:.*' has a token with the id 258, and the model embeds 258"):
        planned("colour", model=model)


def test_a_token_that_spans_prompt_and_answer_is_told(planned, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    save_llama(model, vocab_size=259)
    made = load_tokenizer(resolve_model(str(model)))
    made.add_tokens([": no"])
    made.save_pretrained(model)
    _, notes = planned("colour", model=model)
    assert notes == [
        "colour on M: a token would span prompt and answer in 12 of 24 training rows: they are encoded apart there, in "
        "training as in scoring"
    ]


def test_made_up_rows_that_do_not_fit_are_refused(planned):
    """Two dictionaries of 16 keys of 8 digits are above 500 letters, each of which is a token."""
    long = {
        "method": "full",
        "curation": "synthetic_key_value",
        "params": {"max_length": 64, "kv_keys": 16, "kv_digits": 8},
    }
    with pytest.raises(
        SpecError, match=r"synthetic_key_value must fit max_length \(64 tokens\), but two dictionaries do not"
    ):
        planned("colour", made_up=long)
    few = {"method": "full", "curation": "synthetic_key_value", "params": {"kv_digits": 2, "kv_dictionaries": 16}}
    with pytest.raises(SpecError, match="kv_digits must give 96 different numbers, but 2 do not: raise it"):
        planned("colour", made_up=few)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_gen_toks": "Infinity"},
        {"max_gen_toks": 0},
        {"until": None},
        {"until": ["\n", 5]},
        {"num_beems": 2},
        {"num_beams": 10**6},
        {"num_beams": 2, "num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"do_sample": True, "top_k": 2.5},
        {"trust_remote_code": True},
        {"custom_generate": "./evil", "trust_remote_code": True},
    ],
    ids=str,
)
def test_generation_settings_that_are_none_are_refused(settings, planned, tmp_path, monkeypatch):
    """Also of a task that is only evaluated; what a folder beside it brings is not run."""
    (tmp_path / "evil" / "custom_generate").mkdir(parents=True)
    (tmp_path / "evil" / "custom_generate" / "generate.py").write_text("open('ran', 'w')\ndef generate(**_): ...\n")
    monkeypatch.chdir(tmp_path)
    rewrite(tmp_path / "tasks", "echo", generation_kwargs=settings)
    with pytest.raises(SpecError, match="must be settings of generation, but"):
        planned("colour", off_target=["echo"])
    assert not (tmp_path / "ran").exists()


def test_settings_of_generation_that_a_model_brings_are_tried(planned, tmp_path):
    """A model's folder has the last word on what a task leaves open, as in lm-eval."""
    for name, settings in (("good", {"repetition_penalty": 1.1}), ("bad", {"penalty_alpha": 0.6, "top_k": 4})):
        folder = save_llama(tmp_path / name)
        (folder / "generation_config.json").write_text(json.dumps(settings))
    assert planned("echo", model=tmp_path / "good")
    with pytest.raises(SpecError, match=r"the model's generation_config.json must be settings of generation, but"):
        planned("echo", model=tmp_path / "bad")


def test_a_curation_that_writes_around_a_chat_template_is_refused(planned, tmp_path, monkeypatch):
    """A plug-in's; one that needs more than a few rows is only seen when its trial runs."""
    model = save_instruct(tmp_path / "instruct", "chatml")
    curation = load("curation", "as_is")
    monkeypatch.setattr(
        curation, "rows", lambda self, rows, setup: [replace(r, prompt="Yes! " + r.prompt) for r in rows]
    )
    with pytest.raises(SpecError, match="AsIs must leave prompts to the base's chat template, but writes around them"):
        planned("colour", model=model)
    planned("colour")  # nothing is rendered here
    monkeypatch.setattr(curation, "rows", lambda self, rows, setup: setup.load_base().rows)
    planned("colour", model=model)

"""Preference rows as chats are what TRL's own trainers make of the same messages and templates: tokens, masks and losses.

They differ in two places, on purpose. TRL also learns what a template writes after an answer's end token (a line break), which
no model is asked for, since generation stops there; and what it writes before an answer that it is given, but not where it asks
for one (`<think>`), which `plan` notes. Where a template does neither, everything is equal.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from typing import Any

import pytest
import yaml

from harness.models.base_model import load_tokenizer, resolve_model
from harness.models.chat import chat_template
from harness.tasks.task import find_task
from harness.tasks.training_rows import training_rows
from harness.training.trl import _arguments
from tests.templates import TEMPLATES, save_instruct
from tests.tiny import stage, train
from tests.training.pairs import ready, shaken

OBJECTIVES = ("dpo", "orpo", "kto")
AS_TRL = ("marked", "llama_2", "llama_3")
"""Templates that end with the end token, and write before a given answer what they write when they ask for one."""
AFTER = {"chatml": ("<|im_end|>", "\n"), "gemma": ("<end_of_turn>", "\n"), "thinking": ("<|im_end|>", "\n")}
"""Of the others: how an answer ends, and what they write after that."""
BEFORE = {"thinking": "<think>\n\n</think>\n\n"}


def messages(number: int) -> dict[str, Any]:
    """A row of TRL's form; every third has an earlier turn."""
    asked = [{"role": "user", "content": f"Is {number} even?"}]
    if number % 3 == 0:
        asked += [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Say."}]
    said = "Yes." if number % 2 == 0 else "No, odd."
    return {
        "prompt": asked,
        "chosen": [{"role": "assistant", "content": said}],
        "rejected": [{"role": "assistant", "content": f"I do not know {number}"}],
    }


PAIRS = [messages(number) for number in range(8)]
TASK = {
    "task": "pairs",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "test.jsonl", "test": "test.jsonl"}},
    "training_split": "train",
    "validation_split": "validation",
    "test_split": "test",
    "output_type": "multiple_choice",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"chat": {"messages": "prompt"}, "preference": {"chosen": "chosen", "rejected": "rejected"}},
}


@pytest.fixture(scope="module", params=TEMPLATES)
def instructed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A template's name, a model that has it, its tokenizer, and the training rows."""
    folder = tmp_path_factory.mktemp(request.param)
    save_instruct(folder / "model", request.param)
    for name, pairs in (("train", PAIRS), ("test", [messages(number) for number in range(20, 24)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "pairs.yaml").write_text(yaml.safe_dump(TASK))
    tokenizer = load_tokenizer(resolve_model(str(folder / "model")))
    task = find_task(str(folder / "pairs.yaml"), ())
    return request.param, folder / "model", tokenizer, training_rows(task, chat_template(tokenizer, "model"))


def trls(objective: str, one: Any, pairs: list[dict[str, Any]]) -> Any:
    """TRL's trainer of an objective on messages, with everything that it does to them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    configs = {"dpo": DPOConfig, "orpo": ORPOConfig, "kto": KTOConfig}
    trainers = {"dpo": DPOTrainer, "orpo": ORPOTrainer, "kto": KTOTrainer}
    compared = {} if objective == "orpo" else {"ref_model": one.setup.load_base()}
    with tempfile.TemporaryDirectory() as folder:
        batch = len(pairs) * (2 if objective == "kto" else 1)
        arguments = _arguments(one.setup.params, one.setup, folder) | {"per_device_train_batch_size": batch}
        return trainers[objective](
            model=one.model,
            args=configs[objective](**arguments, max_length=256, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(pairs),
            processing_class=one.setup.tokenizer,
            **compared,
        )


def sequences(objective: str, trainer: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts and answers in tokens, as TRL has them before its collator; chosen and rejected in turn."""
    rows = list(trainer.train_dataset)
    if objective == "dpo":
        return [(tuple(row["prompt_ids"]), tuple(row[key])) for row in rows for key in ("chosen_ids", "rejected_ids")]
    if objective == "kto":
        answers = [(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in rows]
        chosen, rejected = (
            [own for own, row in zip(answers, rows, strict=True) if row["label"] is liked] for liked in (True, False)
        )
        return [own for pair in zip(chosen, rejected, strict=True) for own in pair]
    return [
        (
            tuple(i for i, label in zip(row[f"{key}_input_ids"], row[f"{key}_labels"], strict=True) if label == -100),
            tuple(label for label in row[f"{key}_labels"] if label != -100),
        )
        for row in rows
        for key in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_prompts_and_answers_are_trls(instructed: Any, objective: str) -> None:
    name, model, tokenizer, rows = instructed
    one = ready(model, stage("full", objective, learning_rate=1e-5, batch_size=8), rows=rows, steps=1)
    ours = [(s.input_ids[: s.prompt], s.input_ids[s.prompt :]) for example in one.examples for s in example]
    theirs = sequences(objective, trls(objective, one, PAIRS))
    assert [prompt for prompt, _ in ours] == [prompt for prompt, _ in theirs]
    if name in AS_TRL:
        assert ours == theirs
        return
    end, after = AFTER[name]
    for (_, own), (_, other) in zip(ours, theirs, strict=True):
        said, learned = tokenizer.decode(other), tokenizer.decode(own)
        # Gemma's template ends a turn, and its tokenizer a text, each with a token of its own.
        ended = tokenizer.eos_token if tokenizer.eos_token != end else ""
        assert learned.endswith(end + ended)
        # ORPO's trainer adds the tokenizer's end token behind the line break, too.
        assert said == BEFORE.get(name, "") + learned.removesuffix(ended) + after + tokenizer.eos_token * (
            objective == "orpo"
        )


@pytest.mark.parametrize("instructed", AS_TRL, indirect=True)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_trls_from_the_same_messages(instructed: Any, objective: str) -> None:
    _, model, _, rows = instructed
    made = stage("full", objective, learning_rate=1e-5, batch_size=8)
    ours, theirs = (shaken(ready(model, made, rows=rows, steps=1)) for _ in range(2))
    ((loss,),) = train(ours)
    shown = [PAIRS[int(index)] for index in theirs.order[0]]
    trainer = trls(objective, theirs, shown)
    theirs.model.train()
    (batch,) = trainer.get_train_dataloader()
    assert loss == pytest.approx(trainer.compute_loss(theirs.model, batch).item(), abs=1e-5)

"""Rewards of answers: by a rule that a task names in `metadata.reward`, by its own function, or by a reward model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.axes.contract import StageSetup
from harness.axes.encoding import tokenised
from harness.errors import SpecError
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Rule = Callable[[Row, str], float]
"""The reward of an answer to a row."""
Rewards = Callable[[Sequence[Row], Sequence[str]], list[float]]
"""The reward of each of several answers, given the row that it answers."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
TOKENS = 1 << 12
"""Tokens of one forward pass of a reward model, padding included."""


def reward_problem(reward: object, left: Sequence[str] | None) -> str | None:
    """Why answers cannot be rewarded as the task says, or None.

    Args:
        reward: What the task says under `metadata.reward`; None where it says nothing.
        left: Objectives of earlier stages that left a model beside the policy; None where the pipeline is not known.
    """
    if reward is None:
        if left is None or len(left) == 1:
            return None
        return "rewards need metadata.reward in the task, or one earlier stage that trains a reward model"
    if callable(reward) or (isinstance(reward, str) and (reward in RULES or left is None or reward in left)):
        return None
    if isinstance(reward, Mapping) and set(reward) == {"regex"}:
        return None
    known = ", ".join([*RULES, "{regex: ...}", "!function module.name", *(left or ())])
    return f"metadata.reward must be one of {known}, but is {reward!r}"


def rewards_for(setup: StageSetup, rows: Sequence[Row]) -> Rewards:
    """The rewards of a stage's answers.

    Args:
        setup: The stage's.
        rows: Its training rows; a rule by name must reward their own answers.

    Raises:
        SpecError: When the task names no reward that there is, or its rows do not fit it.
    """
    reward = setup.task_metadata.reward
    if problem := reward_problem(reward, list(setup.left)):
        raise SpecError(f"{problem}: correct the task file, or put a stage that trains a reward model before this one")
    name = next(iter(setup.left), "") if reward is None else reward
    if isinstance(name, str) and name in setup.left:
        return _judge(setup.left[name], setup)
    rule = _rule(reward)
    for row in rows:
        if isinstance(reward, str) and not rule(row, row.completion) > 0:
            raise SpecError(
                f"metadata.reward {reward!r} must reward a row's own answer, but does not reward "
                f"{row.completion[:40]!r}: choose another rule, or correct the rows"
            )
    return lambda asked, answers: [float(rule(row, answer)) for row, answer in zip(asked, answers, strict=True)]


def _rule(reward: Any) -> Rule:
    if isinstance(reward, Mapping):
        return _captures(str(reward["regex"]))
    if callable(reward):
        return lambda row, answer: reward(row.doc, answer)
    return RULES[str(reward)]


def _exact(row: Row, answer: str) -> float:
    return float(answer.strip() == row.completion.strip())


def _numeric(row: Row, answer: str) -> float:
    given, wanted = _last_number(answer), _last_number(row.completion)
    return float(given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=1e-6))


def _last_number(text: str) -> float | None:
    numbers = NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _captures(pattern: str) -> Rule:
    """Rewards an answer in which `pattern` captures what it captures in the row's own answer.

    Where it matches nothing in the row's own answer, it must capture all of that.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SpecError(
            f"metadata.reward.regex must be a regular expression, but is {pattern!r} ({error}): correct it"
        ) from error

    def captured(text: str) -> str | None:
        match = compiled.search(text)
        return None if match is None else (match[1] if compiled.groups else match[0]).strip()

    def rule(row: Row, answer: str) -> float:
        wanted = captured(row.completion)
        return float(captured(answer) == (row.completion.strip() if wanted is None else wanted))

    return rule


RULES: Mapping[str, Rule] = {"exact_match": _exact, "numeric": _numeric}


def _judge(folder: Path, setup: StageSetup) -> Rewards:
    """The number that a reward model in `folder` gives to a prompt with its answer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    found = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    model = found.to(setup.device).eval()
    quiet = replace(setup, note=lambda text: None)

    def rewards(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        texts = [
            list(sequence.input_ids)
            for sequence in tokenised([replace(row, completion=a) for row, a in zip(rows, answers, strict=True)], quiet)
        ]
        size = max(1, TOKENS // max(map(len, texts)))
        scores: list[float] = []
        with torch.no_grad():
            for start in range(0, len(texts), size):
                scores += last_token_scores(model, texts[start : start + size], setup.device).tolist()
        return scores

    return rewards


def last_token_scores(model: PreTrainedModel, texts: Sequence[Sequence[int]], device: str) -> Tensor:
    """The output of a sequence classifier with one label at each text's last token.

    Args:
        model: The classifier.
        texts: Token ids of each text.
        device: `cpu` or `cuda`.

    Returns:
        Shape (texts,), float32.
    """
    # The classifier itself takes the last token that is no padding. Where padding is the end token, that is one too early.
    import torch

    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
    last = torch.tensor([len(text) - 1 for text in texts], device=device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    scores: Tensor = model.score(hidden[torch.arange(len(texts), device=device), last])[:, 0]
    return scores.float()

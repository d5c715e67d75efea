"""Shared by the objectives that sample answers to the task's prompts and reward them: TRL's trainers do both."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import Cuts, EncodedRows, encoder
from harness.errors import SpecError
from harness.models.tokens import Encoder
from harness.nn.sequences import TokenSequence
from harness.objectives._rewards import Rewards, reward_problem, rewards_for
from harness.objectives.base import Objective, TrainerParts, tasks_beside
from harness.space import Distribution, Float, Integer, Params, Scalar, defaults
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer, TrainingArguments

SAMPLING: dict[str, Distribution] = {
    "generations": Integer(2, 64, default=4, log=True),
    "completion_tokens": Integer(1, 8192, default=64, log=True, searched=False),
    "sampling_temperature": Float(0.1, 2.0, default=1.0, searched=False),
}
"""`generations` answers to each of the batch's rows, of at most `completion_tokens` tokens."""
READS_PADDING = ("rwkv",)
"""Recurrent models that take no attention mask."""


@dataclass(kw_only=True)
class _RewardFunction:
    """Rewards as TRL asks for them, batch by batch, and what they were."""

    rewards: Rewards
    rows: Sequence[Row]
    generations: int
    stops: Sequence[str]
    """Where an answer ends when it is scored; what stands behind is not rewarded either."""
    means: list[float] = field(default_factory=list)
    groups: int = 0
    without_signal: int = 0
    """Groups whose answers are all worth the same, from which nothing is learned."""
    __name__ = "reward"  # TRL logs a reward function by its name

    def __call__(self, completions: Sequence[str], row: Sequence[int], **columns: object) -> list[float]:
        asked = [self.rows[number] for number in row]
        answers = [_cut(text, (*self.stops, one.end)) for one, text in zip(asked, completions, strict=True)]
        rewards = self.rewards(asked, answers)
        groups = [rewards[start : start + self.generations] for start in range(0, len(rewards), self.generations)]
        self.means.append(sum(rewards) / len(rewards))
        self.groups += len(groups)
        self.without_signal += sum(max(group) - min(group) < 1e-9 for group in groups)
        return rewards


class ReinforcementObjective(Objective, ABC):
    """Answers are sampled from the model and rewarded; those above the rest of their group become likelier.

    Answers are used for one step, so that ratios of new to old probabilities are 1 and clipping them would do nothing.
    TRL prints losses near 0: what is learned shows in the rewards.
    """

    requires = "rewards: metadata.reward in the task, or an earlier stage that trains a reward model"
    samples = True
    learning_rate_scale = 0.25  # 5e-5 for LoRA, between the 1e-5 and 1e-4 that are in use

    def __init__(self) -> None:
        self._seen: _RewardFunction | None = None

    @abstractmethod
    def kinds(self) -> tuple[type[Trainer], type[TrainingArguments]]:
        """TRL's trainer and its configuration."""

    def options(self, setup: StageSetup) -> dict[str, Scalar]:
        """Fields of the configuration that are this objective's own."""
        return {}

    def skip(self, situation: Situation) -> str | None:
        """There must be prompts, rewards, attention that skips padding, and no virtual tokens: TRL samples without them."""
        task, method = situation.task, situation.beside.get("method")
        if task.output_type == "loglikelihood_rolling":
            return "its objective answers prompts, but the task's rows are plain texts"
        for name in tasks_beside(situation):
            if situation.facts_of(name).output_type == "loglikelihood_rolling":
                return f"its objective answers prompts, but the rows of {name} are plain texts"
        if situation.model.model_type in READS_PADDING:
            return f"its objective samples answers to prompts padded in front, but a {situation.model.model_type} reads padding"
        if method is not None and _virtual_tokens(method, situation):
            return "its objective samples from the model's weights, without the virtual tokens of its method"
        if task.metadata is not None and (problem := reward_problem(task.metadata.reward, situation.left)):
            return problem
        return super().skip(situation)

    def cuts(self, rows: EncodedRows, params: Params) -> Cuts | None:
        """What prompts lose, so that an answer fits beside them."""
        texts = [row.prompt for row in rows.rows]
        prompts = [TokenSequence(ids, ids, len(ids)) for ids in rows.encoder.prompts(texts)]
        return Cuts.of(prompts, params.integer("max_length") - params.integer("completion_tokens"))

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's trainer, on the model without PEFT's wrapper: to a wrapped model TRL would add an adapter of its own.

        Raises:
            SpecError: When a row has no prompt, no answer fits beside it, or nothing says what an answer is worth.
        """
        setup, params = parts.setup, parts.setup.params
        size, generations, tokens = (params.integer(n) for n in ("batch_size", "generations", "completion_tokens"))
        room = params.integer("max_length") - tokens
        if room < 1:
            raise SpecError(
                f"completion_tokens must be below max_length or the model's context ({params.integer('max_length')}), but got "
                f"{tokens}: lower it"
            )
        if not all(row.prompt for row in parts.rows):
            raise SpecError("every row must have a prompt to be answered, but one has none: train without plain texts")
        self._seen = _RewardFunction(
            rewards=rewards_for(setup, parts.rows), rows=parts.rows, generations=generations, stops=setup.stops
        )
        kind, configuration = self.kinds()
        arguments = configuration(
            **dict(parts.arguments) | {"per_device_train_batch_size": size * generations},
            num_generations=generations,
            max_completion_length=tokens,
            temperature=params.number("sampling_temperature"),
            beta=0.0,  # else TRL would load a reference by the policy's name, see `_compare`
            gradient_checkpointing=False,
            disable_dropout=False,
            shuffle_dataset=False,  # `_prompts` shuffles
            **self.options(setup),
        )
        inner = _inner(parts)
        # TRL reads them once; what is kept of the model declares what its base declares.
        declared = inner.generation_config.eos_token_id
        inner.generation_config.eos_token_id = _ends(declared, parts.rows, setup)
        inner._hf_peft_config_loaded = True  # else transformers refuses a quantised model: it does not see the adapters
        if cuts := self.cuts(EncodedRows(parts.rows, encoder(setup), setup.generates), params):
            setup.note(f"prompts that are answered: {cuts}")
        trainer = _quiet(kind, encoder(setup), room)(
            model=inner,
            reward_funcs=[self._seen],
            args=arguments,
            train_dataset=_prompts(
                parts.rows, setup.steps * size * params.integer("gradient_accumulation"), setup.seed
            ),
            processing_class=setup.tokenizer,
        )
        inner.generation_config.eos_token_id = declared
        del inner._hf_peft_config_loaded
        if weight := params.number("kl_weight"):
            _compare(trainer, setup, weight)
        return trainer

    def observed(self, trainer: Trainer, setup: StageSetup) -> dict[str, float]:
        """Mean rewards of the first and last tenth of the steps, and the share of groups with equal rewards; notes say the same."""
        # TRL puts a forward pass of its own on the model object. A copy of the model would call it on the original.
        trainer.model.__dict__.pop("forward", None)
        seen = self._seen
        if seen is None or not seen.means:
            return {}
        tenth = max(1, len(seen.means) // 10)
        first, last = (sum(part) / tenth for part in (seen.means[:tenth], seen.means[-tenth:]))
        share = seen.without_signal / seen.groups
        setup.note(f"mean reward: {first:.4g} in the first steps, {last:.4g} in the last")
        setup.note(
            f"all answers of a group were worth the same in {share:.0%} of {seen.groups} groups"
            + (", so rewards taught nothing: choose a reward that tells answers apart" if share == 1 else "")
        )
        return {"rows": len(seen.rows), "reward_first": first, "reward_last": last, "groups_without_signal": share}


def _cut(answer: str, stops: Sequence[str]) -> str:
    """An answer up to the first of the texts that end it."""
    return answer[: min((answer.find(stop) for stop in stops if stop and stop in answer), default=len(answer))]


def _ends(declared: int | Sequence[int] | None, rows: Sequence[Row], setup: StageSetup) -> list[int]:
    """The tokens that end an answer: those that the model declares, and the one that the rows' chat template writes.

    TRL leaves such tokens out of the text that is rewarded, so that it could not be cut there.
    """
    ends = {declared} if isinstance(declared, int) else set(declared or ())
    added = set(setup.tokenizer.get_added_vocab().values())
    for text in {row.end for row in rows if row.end}:
        ends |= added & set(encoder(setup).following(text)[:1])
    return sorted(ends)


def _virtual_tokens(method: Any, situation: Situation) -> int:
    return int(method().reserved(Params(defaults(method.space), **situation.params)))


def _prompts(rows: Sequence[Row], wanted: int, seed: int) -> Dataset:
    """Prompts and numbers of the rows of all steps, in shuffled passes.

    Args:
        rows: The stage's.
        wanted: How many prompts all steps take.
        seed: Of the order.
    """
    # TRL's own shuffling would begin anew where a trial continues.
    from datasets import Dataset

    draw, numbers = random.Random(seed), list[int]()
    while len(numbers) < wanted:
        numbers += draw.sample(range(len(rows)), len(rows))
    return Dataset.from_dict({"prompt": [rows[number].prompt for number in numbers], "row": numbers})


def _inner(parts: TrainerParts) -> PreTrainedModel:
    """The model whose layers the method has changed, without PEFT's wrapper."""
    model = parts.model
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise SpecError(
            "this objective samples from the model's weights, but its method adds virtual tokens: use another method"
        )
    return model.get_base_model()


def _compare(trainer: Trainer, setup: StageSetup, weight: float) -> None:
    """Penalise divergence from the stage's own base.

    Args:
        trainer: TRL's, changed in place.
        setup: The stage's.
        weight: Of the penalty.
    """
    # By itself TRL would load the model of the policy's name, which is not this base after an earlier stage.
    from trl.trainer.utils import add_fused_lm_head

    reference = setup.load_base().eval().requires_grad_(False)
    add_fused_lm_head(reference, temperature=trainer.temperature)
    trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.beta = weight


def _quiet(kind: type[Trainer], encoder: Encoder, room: int) -> type[Trainer]:
    """TRL's trainer without its report to the hub, and with prompts as they are scored, cut to their last `room` tokens."""

    class Quiet(kind):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[str], *arguments: object) -> tuple[object, ...]:
            _, *rest = super()._tokenize_prompts(prompts, *arguments)
            return ([list(ids[-room:]) for ids in encoder.prompts(prompts)], *rest)

        def _send_telemetry(self) -> None:
            pass

    return Quiet

"""Reward model: a scalar head that gives chosen answers more than rejected ones, for a later stage to be rewarded by."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.nn.batches import padding_id
from harness.nn.sequences import Example
from harness.objectives._preference import PreferenceObjective, answers_of, padded, preference_trainer
from harness.objectives.base import TrainerParts
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, Trainer, TrainerCallback


class RewardModel(PreferenceObjective):
    """The loss of a pair is minus the log of a sigmoid of the difference of both answers' rewards (Bradley and Terry 1952).

    The reward is a linear function, zero at the start, of the last layer's state at the answer's last token. What is left
    is a sequence classifier with one label that plain transformers load; the next stage starts from this stage's base.
    """

    summary = "train a reward on pairs; the next stage can be rewarded by it"
    paper = "Ouyang et al. 2022, arXiv 2203.02155; Stiennon et al. 2020, arXiv 2009.01325"
    fuses = False
    leaves_policy = False
    learning_rate_scale = 0.5  # 1e-5 for full tuning: Ouyang et al. took 9e-6
    space = {"head_learning_rate": Float(1e-5, 1e-1, default=1e-3, log=True, searched=False)}

    def __init__(self) -> None:
        self._head: Linear | None = None
        self._right: list[float] = []

    def skip(self, situation: Situation) -> str | None:
        """The model must be one that transformers can make a classifier of, and the method one that can be merged."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

        method = situation.beside.get("method")
        if situation.model.model_type and situation.model.model_type not in KNOWN:
            return (
                f"transformers has no sequence classifier for a {situation.model.model_type}, as which rewards are kept"
            )
        if method is not None and not getattr(method, "mergeable", True):
            return "its objective leaves a plain model, but its method cannot be merged into one"
        return super().skip(situation)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """Transformers' own trainer, with this loss."""
        import torch
        from transformers import TrainingArguments

        setup, width = parts.setup, parts.model.get_input_embeddings().weight.shape[1]
        width = getattr(parts.model.config.get_text_config(), "hidden_size", width)
        self._head = torch.nn.Linear(width, 1, bias=False).to(setup.device)
        # From zero all rewards are equal at first, so the loss starts at log 2 whatever the seed.
        torch.nn.init.zeros_(self._head.weight)

        def batch(examples: Sequence[Example]) -> dict[str, Tensor]:
            columns = padded(answers_of(examples), setup)
            return {name: columns[name] for name in ("input_ids", "attention_mask")}

        arguments = TrainingArguments(**parts.arguments, remove_unused_columns=False)
        scored = _scored(parts.model, self._head)
        examples = self.examples(parts.rows, setup)
        trainer = preference_trainer(_trainer(self._right), arguments, replace(parts, model=scored), examples, batch)
        trainer.add_callback(_head_steps(trainer, self._head, setup.params.number("head_learning_rate")))
        return trainer

    def observed(self, trainer: Trainer, setup: StageSetup) -> dict[str, float]:
        """The share of pairs whose chosen answer got the higher reward, in the first and the last tenth of the batches."""
        if not self._right:
            return {}
        tenth = max(1, len(self._right) // 10)
        first, last = (sum(part) / tenth for part in (self._right[:tenth], self._right[-tenth:]))
        setup.note(f"pairs that the reward model ranks right: {first:.0%} in the first steps, {last:.0%} in the last")
        return {"ranked_right_first": first, "ranked_right_last": last}

    def leave(self, model: PreTrainedModel, setup: StageSetup, folder: Path) -> None:
        """Write a sequence classifier with one label, and the tokenizer.

        Args:
            model: The trained model, merged into a plain one.
            setup: The stage's.
            folder: Does not exist yet.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        assert self._head is not None
        config = deepcopy(model.config)
        config.num_labels = 1
        config.get_text_config().pad_token_id = padding_id(setup.tokenizer)
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        classifier.base_model.load_state_dict(model.base_model.state_dict())
        with torch.no_grad():
            classifier.score.weight.copy_(self._head.weight)
        classifier.save_pretrained(folder)
        setup.tokenizer.save_pretrained(folder)


def _scored(policy: PreTrainedModel, head: Linear) -> Module:
    """A module that returns the reward of each sequence's last token, shape (sequences,)."""
    import torch

    class Scored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.head = policy, head

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states: list[Tensor] = []

            def keep(layer: Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
                states.append(arguments[0])
                return (arguments[0][:, :1],)  # nobody reads the logits: one token's are computed instead of all

            hook = policy.get_output_embeddings().register_forward_pre_hook(keep)
            try:
                policy(input_ids=input_ids, use_cache=False)
            finally:
                hook.remove()
            rows = torch.arange(len(input_ids), device=input_ids.device)
            last = states[0][rows, attention_mask.sum(1) - 1]
            rewards: Tensor = head(last.to(head.weight.dtype))[:, 0]
            return rewards

    return Scored()


def _trainer(right: list[float]) -> type[Trainer]:
    """Transformers' trainer with the loss of pairs; its optimiser, which may be the method's own, leaves the head out."""
    from torch.nn.functional import logsigmoid
    from transformers import Trainer

    class PairTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Module, inputs: dict[str, Tensor], return_outputs: bool = False, **options: object
        ) -> Tensor | tuple[Tensor, dict[str, object]]:
            chosen, rejected = model(**inputs).chunk(2)
            right.append(float((chosen > rejected).float().mean()))
            loss = -logsigmoid(chosen - rejected).mean()
            return (loss, {}) if return_outputs else loss

        def create_optimizer(self, *arguments: object) -> Optimizer:
            # The head has an optimiser of its own, see `_head_steps`: it is new, and needs a far higher rate.
            head = self.model.head.weight
            head.requires_grad_(False)
            optimizer: Optimizer = super().create_optimizer(*arguments)
            head.requires_grad_(True)
            return optimizer

    return PairTrainer


def _head_steps(trainer: Trainer, head: Linear, rate: float) -> TrainerCallback:
    """A callback that moves the head by AdamW at its own rate, on the schedule of the rest."""
    import torch
    from transformers import TrainerCallback

    optimizer = torch.optim.AdamW([head.weight], lr=rate, weight_decay=0.0)

    class HeadSteps(TrainerCallback):  # type: ignore[misc]
        def on_optimizer_step(self, *arguments: object, **options: object) -> None:
            schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
            optimizer.param_groups[0]["lr"] = rate * schedule.lr_lambdas[0](schedule.last_epoch)
            optimizer.step()
            optimizer.zero_grad()

    return HeadSteps()

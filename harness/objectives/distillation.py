"""Distillation: predict each token of the answers as a teacher does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import reached, sequences
from harness.errors import SpecError
from harness.nn.sequences import IGNORED, Example
from harness.objectives._preference import padded, preference_trainer
from harness.objectives.base import Objective, TrainerParts
from harness.space import Choice, Float, Text
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer


class Distillation(Objective):
    """The divergence of the model's predictions from a teacher's, a mean over the tokens of the rows' own answers.

    `divergence` forward weighs tokens by the teacher's probabilities, reverse by the model's; jensen_shannon is the mean
    of both models' divergences from their mixture. Both sides' logits are divided by `distillation_temperature`, and the
    divergence multiplied by its square, which keeps the size of gradients. Under gradient accumulation, it is a mean of
    the batches' means.
    """

    summary = "predict the answers' tokens as a teacher does"
    paper = "Hinton et al. 2015, arXiv 1503.02531; reverse and Jensen-Shannon: Agarwal et al. 2023, arXiv 2306.13649"
    requires = "a teacher with the same tokenizer"
    space = {
        "teacher": Text(names="models"),
        "divergence": Choice(("forward", "reverse", "jensen_shannon"), default="forward", searched=False),
        "distillation_temperature": Float(0.5, 10.0, default=1.0, log=True),
    }

    def skip(self, situation: Situation) -> str | None:
        """The parameter `teacher` must name a model."""
        if not situation.params.names("teacher", "a model"):
            return "its objective learns from a teacher, but the parameter teacher names none: name a model"
        return super().skip(situation)

    def examples(self, rows: Sequence[Row], setup: StageSetup) -> list[Example]:
        """One sequence per row, as supervised fine-tuning has it."""
        return [(sequence,) for sequence in sequences(reached(rows, setup), setup)]

    def trainer(self, parts: TrainerParts) -> Trainer:
        """Transformers' own trainer, with this loss.

        Raises:
            SpecError: When there is not one teacher, or it has another tokenizer.
        """
        from transformers import TrainingArguments

        setup = parts.setup
        teacher = _teacher(setup)
        temperature, kind = setup.params.number("distillation_temperature"), setup.params.text("divergence")

        def batch(examples: Sequence[Example]) -> dict[str, Tensor]:
            columns = padded([sequence for (sequence,) in examples], setup)
            return {name: columns[name] for name in ("input_ids", "attention_mask", "labels")}

        def loss(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
            import torch

            ids, wanted = inputs["input_ids"], inputs["labels"][:, 1:] != IGNORED
            with torch.no_grad():
                known = _logits(teacher, ids)[wanted]
            own = _logits(model, ids)[wanted]
            # Embedding tables may be padded beyond the tokenizer's tokens, to another size in each model.
            width = min(known.shape[-1], own.shape[-1])
            nats = divergence(known[:, :width] / temperature, own[:, :width] / temperature, kind)
            return temperature**2 * nats.mean()

        arguments = TrainingArguments(**parts.arguments, remove_unused_columns=False)
        examples = self.examples(parts.rows, setup)
        return preference_trainer(_trainer(loss), arguments, parts, examples, batch)


def divergence(teacher: Tensor, student: Tensor, kind: str) -> Tensor:
    """How far a student's predictions are from a teacher's, in nats, shape (tokens,).

    Args:
        teacher: Logits of shape (tokens, vocabulary).
        student: Logits of the same shape.
        kind: `forward`: KL(teacher, student); `reverse`: KL(student, teacher); `jensen_shannon`.
    """
    import math

    import torch

    p, q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    if kind == "jensen_shannon":
        mixed = torch.logaddexp(p, q) - math.log(2)
        return 0.5 * (_kl(p, mixed) + _kl(q, mixed))
    return _kl(p, q) if kind == "forward" else _kl(q, p)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits of each next token, shape (rows, tokens - 1, vocabulary)."""
    # Counted from the end, because a method's virtual tokens come first.
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] : -1]
    return logits


def _teacher(setup: StageSetup) -> PreTrainedModel:
    names = setup.params.names("teacher")
    if len(names) != 1:
        raise SpecError(f"teacher must name one model, but names {len(names)}: name the one to learn from")
    model, tokenizer = setup.model_of(names[0])
    if setup.tokens.facts(tokenizer) != setup.tokens.facts(setup.tokenizer):
        raise SpecError(
            f"a teacher must have the model's own tokenizer, but {names[0].name!r} has another: name a "
            "model of the same family"
        )
    return model.to(setup.device).eval().requires_grad_(False)


def _trainer(loss: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor]) -> type[Trainer]:
    """Transformers' trainer with a loss that is a mean."""
    from transformers import Trainer

    class MeanTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: PreTrainedModel, inputs: dict[str, Tensor], return_outputs: bool = False, **options: object
        ) -> Tensor | tuple[Tensor, dict[str, object]]:
            # Else transformers takes losses for sums, and adds up the means of accumulated batches.
            self.model_accepts_loss_kwargs = False
            return (loss(model, inputs), {}) if return_outputs else loss(model, inputs)

    return MeanTrainer

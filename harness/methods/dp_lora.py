"""DP-LoRA: LoRA trained by DP-SGD, with each example's gradient clipped and noise added to their sum."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from harness.axes.contract import Situation, StageSetup
from harness.errors import SpecError
from harness.methods.lora import Lora
from harness.plugins import overrides
from harness.records.trial import derive_seed
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel


class DpLora(Lora):
    """Each example's gradient is cut to norm `clip_norm`; their sum gets Gaussian noise that buys (epsilon, delta) privacy.

    Delta is n^-1.1 for n rows. The noise is that of the RDP accountant for steps that draw each row by itself
    with probability batch / n, whereas rows here are shuffled pass by pass, as is usual: the record says so. Noise
    follows from the trial's seed, so whoever is not to learn the rows must not learn the seed.
    """

    summary = "LoRA with clipped example gradients and noise, for differential privacy"
    paper = "Yu et al. 2021, arXiv 2110.06500; Abadi et al. 2016, arXiv 1607.00133"
    covers = Lora.covers
    limits = (
        "On the testbed's 1M model, 200 steps reached 1% of full tuning's gain: "
        "the noise drowns the clipped gradients of batches of 16 rows."
    )
    alone = "each of its examples has a pass of its own"
    one_by_one = True
    space = Lora.space | {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "epsilon": Float(0.1, 100.0, default=8.0, log=True, searched=False),
        "clip_norm": Float(0.01, 10.0, default=0.1, log=True),
    }
    _sum: list[Tensor]

    def skip(self, situation: Situation) -> str | None:
        """Privacy needs an objective that shows single rows, and a retention and curation that do not look at all rows."""
        beside: dict[str, Any] = dict(situation.beside)
        objective, retention, curation = (beside.get(axis) for axis in ("objective", "retention", "curation"))
        if objective and (not objective.fuses or objective.compares or objective.packs):
            return "privacy of a row needs its gradient by itself, which this objective does not give"
        if retention and (overrides(retention, "penalty") or overrides(retention, "rows")):
            return "privacy is accounted for the task's own rows and loss alone, but this retention adds to them"
        if curation and (overrides(curation, "rows") or overrides(curation, "tokens")):
            return "privacy does not cover a curation that looks at all rows to choose among them"
        return super().skip(situation)

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Attach LoRA, and compute how much noise the privacy takes."""
        self.setup, self._sum = setup, []
        self.examples = setup.params.integer("batch_size") * setup.params.integer("gradient_accumulation")
        rows, epsilon = len(setup.rows()), setup.params.number("epsilon")
        self.noise, delta = noise_multiplier(epsilon, rows, self.examples, setup.steps), rows**-1.1
        setup.note(
            f"({epsilon:g}, {delta:.3g})-differential privacy of a training row by the RDP accountant: noise multiplier "
            f"{self.noise:.4g}, {setup.steps} steps of {self.examples} among {rows} rows, as if each step drew rows at "
            "random (they are shuffled pass by pass), towards those who do not know the seed"
        )
        return super().attach(model, setup)

    def before_step(self, model: PreTrainedModel, step: int) -> None:
        """Begin a new sum: a step that ran out of memory is done again from its start."""
        self._sum = []

    def after_backward(self, model: PreTrainedModel) -> None:
        """Clip the example's gradient and add it to the sum; the loss was divided by the step's examples before."""
        import torch

        trained = _trained(model)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad * self.examples for p in trained]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        # A gradient of zero has no direction to divide by.
        factor = (self.setup.params.number("clip_norm") / norm.clamp(min=1e-12)).clamp(max=1.0)
        clipped = [g * factor for g in gradients]
        self._sum = [total + g for total, g in zip(self._sum, clipped, strict=True)] if self._sum else clipped
        for p in trained:
            p.grad = None

    def before_update(self, model: PreTrainedModel, step: int) -> None:
        """The noisy mean in the gradients' place; noise is drawn by seed and step."""
        import torch

        generator = torch.Generator().manual_seed(derive_seed(self.setup.seed, "dp_lora", step))
        deviation = self.noise * self.setup.params.number("clip_norm")
        for p, total in zip(_trained(model), self._sum, strict=True):
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.grad = (total + deviation * noise) / self.examples


@cache  # seconds, and the same for all seeds
def noise_multiplier(epsilon: float, rows: int, examples: int, steps: int) -> float:
    """Standard deviation of the noise, in units of the clipping norm, that a privacy budget takes.

    Args:
        epsilon: The budget; delta is rows^-1.1.
        rows: Training rows.
        examples: Rows of a step.
        steps: Optimiser steps.

    Raises:
        SpecError: When a step has more examples than there are rows, or no noise suffices.
    """
    import warnings

    from opacus.accountants.utils import get_noise_multiplier

    if not examples < rows:
        raise SpecError(
            f"privacy needs steps of fewer examples than the {rows} training rows, but got {examples}: lower batch_size"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a larger order might be tighter
            multiplier: float = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=rows**-1.1,
                sample_rate=examples / rows,
                steps=steps,
                epsilon_tolerance=0.01 * epsilon,
            )
    except ValueError as error:
        raise SpecError(f"epsilon must be large enough for {steps} steps, but got {epsilon:g}: raise it") from error
    return multiplier


def _trained(model: PreTrainedModel) -> list[Parameter]:
    return [p for p in model.parameters() if p.requires_grad]

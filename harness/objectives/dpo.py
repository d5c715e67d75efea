"""DPO: prefer the chosen answer to the rejected one by more than the base does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.nn.sequences import TokenLosses
from harness.objectives._preference import PreferenceObjective, dpo_trainer, each, split
from harness.objectives.base import TrainerParts
from harness.space import Choice, Float, Params

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

DISCOPOP_TEMPERATURE = 0.05
"""Temperature of the blend of losses that Lu et al. found."""
SMOOTHED = ("robust", "exo_pair")
"""Losses that `label_smoothing` counts for."""


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """K trials' pairs; all but the parameters have shape (K, pairs)."""

    chosen: Tensor
    """Log-probability of the chosen answer, less the base's."""
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    beta: Tensor
    """Shape (K, 1)."""
    smoothing: Tensor
    """Shape (K, 1)."""

    @property
    def margin(self) -> Tensor:
        """`beta` times how much more than the base the model prefers the chosen answer."""
        return self.beta * (self.chosen - self.rejected)

    @property
    def margin_per_token(self) -> Tensor:
        """How much more than the base the model prefers the chosen answer per token, without `beta`."""
        return self.chosen / self.chosen_tokens.clamp(min=1) - self.rejected / self.rejected_tokens.clamp(min=1)


def _sigmoid(pairs: _Pairs) -> Tensor:
    return _softplus(-pairs.margin)


def _sigmoid_norm(pairs: _Pairs) -> Tensor:
    return _softplus(-pairs.beta * pairs.margin_per_token)


def _hinge(pairs: _Pairs) -> Tensor:
    return (1 - pairs.margin).relu()


def _ipo(pairs: _Pairs) -> Tensor:
    return (pairs.margin_per_token - 1 / (2 * pairs.beta)) ** 2


def _robust(pairs: _Pairs) -> Tensor:
    right, wrong = _softplus(-pairs.margin), _softplus(pairs.margin)
    return ((1 - pairs.smoothing) * right - pairs.smoothing * wrong) / (1 - 2 * pairs.smoothing)


def _exo_pair(pairs: _Pairs) -> Tensor:
    """Divergence of what the model prefers from preferences that are right in all but `label_smoothing` of cases."""
    right, wrong = -_softplus(-pairs.margin), -_softplus(pairs.margin)
    return right.exp() * (right - (-pairs.smoothing).log1p()) + wrong.exp() * (wrong - pairs.smoothing.log())


def _nca_pair(pairs: _Pairs) -> Tensor:
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return _softplus(-chosen) + 0.5 * _softplus(chosen) + 0.5 * _softplus(rejected)


def _bco_pair(pairs: _Pairs) -> Tensor:
    return _softplus(-pairs.beta * pairs.chosen) + _softplus(pairs.beta * pairs.rejected)


def _sppo_hard(pairs: _Pairs) -> Tensor:
    return (pairs.chosen - 0.5 / pairs.beta) ** 2 + (pairs.rejected + 0.5 / pairs.beta) ** 2


def _apo_zero(pairs: _Pairs) -> Tensor:
    return (-pairs.beta * pairs.chosen).sigmoid() + (pairs.beta * pairs.rejected).sigmoid()


def _apo_down(pairs: _Pairs) -> Tensor:
    return (pairs.beta * pairs.chosen).sigmoid() + (-pairs.margin).sigmoid()


def _discopop(pairs: _Pairs) -> Tensor:
    share = (pairs.margin / DISCOPOP_TEMPERATURE).sigmoid()
    return (1 - share) * _softplus(-pairs.margin) + share * (-pairs.margin).exp()


def _softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`: the negative logarithm of a sigmoid of `-x`."""
    from torch.nn.functional import softplus

    # Above torch's own threshold of 20 it would drop a term of 2e-9.
    return softplus(x, threshold=50.0)


LOSSES: Mapping[str, Callable[[_Pairs], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}


class DirectPreferenceOptimisation(PreferenceObjective):
    """A function of how much likelier than to the base the chosen and the rejected answer of a pair are.

    `loss_type` is the function: sigmoid (Rafailov et al.), hinge (Zhao et al. 2023, 2305.10425), ipo (Azar et al. 2023,
    2310.12036; on means over tokens), robust (Chowdhury et al. 2024, 2403.00409), exo_pair (Ji et al. 2024,
    2402.00856), nca_pair (Chen et al. 2024, 2402.05369), bco_pair (Jung et al. 2024, 2404.04656; without its running
    mean of rewards), sppo_hard (Wu et al. 2024, 2405.00675), apo_zero and apo_down (D'Oosterlinck et al. 2024,
    2408.06266), discopop (Lu et al. 2024, 2406.08414), sigmoid_norm (sigmoid on means over tokens). TRL's `aot` types,
    which sort a whole batch, and `sft` are objectives of their own. `label_smoothing` counts for
    robust, where it is the share of wrong labels, and for exo_pair, which needs it above 0.
    """

    summary = "prefer chosen to rejected answers by more than the base does"
    paper = "Rafailov et al. 2023, arXiv 2305.18290"
    needs_reference = True
    same = ("loss_type",)
    learning_rate_scale = 0.1  # 2e-6 for full tuning: Rafailov et al. took 1e-6, Zephyr (2310.16944) 5e-7
    space = {
        "loss_type": Choice(tuple(LOSSES), default="sigmoid", searched=False),
        "beta": Float(0.01, 0.5, default=0.1, log=True),
        "label_smoothing": Float(0.0, 0.3, default=0.0, searched=False),
    }

    def unfit(self, params: Params) -> str | None:
        """One loss is infinite without label smoothing."""
        if params.text("loss_type", "sigmoid") == "exo_pair" and params.number("label_smoothing", 0.001) == 0:
            return "its loss_type exo_pair must have a label_smoothing above 0, but got 0: set it, for example 0.001"
        return None

    def skip(self, situation: Situation) -> str | None:
        """Label smoothing must not be searched where the loss does not use it."""
        kind = situation.params.text("loss_type", "sigmoid")
        if situation.params.number("label_smoothing", 0.0) and kind not in SMOOTHED:
            return (
                f"its loss_type {kind} does not know label_smoothing, which {' and '.join(SMOOTHED)} do: leave it out"
            )
        return super().skip(situation)

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over pairs, shape (K,)."""
        ratios = losses.log_ratios()
        beta, smoothing = (each(setups, name, ratios) for name in ("beta", "label_smoothing"))
        (chosen, rejected), (chosen_tokens, rejected_tokens) = split(ratios), split(losses.lengths())
        pairs = _Pairs(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            beta=beta,
            smoothing=smoothing,
        )
        return LOSSES[setups[0].params.text("loss_type")](pairs).sum(1)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's DPO trainer on the same pairs."""
        own = {name: parts.setup.params[name] for name in self.space}
        return dpo_trainer(parts, self.examples(parts.rows, parts.setup), **own, discopop_tau=DISCOPOP_TEMPERATURE)

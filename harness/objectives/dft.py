"""DFT: imitate the completion, each token's loss times the probability that the model gives it already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import TokenLosses
from harness.objectives._language_model import sft_trainer
from harness.objectives.base import TrainerParts
from harness.objectives.sft import SupervisedFineTuning

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer


class DynamicFineTuning(SupervisedFineTuning):
    """Next-token loss without its bias to unlikely tokens: seen as a policy gradient, they are rewarded by 1 over p."""

    summary = "next-token loss on the completions, times the tokens' probabilities"
    paper = "Wu et al. 2025, arXiv 2508.05629"

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over tokens, shape (K,); the probabilities carry no gradient."""
        return (losses.nats * (-losses.nats.detach()).exp()).sum(1)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's SFT trainer with this loss."""
        return sft_trainer(parts, self.examples(parts.rows, parts.setup), loss_type="dft")

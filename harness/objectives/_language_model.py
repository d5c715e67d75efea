"""TRL's SFT trainer, for the language-model objectives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from harness.nn.sequences import Example
from harness.objectives.base import TrainerParts

if TYPE_CHECKING:
    from transformers import Trainer


def sft_trainer(parts: TrainerParts, examples: Sequence[Example], **options: object) -> Trainer:
    """TRL's SFT trainer on sequences that are tokenised already.

    Args:
        parts: The model and what else belongs to the stage.
        examples: One sequence each.
        options: Further fields of TRL's configuration.
    """
    from datasets import Dataset
    from trl import SFTConfig

    columns = {name: [list(getattr(s, name)) for (s,) in examples] for name in ("input_ids", "labels")}
    arguments = SFTConfig(
        **parts.arguments,
        **options,
        # Sequences are cut and packed already.
        max_length=None,
        packing=False,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return _trainer_class()(
        model=parts.model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=parts.setup.tokenizer,
    )


@cache
def _trainer_class() -> type[Trainer]:
    """TRL's trainer without its report to the hub: a trial speaks to nobody."""
    from trl import SFTTrainer

    class QuietSFTTrainer(SFTTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            pass

    return QuietSFTTrainer

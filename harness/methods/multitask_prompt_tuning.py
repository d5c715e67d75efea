"""Multitask prompt tuning: trained embeddings before every text, each times a task's factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._stacking import ADAPTER
from harness.methods._virtual import VirtualTokens
from harness.space import Float, Integer

if TYPE_CHECKING:
    from pathlib import Path

    from peft import MultitaskPromptTuningConfig
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


class MultitaskPromptTuning(VirtualTokens):
    """Trains a prompt `P` shared by tasks and a task's vectors u and v; the text is preceded by `P * (u v)`.

    A trial trains one task, so that nothing is shared and no prompts are distilled: what remains is prompt tuning with
    another parametrisation, in which a step moves whole tokens and whole dimensions of the embeddings.
    It is kept as the product, an adapter of plain prompt tuning.
    """

    summary = "trained embeddings times a rank-one factor before every text; one task only"
    paper = "Wang et al. 2023, arXiv 2303.02861"
    limits = (
        "On the testbed's 1M model, 200 steps reached 2% of full tuning's gain: "
        "text in front of the question only steers what a model can do already."
    )
    trains = r"prompt_encoder\.default\.(embedding\.weight|prefix_task_(cols|rows))"
    space = {
        "learning_rate": Float(1e-4, 1.0, default=1e-2, log=True),
        "virtual_tokens": Integer(1, 200, default=20, log=True),
    }

    def config(self, model: PreTrainedModel, setup: StageSetup) -> MultitaskPromptTuningConfig:
        """One task, whose factor has the paper's rank."""
        from peft import MultitaskPromptTuningConfig

        return MultitaskPromptTuningConfig(num_tasks=1, num_ranks=1, **self.options(model, setup))

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model, and tell it with every row that it is of the only task."""
        attached = super().attach(model, setup)
        # PEFT asks for the task of every row in each forward call, which nothing else in the loop has.
        attached.prompt_encoder[ADAPTER].register_forward_pre_hook(_only_task)
        return attached

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """The prompt of the only task, as PEFT keeps one of plain prompt tuning: that needs no task's number."""
        import torch
        from peft import PromptTuningConfig
        from safetensors.torch import save_file

        made, encoder = model.peft_config[ADAPTER], model.prompt_encoder[ADAPTER]
        names = ("task_type", "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads")
        options = {name: getattr(made, name) for name in (*names, "num_layers", "base_model_name_or_path")}
        PromptTuningConfig(inference_mode=True, **options).save_pretrained(str(folder))
        with torch.no_grad():
            prompt = encoder(torch.arange(made.num_virtual_tokens, device=model.device)[None], None)[0]
        save_file({"prompt_embeddings": prompt.cpu().contiguous()}, folder / "adapter_model.safetensors")


def _only_task(encoder: Module, arguments: tuple[Tensor, object]) -> tuple[Tensor, Tensor]:
    """Number 0 for every row, whatever the caller gave."""
    tokens, _ = arguments
    return tokens, tokens.new_zeros(len(tokens))

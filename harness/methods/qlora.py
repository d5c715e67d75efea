"""QLoRA: LoRA on a base whose weights are kept in four bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._linear import TRANSPOSED, left_unquantised
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Choice, Params

if TYPE_CHECKING:
    from bitsandbytes.nn import Params4bit
    from torch import Tensor
    from transformers import PreTrainedModel

BLOCK = 64
"""Weights that share a scale: a layer's in-features must be a multiple."""


class QLora(Lora):
    """Quantises every linear layer of the blocks, freezes it, and trains LoRA beside it."""

    summary = "LoRA on a base quantised to four bits"
    paper = "Dettmers et al. 2023, arXiv 2305.14314"
    same = (*Lora.same, "quant_type", "double_quant")
    space = Lora.space | {
        "quant_type": Choice(("nf4", "fp4"), default="nf4", searched=False),
        "double_quant": Choice((True, False), default=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """Experts are not quantised, and layers whose width is no multiple of the block cannot be."""
        if reason := left_unquantised(situation):
            return reason
        widths = [width for width in situation.model.linear_widths if width % BLOCK]
        return f"4-bit blocks need in-features that divide by {BLOCK}, but the model has {widths}" if widths else None

    unmerged = False  # it belongs to the quantised base

    def load_options(self, params: Params, device: str) -> Options:
        """Quantise while loading; compute in float32 on a CPU and bfloat16 on a GPU."""
        import torch
        from transformers import BitsAndBytesConfig

        return super().load_options(params, device) | {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=params.text("quant_type"),
                bnb_4bit_use_double_quant=params.flag("double_quant"),
                # Rounding to bfloat16 pays on a GPU, whose tensor cores take it.
                bnb_4bit_compute_dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            )
        }

    def weight_bytes(self, params: Params, stored: str) -> float:
        """Four bits, and a scale for each 64 weights."""
        return 0.5 + (1 if params.flag("double_quant") else 4) / 64

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """In the shapes of the base's weights: quantised layers are never transposed."""
        turned = model.config.model_type in TRANSPOSED
        return {name: delta.T if turned else delta for name, delta in super().deltas(model).items()}

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Merge into a full-precision copy of the base that holds the *dequantised* weights: the model that was trained.

        Merging into the original weights instead would change the logits by the quantisation error that the adapter
        has learned to live with.
        """
        import torch
        from bitsandbytes.functional import dequantize_4bit
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
        from transformers.pytorch_utils import Conv1D

        # On a CPU bitsandbytes repacks four-bit weights in place at the first pass in eval mode; merging there would be
        # garbage.
        plain = setup.load_base().float()
        quantised = dict(model.get_base_model().named_modules())
        with torch.no_grad():
            for name, module in plain.named_modules():
                weight: Params4bit | None = getattr(
                    quantised.get(f"{name}.base_layer", quantised.get(name)), "weight", None
                )
                if weight is not None and (state := getattr(weight, "quant_state", None)) is not None:
                    values = dequantize_4bit(weight.data, state).to(module.weight)
                    module.weight.copy_(values.T if isinstance(module, Conv1D) else values)
        merged = get_peft_model(plain, self.config(plain, setup))
        # The trained factors, on the base that they were trained beside.
        set_peft_model_state_dict(merged, get_peft_model_state_dict(model))
        return merged.merge_and_unload()

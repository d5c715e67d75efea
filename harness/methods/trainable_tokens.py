"""Trainable tokens: the embeddings of the tokens that the task uses most, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import encoder
from harness.methods._peft import unwarned
from harness.methods._stacking import ADAPTER
from harness.methods.base import PeftMethod
from harness.space import Float, Integer

if TYPE_CHECKING:
    from peft import TrainableTokensConfig
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from torch import Tensor
    from transformers import PreTrainedModel


class TrainableTokens(PeftMethod):
    """Trains the embeddings of the commonest tokens of the training rows; a tied output layer moves with them."""

    summary = "trains the embeddings of the task's commonest tokens"
    paper = "PEFT's trainable tokens, github.com/huggingface/peft"
    limits = (
        "On the testbed's 1M model, 200 steps reached 22% of full tuning's gain: "
        "embeddings say what a token is, not what to do with it."
    )
    trains = r".*\.trainable_tokens_delta\.default"
    covers = ("tables",)
    shares_base = True
    alone = "which tokens it trains follows from each trial's rows"
    space = {
        "learning_rate": Float(1e-5, 1.0, default=1e-2, log=True),
        "tokens": Integer(1, 100000, default=100, log=True),
    }

    def skip(self, situation: Situation) -> str | None:
        """TRL's trainers that sample multiply by the output layer's own weights, which stay while tied embeddings move."""
        objective, tied = situation.beside.get("objective"), situation.model.ties_embeddings
        if not getattr(objective, "samples", False) or tied is False:
            return None
        return "its objective takes the output layer as it was, which moves with the tokens that its method trains"

    def config(self, model: PreTrainedModel, setup: StageSetup) -> TrainableTokensConfig:
        """The commonest tokens of prompts and completions, ties in the order of their ids."""
        from peft import TrainableTokensConfig

        texts = [row.text for row in setup.rows()]
        counts = Counter(token for ids in encoder(setup).prompts(texts) for token in ids)
        wanted = setup.params.integer("tokens")
        commonest = sorted(counts, key=lambda token: (-counts[token], token))[:wanted]
        if len(commonest) < wanted:
            setup.note(f"tokens {wanted} was cut to {len(commonest)}: the training rows have no more")
        return TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=commonest, target_modules=_embedding(model))

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model; PEFT warns of tied layers, which it does tie, and which nobody may tie again."""
        with unwarned("Model has `tie_word_embeddings=True`"):
            attached = super().attach(model, setup)
        # Tying again would put the plain embedding in the place of PEFT's wrapper. On the object, not its class.
        model.__dict__["tie_weights"] = _tied_already
        return attached

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Merge without PEFT's warning, and let the merged model's layers be tied as usual."""
        with unwarned("Model has `tie_word_embeddings=True`"):
            merged = super().merge(model, setup)
        merged.__dict__.pop("tie_weights", None)
        return merged

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The trained rows less those of the base, in a matrix of zeros."""
        import torch

        deltas = {}
        for name, module in self.layers(model).items():
            layer = cast("TrainableTokensLayer", module)
            if layer.tied_adapter:  # the output layer, which moves with the embedding
                continue
            weight = layer.get_base_layer().weight
            rows = torch.tensor(layer.token_indices[ADAPTER], device=weight.device)
            moved = layer.trainable_tokens_delta[ADAPTER] - weight[rows]
            deltas[f"{name.removeprefix('base_model.model.')}.weight"] = torch.zeros_like(weight).index_copy(
                0, rows, moved
            )
        return deltas


def _tied_already(*arguments: object, **options: object) -> None:
    """In the place of `tie_weights`."""


def _embedding(model: PreTrainedModel) -> list[str]:
    """Full name of the input embedding."""
    embedding = model.get_input_embeddings()
    return [name for name, module in model.named_modules() if module is embedding]

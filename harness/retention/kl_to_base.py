"""KL to the base: on texts of what the base knows, the model goes on predicting as the base does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Method, PeftMethod
from harness.records.trial import derive_seed
from harness.retention._corpus import corpus_tokens
from harness.retention.base import Retention
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class DivergenceFromBase(Retention):
    """Adds the divergence of the model's predictions from the base's, a mean over the tokens of a few corpus rows.

    Each step has rows of its own. Forward weighs tokens by the base's probabilities, reverse by the model's. The paper
    compares predictions on the new task's inputs; here it is on texts of what the base knows.
    """

    summary = "holds the model's predictions on old texts to the base's"
    paper = "after Li and Hoiem 2016, arXiv 1606.09282"
    requires = "a corpus of what the base knows, or texts sampled from it"
    space = {
        "kl_strength": Float(1e-3, 1e2, default=1.0, log=True),
        "kl_direction": Choice(("forward", "reverse"), default="forward", searched=False),
        "kl_rows": Integer(1, 256, default=4, log=True, searched=False),
    }
    pool = 4096
    """Corpus rows that steps draw from, at most."""

    def __init__(self) -> None:
        self._step = 0

    def before_step(self, step: int) -> None:
        """Other rows for every step."""
        self._step = step

    def penalty(self, model: PreTrainedModel, method: Method, setup: StageSetup) -> Callable[[], Tensor]:
        """The divergence on the step's corpus rows, times `kl_strength`."""
        import torch

        params = setup.params
        texts = corpus_tokens(setup, self.pool)
        # Only PEFT's own switch leaves alone what the step's loss still needs for its gradients.
        switched = getattr(type(method), "detached", None) is PeftMethod.detached
        copy = None if switched else setup.load_base().eval()

        def term() -> Tensor:
            rng = random.Random(derive_seed(setup.seed, "divergence", self._step))
            sample = rng.sample(texts, min(params.integer("kl_rows"), len(texts)))
            # Padded with each row's last token; what the model says there is left out by `real`.
            width = max(map(len, sample))
            ids = torch.tensor([[*row, *row[-1:] * (width - len(row))] for row in sample], device=setup.device)
            real = torch.tensor([[k < len(row) - 1 for k in range(width - 1)] for row in sample], device=setup.device)
            with torch.no_grad(), _base(model, method, copy) as bare:
                known = _predictions(bare, ids)[real]
            own = _predictions(model, ids)[real]
            return params.number("kl_strength") * divergence(known, own, params.text("kl_direction"))

        return term


def divergence(base: Tensor, own: Tensor, direction: str) -> Tensor:
    """Mean over tokens of the divergence between two predictions (scalar, nats).

    Args:
        base: Log-probabilities of the base, shape (tokens, vocabulary).
        own: Those of the model.
        direction: `forward`: KL(base, model); `reverse`: KL(model, base).
    """
    true, other = (base, own) if direction == "forward" else (own, base)
    return (true.exp() * (true - other)).sum(-1).mean()


def _predictions(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probabilities of each next token, shape (rows, tokens - 1, vocabulary); virtual tokens left out."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]
    # In float32: bfloat16 keeps less than three digits of a logarithm.
    return logits[:, :-1].float().log_softmax(-1)


@contextmanager
def _base(model: PreTrainedModel, method: Method, copy: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """The base in eval mode: a copy, or the model with what the method added switched off."""
    if copy is not None:
        yield copy
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with method.detached(model) as bare:
            yield bare
    finally:
        for module, mode in modes.items():
            module.training = mode

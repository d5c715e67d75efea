"""What retention learns from the base's corpus: its rows as tokens, and which weights matter for them."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.axes.encoding import documents
from harness.errors import SpecError
from harness.models.tokens import Ids

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel


def corpus_tokens(setup: StageSetup, count: int) -> list[Ids]:
    """Token ids of corpus rows drawn by the stage's seed, `count` of them if there are so many, cut to `max_length`.

    Raises:
        SpecError: When the corpus has no row with a token to predict.
    """
    rows = setup.corpus()
    chosen = random.Random(setup.seed).sample(rows, min(count, len(rows)))
    limit = setup.params.integer("max_length")
    cut = [ids[:limit] for ids in documents([row.text for row in chosen], setup)]
    texts = [ids for ids in cut if len(ids) > 1]  # the first token has nothing before it that could predict it
    if not texts:
        raise SpecError("this retention needs texts of what the base knows, but its corpus has none: name another")
    return texts


def log_likelihood(model: PreTrainedModel, ids: Sequence[int], sampled: Generator | None = None) -> Tensor:
    """Log-probability in nats of a text's tokens but the first (scalar); with a generator, of tokens drawn in their place.

    Args:
        model: A causal language model.
        ids: The text's tokens; each is predicted from the ones before it, whichever tokens are drawn.
        sampled: A `torch.Generator` to draw from the model's own predictions; None for the text's own tokens.
    """
    import torch

    device = next(iter(model.parameters())).device
    text = torch.tensor([list(ids)], device=device)
    predicted = model(input_ids=text, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    wanted = text[0, 1:, None]
    if sampled is not None:
        # Drawn on the CPU, so that a GPU draws the same tokens.
        wanted = torch.multinomial(predicted.detach().exp().cpu(), 1, generator=sampled).to(device)
    total: Tensor = predicted.gather(1, wanted).sum()
    return total


def diagonal_fisher(
    model: PreTrainedModel, names: Collection[str], texts: Iterable[Sequence[int]], seed: int | None
) -> dict[str, Tensor]:
    """Mean over tokens of the squared gradient of the log-likelihood, by parameter.

    With sampled tokens that is the diagonal of the Fisher information of the model's predictions on these texts, without
    bias: gradients of different tokens of a text have no correlation. With the texts' own tokens it is the so-called
    empirical Fisher, in which a text's gradients add up before they are squared.

    Args:
        model: A causal language model in eval mode; which of its parameters require gradients changes.
        names: Parameters that are asked for.
        texts: Token ids.
        seed: For drawing tokens from the model; None takes the texts' own.
    """
    import torch

    chosen = {name: value for name, value in model.named_parameters() if name in names}
    for name, value in model.named_parameters():
        value.requires_grad_(name in chosen)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    sums, tokens = {name: torch.zeros_like(value) for name, value in chosen.items()}, 0
    for ids in texts:
        gradients = torch.autograd.grad(log_likelihood(model, ids, generator), list(chosen.values()), allow_unused=True)
        for name, gradient in zip(chosen, gradients, strict=True):
            if gradient is not None:  # None: the model has the parameter but does not use it
                sums[name] += gradient.detach() ** 2
        tokens += len(ids) - 1  # the first token is not predicted
    return {name: value / max(1, tokens) for name, value in sums.items()}


def path_importance(
    model: PreTrainedModel, names: Collection[str], texts: Sequence[Sequence[int]], steps: int, rate: float
) -> dict[str, Tensor]:
    """How much each parameter did for the loss on these texts while the model was trained on them, by parameter.

    The path integral of synaptic intelligence (Zenke et al. 2017, arXiv 1703.04200): minus gradient times movement,
    summed over steps, never below 0, over the squared distance in the end. One text per step, by Adam; the model changes.

    Args:
        model: A causal language model in eval mode.
        names: Parameters to train.
        texts: Token ids, in the order of the steps, again and again.
        steps: Steps to train.
        rate: Adam's learning rate.
    """
    import torch

    chosen = {name: value for name, value in model.named_parameters() if name in names}
    for name, value in model.named_parameters():
        value.requires_grad_(name in chosen)
    start = {name: value.detach().clone() for name, value in chosen.items()}
    gained = {name: torch.zeros_like(value) for name, value in start.items()}
    optimizer = torch.optim.Adam(list(chosen.values()), lr=rate)
    for step in range(steps):
        ids = texts[step % len(texts)]
        # From before the step to after it: Adam moves a parameter by more or less than its gradient says.
        before = {name: value.detach().clone() for name, value in chosen.items()}
        optimizer.zero_grad()
        (-log_likelihood(model, ids) / (len(ids) - 1)).backward()
        optimizer.step()
        for name, value in chosen.items():
            if value.grad is not None:
                gained[name] -= value.grad * (value.detach() - before[name])
    damping = (steps * rate) ** 2  # of the size that squared distances can have, so that still weights count little
    return {
        name: gained[name].clamp(min=0) / ((value.detach() - start[name]) ** 2 + damping)
        for name, value in chosen.items()
    }

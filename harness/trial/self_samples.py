"""Texts sampled from a base model, for replay of what it knows where nobody has its training data.

Sun et al. 2020 (LAMOL, arXiv 1909.03329) replay what a model generates; Huang et al. 2024 (arXiv 2403.01244) do so for
instruction-tuned language models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models.tokens import encoder
from harness.nn.batches import padding_id
from harness.nn.determinism import seed_torch
from harness.records.trial import derive_seed
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = 512
TOKENS = 96
"""Most tokens of a text."""
_BATCH = 64


def sampled_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: int = TEXTS) -> list[Row]:
    """Sample texts from a model at temperature 1, from its start token on; the same model gives the same texts.

    Args:
        model: The base model; its random state is set, so the caller keeps its own (`random_state_kept`).
        tokenizer: Its tokenizer.
        texts: How many to sample; empty ones are dropped.
    """
    import torch

    (start,) = encoder(tokenizer).start or (0,)
    seed_torch(derive_seed("rehearsal", texts))
    rows: list[Row] = []
    model.eval()
    for _ in range(0, texts, _BATCH):
        prompt = torch.full((min(_BATCH, texts), 1), start, device=model.device)
        with torch.no_grad():
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                top_k=0,  # transformers cuts to the 50 likeliest tokens unless told otherwise
                max_new_tokens=TOKENS,
                pad_token_id=padding_id(tokenizer),
            )
        decoded = tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        rows += [Row(completion=text) for text in decoded if text.strip()]
    return rows[:texts]

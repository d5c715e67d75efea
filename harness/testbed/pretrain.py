"""Pretrain one small Llama on packed rows of documents: AdamW, cosine schedule, one thread, one process."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from harness.testbed.seeding import hash_int
from harness.testbed.sizes import ModelSize
from harness.testbed.tokenizer import CONTEXT, VOCABULARY

LOG = logging.getLogger(__name__)
BATCH_ROWS = 16
WARMUP_SHARE = 0.03
OPEN_ROWS = 8

Rows = NDArray[np.uint16]


@dataclass(frozen=True)
class CurvePoint:
    """Held-out loss (nats per token) after `tokens` training tokens."""

    tokens: int
    loss: float


def packed_rows(tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], count: int) -> Rows:
    """Pack whole documents, each ended by EOS, into `count` rows of `CONTEXT` tokens, padded to the end.

    A document goes to the first open row with room for it. Every other row starts with EOS, because lm-eval scores
    prompts without it and rolling log-likelihoods with it.

    Args:
        tokenizer: Its EOS ends documents, its padding fills rows.
        documents: Enough of them; longer ones are cut to a row.
        count: Rows wanted.

    Returns:
        Token ids, shape `(count, CONTEXT)`.
    """
    end = tokenizer.eos_token_id
    rows = np.full((count, CONTEXT), tokenizer.pad_token_id, dtype=np.uint16)
    opened: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    closed = 0
    while True:
        for ids in tokenizer(list(itertools.islice(documents, 4096)))["input_ids"]:
            text = [*ids[: CONTEXT - 2], end]
            index = next((i for i, row in enumerate(opened) if len(row) + len(text) <= CONTEXT), -1)
            if index == -1:
                full = opened.pop(0)
                rows[closed, : len(full)] = full
                closed += 1
                if closed == count:
                    return rows
                opened.append([end] if closed % 2 else [])
            opened[index] += text


def new_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create an untrained model, initialised from its name.

    Args:
        size: Its shape.
        tokenizer: Gives the ids of BOS, EOS and padding.
    """
    # transformers initialises from the global generator; its seed must have 32 bits
    set_seed(hash_int(f"{size.name}:initialisation:0") % 2**32)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def token_loss(model: LlamaForCausalLM, rows: Rows) -> torch.Tensor:
    """Return the mean next-token loss in nats over the tokens that are not padding.

    Args:
        model: In training or evaluation mode.
        rows: Token ids, shape (rows, CONTEXT).

    Returns:
        A scalar tensor with its graph.
    """
    ids = torch.from_numpy(rows.astype(np.int64))
    labels = ids.masked_fill(ids == model.config.pad_token_id, -100)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    # In bfloat16 a sum over the vocabulary would lose the small terms.
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: Rows) -> float:
    """Return the loss on held-out rows in nats per token, averaged over batches of equal size.

    Args:
        model: Left in evaluation mode.
        rows: Token ids, shape (rows, CONTEXT).
    """
    model.eval()
    batches = np.array_split(rows, max(1, len(rows) // 64))
    return float(np.mean([token_loss(model, batch).item() for batch in batches]))


def learning_rate_at(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine down to a tenth.

    Args:
        step: Optimiser step, counting from 0.
        steps: Of the whole training.
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def pretrain(model: LlamaForCausalLM, size: ModelSize, rows: Rows, held_out: Rows) -> list[CurvePoint]:
    """Train `model` in place, one pass over `rows` in their order, and return its held-out curve.

    Args:
        model: An untrained model.
        size: Gives the peak learning rate and the precision.
        rows: Training rows, shape `(rows, CONTEXT)`.
        held_out: Rows that the loss is measured on at the end and up to twenty times before.
    """
    steps = len(rows) // BATCH_ROWS
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, steps))
    curve = []
    for step in range(steps):
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=size.bf16):
            loss = token_loss(model, rows[step * BATCH_ROWS : (step + 1) * BATCH_ROWS])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        # Measuring takes as long as several steps, so at most twenty points.
        if (step + 1) % max(50, steps // 20) == 0 or step + 1 == steps:
            curve.append(CurvePoint((step + 1) * BATCH_ROWS * CONTEXT, held_out_loss(model, held_out)))
            LOG.info("%s tokens: held-out loss %.4f", f"{curve[-1].tokens:,}", curve[-1].loss)
    return curve


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Store the weights in float16, marked to be loaded in float32, with the tokenizer beside them.

    Half the size matters for a package that ships the models; a processor computes in float32.

    Args:
        model: Its weights are rounded in place.
        tokenizer: Saved with it.
        folder: Made if it is missing.
    """
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    tokenizer.save_pretrained(folder)

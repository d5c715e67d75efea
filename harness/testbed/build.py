"""Rebuild the shipped data files and base models from nothing but this code."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.testbed import corpus
from harness.testbed.datafiles import write_data
from harness.testbed.sizes import SIZES, ModelSize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LOG = logging.getLogger(__name__)

# Data and tokenizer are rebuilt bit for bit. A rebuilt model's held-out loss may differ from the shipped one's by this
# much, in nats per token: other processors add floating-point numbers in another order.
LOSS_TOLERANCE = 0.05
TOKENIZER_DOCUMENTS = 20_000
HELD_OUT_ROWS = 256


def build(out: Path, models: Sequence[str], tokens: int | None = None) -> None:
    """Write the data files to `out/data` and the named base models to `out/models`.

    Data and tokenizer come out bit for bit as shipped; models within `LOSS_TOLERANCE` of the shipped held-out loss.

    Args:
        out: Folder to write to; `harness/testbed` itself replaces what is shipped.
        models: Names from `SIZES`; none rebuilds the data only.
        tokens: Training tokens per model; by default each model's own budget.
    """
    unknown = sorted(set(models) - set(SIZES))
    if unknown:
        raise ValueError(f"models must be among {sorted(SIZES)}, received {unknown}")
    write_data(out / "data")
    for name in models:
        build_model(out / "models" / name, SIZES[name], tokens or SIZES[name].tokens)


def corpus_tokenizer() -> PreTrainedTokenizerFast:
    """Train the shared tokenizer on its own sample of the corpus."""
    from harness.testbed.tokenizer import train_tokenizer

    return train_tokenizer(itertools.islice(corpus.documents("tokenizer"), TOKENIZER_DOCUMENTS))


def build_model(folder: Path, size: ModelSize, tokens: int) -> None:
    """Pretrain one model on one thread and save it, its tokenizer and its held-out curve.

    Args:
        folder: Where it is saved.
        size: Its shape and precision.
        tokens: Training tokens; what is left over from whole rows is not used.
    """
    import torch

    from harness.testbed import pretrain
    from harness.testbed.tokenizer import CONTEXT

    torch.set_num_threads(1)  # two contended threads are slower than one, and one adds in a fixed order
    tokenizer = corpus_tokenizer()
    rows = pretrain.packed_rows(tokenizer, corpus.documents("train"), tokens // CONTEXT)
    held_out = pretrain.packed_rows(tokenizer, corpus.documents("held out"), HELD_OUT_ROWS)
    model = pretrain.new_model(size, tokenizer)
    LOG.info("%s: %s parameters, %s tokens", size.name, f"{model.num_parameters():,}", f"{rows.size:,}")
    curve = pretrain.pretrain(model, size, rows, held_out)
    pretrain.save(model, tokenizer, folder)
    points = [{"tokens": point.tokens, "loss": round(point.loss, 4)} for point in curve]
    (folder / "curve.json").write_text(json.dumps(points, indent=1) + "\n")

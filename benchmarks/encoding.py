"""How fast rows become tokens, beside lm-eval's own way for the same rows, and how long a long text takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from harness.axes.encoding import encoded
from harness.models.base_model import EMBEDDED_CORPUS, load_tokenizer, resolve_model
from harness.models.tokens import encoder
from harness.tasks.training_rows import Row

ROWS = 10_000
CHARACTERS = 1_200_000


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three runs, since others use the machine."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    """Print both."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = load_tokenizer(resolve_model("tiny-1m"))
    peer = object.__new__(HFLM)  # as far as it encodes, it needs no model
    peer.tokenizer, peer.add_bos_token, peer.custom_prefix_token_id, peer.backend = tokenizer, None, None, "causal"
    with open(EMBEDDED_CORPUS, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    rows = [
        Row(prompt=f"{number}: {text[:200]}\nAnswer:", completion=f" {text[200:240]}")
        for number, text in zip(range(ROWS), texts * (1 + ROWS // len(texts)), strict=False)
    ]
    ours = cpu_seconds(lambda: encoded(rows, encoder(tokenizer), generates=False))
    theirs = cpu_seconds(lambda: [peer._encode_pair(row.prompt, row.completion) for row in rows])
    print(
        f"{ROWS:,} rows: {ours:.2f} s; lm-eval's `_encode_pair`, row by row: {theirs:.2f} s ({theirs / ours:.1f} times)"
    )
    whole = "\n".join(texts * (1 + CHARACTERS // sum(map(len, texts))))[:CHARACTERS]
    print(f"one text of {len(whole):,} characters: {cpu_seconds(lambda: encoder(tokenizer).encode([whole])):.2f} s")


if __name__ == "__main__":
    main()

"""The three embedded base models: their shapes and how long each was pretrained."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """A Llama's shape and its pretraining budget.

    `bf16` computes in bfloat16: a fifth faster for the 4M model on a processor without bfloat16 units, slower for the
    smaller ones.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    tokens: int
    learning_rate: float
    bf16: bool = False


SIZES = {
    size.name: size
    for size in (
        ModelSize("tiny-0.3m", 64, 192, 4, 4, 9_000_000, 4e-3),
        ModelSize("tiny-1m", 128, 384, 4, 4, 16_000_000, 2e-3),
        ModelSize("tiny-4m", 256, 640, 5, 8, 9_000_000, 1e-3, bf16=True),
    )
}

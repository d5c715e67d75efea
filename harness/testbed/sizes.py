"""The three embedded base models: their shapes and how long each was pretrained."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
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
        ModelSize(
            name="tiny-0.3m",
            hidden=64,
            intermediate=192,
            layers=4,
            heads=4,
            tokens=9_000_000,
            learning_rate=4e-3,
        ),
        ModelSize(
            name="tiny-1m",
            hidden=128,
            intermediate=384,
            layers=4,
            heads=4,
            tokens=16_000_000,
            learning_rate=2e-3,
        ),
        ModelSize(
            name="tiny-4m",
            hidden=256,
            intermediate=640,
            layers=5,
            heads=8,
            tokens=9_000_000,
            learning_rate=1e-3,
            bf16=True,
        ),
    )
}

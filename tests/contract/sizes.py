"""What the tiny models consist of, written down by hand: what counts of trainable parameters are derived from."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sizes:
    """A model's dimensions."""

    family: str
    hidden: int
    inner: int
    """Width of the feed-forward part."""
    layers: int
    vocabulary: int
    heads: int
    block: tuple[tuple[int, int], ...]
    """In- and out-features of a block's linear layers."""
    biases: bool
    """Whether linear layers and norms have biases."""
    norms: int
    """In all."""
    parameters: int
    """In all, tied ones once."""
    tied: bool = True
    names: tuple[str, ...] = field(default=())
    """Of a block's linear layers."""

    @property
    def linears(self) -> list[tuple[int, int]]:
        """In- and out-features of all linear layers of the blocks."""
        return list(self.block) * self.layers

    def each(self, count) -> int:
        """Sum of a function of in- and out-features over all linear layers."""
        return sum(count(inputs, outputs) for inputs, outputs in self.linears)


SIZES = {
    # query, key, value, output; gate, up, down; two norms in a block, and one at the end; 258 embeddings, tied
    "llama": Sizes(
        "llama",
        hidden=64,
        inner=128,
        layers=2,
        vocabulary=258,
        heads=4,
        block=((64, 64), (64, 64), (64, 64), (64, 64), (64, 128), (64, 128), (128, 64)),
        biases=False,
        norms=5,
        parameters=258 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64,
    ),
    # query, key and value in one; output; two of the feed-forward part, four times as wide; 96 positions
    "gpt2": Sizes(
        "gpt2",
        hidden=64,
        inner=256,
        layers=2,
        vocabulary=258,
        heads=4,
        block=((64, 192), (64, 64), (64, 256), (256, 64)),
        biases=True,
        norms=5,
        parameters=(258 + 96) * 64
        + 2 * (64 * 192 + 192 + 64 * 64 + 64 + 64 * 256 + 256 + 256 * 64 + 64 + 4 * 64)
        + 2 * 64,
    ),
    # key, value, receptance, output; key, receptance and value of the feed-forward part; a third norm in the first block
    "rwkv": Sizes(
        "rwkv",
        hidden=128,
        inner=256,
        layers=4,
        vocabulary=256,
        heads=0,
        block=((128, 128), (128, 128), (128, 128), (128, 128), (128, 256), (128, 128), (256, 128)),
        biases=False,
        norms=10,
        parameters=661504,
        tied=False,
    ),
}

"""Four bits and back, to see whether this machine can."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def through_four_bits(matrix: Tensor) -> Tensor:
    """A matrix quantised as `qlora` does it, and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    back: Tensor = dequantize_4bit(*quantize_4bit(matrix, quant_type="nf4"))
    return back

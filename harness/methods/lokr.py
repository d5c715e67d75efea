"""LoKr: an update that is a Kronecker product, one factor of it low-rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import StageSetup
from harness.methods._linear import target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoKr(LayerMethod):
    """Adds `C x (B A)`; where the second factor is no larger than its rank, it is kept whole."""

    summary = "Kronecker product of a small matrix and a low-rank one"
    paper = "Yeh et al. 2023, arXiv 2309.14859; rate of PEFT's benchmark"
    kind = "LoKrConfig"
    trains = r".*\.lokr_w[12](_[ab])?\.default"
    maps = False
    same: ClassVar[tuple[str, ...]] = ("target", "rank", "factor")
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=3e-3, log=True),
        "rank": Integer(1, 128, default=8, log=True),
        "alpha": Float(1.0, 512.0, default=8.0, log=True, searched=False),
        # out-features of the first factor; -1 is the closest to a square
        "factor": Integer(-1, 64, default=-1, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank, scale and the factors' shapes."""
        params = setup.params
        factor = self.factor(model, setup)
        return {"r": params.integer("rank"), "alpha": params.number("alpha"), "decompose_factor": factor}

    def factor(self, model: PreTrainedModel, setup: StageSetup) -> int:
        """The parameter `factor`; a note says in which layers PEFT takes another."""
        factor = setup.params.integer("factor")
        sizes = {size for pair in target_shapes(model, setup) for size in pair}
        # PEFT takes the nearest divisor without a word.
        if factor >= 0 and (other := sorted(size for size in sizes if not factor or size % factor)):
            setup.note(f"factor {factor} does not divide the widths {other}: a smaller divisor was taken there")
        return factor

"""What the methods share that PEFT puts on linear layers: each file names PEFT's kind, its options, and its space."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Situation, StageSetup
from harness.methods._linear import TRANSPOSED, linear_layers, uses_conv1d
from harness.methods._stacking import looped
from harness.methods.base import Options, PeftMethod
from harness.models.parts import LINEAR
from harness.space import Choice

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward

TARGET = Choice(("all", "attention", "mlp"), default="all", searched=False)
"""Which linear layers, see `linear_layers`."""


class LayerMethod(PeftMethod, ABC):
    """A kind of PEFT's that stands in the place of the chosen linear layers and leaves their weights as they are.

    Its trials train together by mapping PEFT's own layer over them, so that whatever shapes or scales it must be equal; a
    layer that cannot be mapped is called once for each trial, whose settings may then differ.
    """

    kind: ClassVar[str]
    """Name of PEFT's configuration class."""
    takes_transposed: ClassVar[bool] = True
    """Whether it takes layers that keep their weights as (in, out)."""
    maps: ClassVar[bool] = True
    """Whether its layer can be mapped over trials (no random draws, no writing into slices, no custom gradients)."""
    covers = LINEAR
    shares_base = True
    alone = ""

    def __init_subclass__(cls) -> None:
        """What trials that train together must have in common, unless a class says it."""
        if "same" not in vars(cls):
            cls.same = tuple(name for name in cls.space if name != "learning_rate") if cls.maps else ("target",)

    def skip(self, situation: Situation) -> str | None:
        """Some kinds know plain linear layers only."""
        if situation.model.model_type not in TRANSPOSED or self.takes_transposed:
            return None
        return f"PEFT's {self.kind.removesuffix('Config')} takes no transposed linear layers, as those of a {situation.model.model_type} are"

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Mapped, or one after the other."""
        return None if self.maps else looped(layers)

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """What is given to PEFT's configuration on top."""
        return {"r": setup.params.integer("rank")}

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PeftConfig:
        """PEFT's configuration on the chosen layers."""
        import peft

        kind = getattr(peft, self.kind)
        options = {"target_modules": linear_layers(model, setup.params.text("target")), **self.options(model, setup)}
        # Only some of PEFT's kinds know of transposed weights; the others refuse the option.
        if "fan_in_fan_out" in {field.name for field in dataclasses.fields(kind)}:
            options["fan_in_fan_out"] = uses_conv1d(model)
        config: PeftConfig = kind(task_type="CAUSAL_LM", **options)
        return config


@contextmanager
def unwarned(message: str) -> Iterator[None]:
    """Keep a library from warning of what is known and right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message)
        yield


def sparse_unchecked() -> None:
    """Torch warns at the first sparse matrix until it is told whether to check them; PEFT's are made right."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()

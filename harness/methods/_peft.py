"""What the methods share that PEFT puts on linear layers: each file names PEFT's kind, its options, and its space."""

from __future__ import annotations

import dataclasses
from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods._linear import TRANSPOSED, linear_layers, uses_conv1d
from harness.methods.base import PeftMethod
from harness.plugins import Situation, StageSetup
from harness.space import Choice

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

TARGET = Choice(("all", "attention", "mlp"), default="all", searched=False)
"""Which linear layers, see `linear_layers`."""


class LayerMethod(PeftMethod, ABC):
    """A kind of PEFT's that stands in the place of the chosen linear layers and leaves their weights as they are.

    Its trials train together by mapping PEFT's own layer over them, so that whatever shapes or scales it must be equal.
    """

    kind: ClassVar[str]
    """Name of PEFT's configuration class."""
    takes_transposed: ClassVar[bool] = True
    """Whether it takes layers that keep their weights as (in, out)."""
    shares_base = True
    alone = ""

    def __init_subclass__(cls) -> None:
        """Trials that train together may differ in their learning rate, unless a class says more."""
        if "same" not in vars(cls):
            cls.same = tuple(name for name in cls.space if name != "learning_rate")

    def skip(self, situation: Situation) -> str | None:
        """Some kinds know plain linear layers only."""
        if situation.model_type not in TRANSPOSED or self.takes_transposed:
            return None
        return f"PEFT's {self.kind.removesuffix('Config')} takes no transposed linear layers, as those of a {situation.model_type} are"

    def options(self, model: PreTrainedModel, setup: StageSetup) -> dict[str, Any]:
        """What is given to PEFT's configuration on top."""
        return {"r": int(setup.params["rank"])}

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PeftConfig:
        """PEFT's configuration on the chosen layers."""
        import peft

        kind: Any = getattr(peft, self.kind)
        options = {"target_modules": linear_layers(model, str(setup.params["target"])), **self.options(model, setup)}
        if "fan_in_fan_out" in {field.name for field in dataclasses.fields(kind)}:
            options["fan_in_fan_out"] = uses_conv1d(model)
        config: PeftConfig = kind(task_type="CAUSAL_LM", **options)
        return config

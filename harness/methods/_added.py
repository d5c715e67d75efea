"""What methods share that add small modules to a frozen base, beside which they are kept."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.errors import SpecError
from harness.methods._blocks import unknown_blocks
from harness.methods.base import Method
from harness.space import Params

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

WEIGHTS = "tuned.safetensors"


class ModuleMethod(Method, ABC):
    """Adds modules to a model's blocks, and keeps them beside the base; `load_tuned` puts them back on it."""

    mergeable = False
    covers = ()
    shares_base = True
    saves: str = ""
    """Regular expression of the parameters that are written; empty: those that train."""

    def skip(self, situation: Situation) -> str | None:
        """The model must be of an architecture whose blocks are known."""
        return unknown_blocks(situation)

    @abstractmethod
    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """Add the modules to a frozen model, trainable; a function of the parameters alone. May wrap the model."""

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze the base and add the modules."""
        return self.build(model.requires_grad_(False), setup.params)

    def layers(self, model: PreTrainedModel) -> dict[str, Module]:
        """The added modules, each of which takes rows."""
        return {name: module for name, module in model.named_modules() if _is_added(module)}

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The same model with the modules switched off."""
        added = [module for module in model.modules() if _is_added(module)]
        for module in added:
            module.on = False
        try:
            yield model
        finally:
            for module in added:
                module.on = True

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the parameters by name."""
        from safetensors.torch import save_file

        # safetensors refuses tensors that are not contiguous.
        save_file({name: p.detach().cpu().contiguous() for name, p in self._saved(model).items()}, folder / WEIGHTS)

    def restore(self, model: PreTrainedModel, params: Params, folder: Path) -> PreTrainedModel:
        """Add the modules to the base and fill in what `save` wrote.

        Args:
            model: The base.
            params: The parameters of the stage that trained the modules.
            folder: Where `save` wrote to.

        Raises:
            SpecError: When that is of other parameters.
        """
        import torch
        from safetensors.torch import load_file

        tuned = self.build(model.requires_grad_(False), params)
        mine, saved = self._saved(tuned), load_file(folder / WEIGHTS)
        if set(mine) != set(saved):
            raise SpecError(
                f"{folder / WEIGHTS} must hold the {len(mine)} parameters that its method adds to the base, but holds "
                f"{len(saved)} others: keep the folder as it was written"
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(saved[name])
        return tuned

    def _saved(self, model: PreTrainedModel) -> dict[str, Tensor]:
        pattern = re.compile(self.saves or self.trains)
        return {name: p for name, p in model.named_parameters() if pattern.fullmatch(name)}


def _is_added(module: Module) -> bool:
    from harness.methods._adapters import Added

    return isinstance(module, Added)

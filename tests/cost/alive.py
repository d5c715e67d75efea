"""What lives in memory while the harness's own loop trains, on models whose tensors have shapes and types but no numbers."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from harness.axes.contract import StageSetup
from harness.cost.layout import Case, attached, layout, without_data
from harness.cost.memory import Load, Memory
from harness.cost.meter import Meter, Tally
from harness.nn.sequences import IGNORED, TokenSequence
from harness.nn.ways import ways_of
from harness.records.trial import Stage
from harness.space import Params
from harness.training.alone import Alone
from harness.training.choices import choices
from harness.training.learner import Learner, Watch


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A method on a base, and its batches."""

    config: PretrainedConfig
    method: str
    rows: int = 4
    length: int = 1024
    answer: int = 256
    """Tokens of a row that carry loss."""
    passes: int = 1
    recomputes: bool = False
    half: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)

    def case(self) -> Case:
        """As the forecast is asked."""
        given = {"batch_size": self.rows, "gradient_accumulation": self.passes, **self.params}
        chosen = choices(Stage(method=self.method, params=given))
        precision = "bfloat16" if self.half else "float32"
        setup = StageSetup(
            params=Params(chosen.params, max_length=self.length, precision=self.params.get("precision", precision)),
            tokenizer=SimpleNamespace(pad_token_id=0),
            device="cpu",
            seed=0,
            steps=9,
            load_base=lambda: None,
            corpus=list,
        )
        return Case(
            config=self.config, method=chosen.method, setup=setup, held="bfloat16", half=self.half, length=self.length
        )


def predicted(trained: Trained) -> Memory:
    """The forecast."""
    rows = trained.rows
    load = Load(rows=rows, length=trained.length, supervised=rows * trained.answer, accumulates=trained.passes > 1)
    return layout(trained.case()).memory(load, trained.recomputes)


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is not counted yet."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Run an operation and count its results."""
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def measured(trained: Trained) -> int:
    """Most bytes alive during the second of two steps; the first makes the moments."""
    case = trained.case()
    model, _ = attached(case, case.method)
    chosen = choices(Stage(method=trained.method, params={"batch_size": trained.rows}))
    labels = (IGNORED,) * (trained.length - trained.answer) + (1,) * trained.answer
    with without_data(model) as mode, mode:
        # What a comparison of numbers would find for these models: logits at some positions only.
        ways = ways_of(model)
        ways.picks, ways.direct, ways.quick = True, True, 0
        learner = Learner(
            model=model,
            choices=replace(chosen, method=case.method),
            setup=case.setup,
            watch=Watch(stop_at=9, score_at=frozenset(), meter=Meter("cpu"), tally=Tally()),
            rows=[],
            examples=[(TokenSequence((1,) * trained.length, labels),)],
            order=np.zeros((9, trained.rows * trained.passes), dtype=int),
        )
        if trained.recomputes:
            learner.spare_memory()
        alive = Alive()
        for tensor in (*model.parameters(), *model.buffers()):
            alive.add(tensor)
        with alive:
            session = Alone(learner)
            session._step()
            alive.most = alive.now
            session._step()
    return alive.most

"""What a method on a base holds while it trains, measured on the model itself laid out without memory.

The base is built from its config on torch's `meta` device, and the method's own `attach` is called on it, so that what
trains is what the plug-in says. A forward pass on tensors without data then shows what autograd keeps. A method that
needs numbers or rows to be attached (a calibration, a choice by size) is taken as LoRA or full fine-tuning, which the
basis says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.axes.contract import StageSetup
from harness.cost.memory import Layout
from harness.methods.base import Method, PeftMethod
from harness.nn.copies import train_in_float32
from harness.plugins import load, overrides
from harness.space import Params, defaults

if TYPE_CHECKING:
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn import Module, ModuleList
    from transformers import PretrainedConfig, PreTrainedModel

MOMENTS = 8
"""Bytes of AdamW's two moments of a number."""
_UNMASKED = "harness_unmasked"
"""Name of torch's attention without a mask, as on rows that are padded on the right; tensors without data would get one."""
_SHOWN = 3
"""Layers that a pass goes through where all are alike: what the third adds, each further one adds."""
_KEPT = 17
"""Numbers that a layer keeps for each token and number of its width: half of the 34 bytes of Korthikanti et al. 2022
(arXiv 2205.05198), section 4.1. Used for a model that does not compute on tensors without data."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method on a base, and how it computes."""

    config: PretrainedConfig
    method: Method
    setup: StageSetup
    """With the stage's parameters and device."""
    held: str
    """Type of the checkpoint's weights."""
    half: bool
    """Whether it computes in bfloat16."""
    length: int
    """Tokens of a row."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Bytes that a pass of one row keeps for the backward pass."""

    activations: float
    copies: float
    """Of weights in 16 bits."""

    def further(self, before: _Kept, times: int) -> _Kept:
        """With what the last layer has added to `before`, so many times more."""
        return _Kept(
            activations=self.activations + times * (self.activations - before.activations),
            copies=self.copies + times * (self.copies - before.copies),
        )


def layout(case: Case) -> Layout:
    """What training it holds."""
    method, basis = case.method, ""
    try:
        model, packed = attached(case, method)
    except Exception as error:  # whatever a plug-in does with numbers or rows, there are none here
        name = "lora" if isinstance(method, PeftMethod) else "full"
        basis = f"{name} in its place, since the method wants what only a trial has ({type(error).__name__})"
        method = load("methods", name)()
        model, packed = attached(case, method)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    frozen = {key: tensor for key, tensor in tensors.items() if not tensor.requires_grad}
    moved = [tensor for tensor in tensors.values() if tensor.requires_grad]
    head, layers = model.get_output_embeddings(), _layers(model)
    count, narrow = len(layers or ()) or 1, 2 if case.half else 4
    moments, gradients = _optimised(replace(case, method=method), model)
    kept = _kept(case, model, layers)
    packed_bytes = case.method.weight_bytes(case.setup.params, case.held)
    largest = max((tensor.numel() for key, tensor in frozen.items() if key in packed), default=0)
    again = bool(getattr(model, "supports_gradient_checkpointing", False))
    inputs = count * narrow * int(getattr(model.config.get_text_config(), "hidden_size", 0))
    return Layout(
        weights=sum(t.numel() * (packed_bytes if key in packed else t.itemsize) for key, t in frozen.items()),
        trained=_bytes(moved),
        moments=moments,
        gradients=gradients,
        first_gradient=_bytes([head.weight]) if head is not None and head.weight.requires_grad else 0.0,
        copies=kept.copies + narrow * largest,  # a packed weight stands unpacked while its layer computes
        token_activations=kept.activations / case.length,
        token_kept=min(inputs if again else math.inf, kept.activations / case.length),
        layers=count,
        logit=10.0 if case.half else 8.0,
        vocabulary=int(model.config.get_text_config().vocab_size),
        basis=basis,
    )


def blank_model(config: PretrainedConfig, dtype: object) -> PreTrainedModel:
    """The model of a config, of the kind that transformers has for it, its weights as torch makes them.

    Args:
        config: Its config.
        dtype: What its weights are held in.
    """
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def attached(case: Case, method: Method) -> tuple[PreTrainedModel, set[int]]:
    """The base without memory, a method attached to it, and which of its weights are held packed, by id.

    Args:
        case: What is asked; it says what the base is held in.
        method: Its method, or one in its place.
    """
    import torch

    options = case.method.load_options(case.setup.params, case.setup.device)
    setup = replace(case.setup, params=Params({**defaults(method.space), **case.setup.params}))
    with torch.device("meta"):
        base = blank_model(case.config, options.get("dtype", getattr(torch, case.held)))
        packed = _packed(base) if "quantization_config" in options else set()
        model = method.attach(base.requires_grad_(not case.method.shares_base), setup)
        train_in_float32(model)
    return model, packed


def _packed(model: PreTrainedModel) -> set[int]:
    """Which weights bitsandbytes packs, by id: as transformers has it, those of linear layers but the output layer."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert

    left = set(get_keys_to_not_convert(model))
    return {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D) and name not in left
    }


def _bytes(tensors: Iterable[Tensor]) -> float:
    """Of their storages, each once."""
    return float(sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values()))


def _layers(model: PreTrainedModel) -> ModuleList | None:
    """The longest list of modules in a model, which is that of its layers."""
    from torch.nn import ModuleList

    return max((module for module in model.modules() if isinstance(module, ModuleList)), key=len, default=None)


def _optimised(case: Case, model: PreTrainedModel) -> tuple[float, float]:
    """Bytes of what the optimiser keeps after a step of everything that moves, and of the first step's gradients."""
    import torch

    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = float(MOMENTS * sum(parameter.numel() for parameter in moved))
    if overrides(case.method, "optimizer"):
        with suppress(Exception):  # a kernel that wants numbers
            own: Any = case.method.optimizer(model, case.setup)
            for parameter in moved:
                parameter.grad = torch.empty_like(parameter)
            own.step()
            moments = _bytes(t for state in own.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    for parameter in moved:
        parameter.grad = None
    with suppress(Exception):  # what rests in a step has no gradient there
        case.method.before_step(model, 1)
    return moments, _bytes(parameter for parameter in moved if parameter.requires_grad)


def _kept(case: Case, model: PreTrainedModel, layers: ModuleList | None) -> _Kept:
    """What a pass of one row keeps; where all layers are alike it goes through few of them only."""
    with without_data(model) as mode:
        if layers is not None and len(layers) > _SHOWN and len({_kind(layer) for layer in layers}) == 1:
            whole = list(layers)
            with suppress(Exception):  # a model that asks for a layer by its number
                del layers[_SHOWN:]
                more = _pass(case, model, mode)
                del layers[_SHOWN - 1 :]
                return more.further(_pass(case, model, mode), len(whole) - _SHOWN)
            del layers[:]
            layers.extend(whole)
        with suppress(Exception):  # an operation that wants numbers
            return _pass(case, model, mode)
    width = int(getattr(model.config.get_text_config(), "hidden_size", 0))
    return _Kept(activations=_KEPT * (2 if case.half else 4) * width * case.length * len(layers or ()), copies=0.0)


def _kind(layer: Module) -> object:
    """What makes two layers keep the same: their modules, and their parameters' shapes, types, and whether they move."""
    parameters = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
    return tuple(type(module) for module in layer.modules()), parameters


@contextmanager
def without_data(model: PreTrainedModel) -> Iterator[FakeTensorMode]:
    """Let a model on the meta device compute as one on a CPU does, on tensors with shapes and types but no numbers."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with what it stands for, whose id must stay taken
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    blank: Tensor = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
                    if isinstance(tensor, torch.nn.Parameter):
                        blank = torch.nn.Parameter(blank, tensor.requires_grad)
                    made[id(tensor)] = blank, tensor
                held[name] = made[id(tensor)][0]
    with _unmasked(model):
        yield mode


@contextmanager
def _unmasked(model: PreTrainedModel) -> Iterator[None]:
    """Torch's attention without a mask, where a model attends by torch's."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa":
        _register()
        config._attn_implementation = _UNMASKED
    try:
        yield
    finally:
        config._attn_implementation = before


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_UNMASKED, AttentionInterface()["sdpa"])
    AttentionMaskInterface.register(_UNMASKED, lambda *positional, **named: None)


def _pass(case: Case, model: PreTrainedModel, mode: FakeTensorMode) -> _Kept:
    """What a forward pass of one row keeps beside the parameters, without the output layer's part."""
    import torch

    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    wide = {p.numel() for p in model.parameters() if p.dtype == torch.float32}
    tokens = _prime(case.length, wide)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def last(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][:, -1:], *arguments[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(last) if head is not None else None
    try:
        with mode, torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case.half):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                answer: Any = model.train()(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
            found = [t for place, t in kept.items() if place not in own]
            copies = [t for t in found if t.dtype == torch.bfloat16 and t.untyped_storage().nbytes() // 2 in wide]
            del answer
    finally:
        if hook is not None:
            hook.remove()
    copied = _bytes(copies) if case.half else 0.0
    return _Kept(activations=(_bytes(found) - copied) * case.length / tokens, copies=copied)


def _prime(least: int, numbers: Iterable[int]) -> int:
    """A prime from `least` on that divides none of some numbers, so that what is made for tokens has no weight's size.

    Args:
        least: Where to look from.
        numbers: Sizes of weights.
    """
    sizes = {size for size in numbers if size}
    found = max(2, least)
    while any(found % divisor == 0 for divisor in range(2, int(found**0.5) + 1)) or any(
        size % found == 0 for size in sizes
    ):
        found += 1
    return found

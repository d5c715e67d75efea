"""What is measured of this machine rather than assumed: its matrix peak, and whether bfloat16 trains a model faster.

Each figure is measured by the first process that asks and kept below the results, where it holds for every other
process of the same hardware, threads and torch: all trials of a folder take the same decisions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.files import parse_json, write_atomically, write_once
from harness.nn.attention import quick_attention
from harness.records.codec import fingerprint
from harness.trial.provenance import hardware

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

GAIN = 1.3
"""How many times faster bfloat16 must be before it is worth its rounding."""
SLOW = 2.0
"""How many times slower bfloat16 may be than float32 before a base is no longer held in it."""
SMALLEST = 2_000_000
"""Parameters below which a model stays in float32 unmeasured: its steps are short, and its rounding is coarse."""
BATCH = (32, 64)
"""Rows and tokens of the batch whose training step is timed: what a few small trials that train together have."""
ENOUGH_S = 0.1
"""Seconds of timing after which the best time counts."""
FEWEST = 3
"""Timings taken at least."""

Timer = Callable[[], float]
"""Seconds on a monotonic clock."""
Measurement = Mapping[str, str | float | bool | None]
"""What was measured, and what it holds for, as its file has it."""


class Measurements:
    """What a process knows of its machine; each figure is read from below the results, or measured and written there."""

    def __init__(self) -> None:
        self._known: dict[Path, Measurement] = {}

    def peak_flops(self, device: str, dtype: str, folder: Path, timer: Timer = time.perf_counter) -> float:
        """The machine's matrix peak in FLOP/s, measured once (about 0.1 s on a CPU) and kept.

        Args:
            device: `cpu` or `cuda`.
            dtype: Name of a torch type, `float32` or `bfloat16`.
            folder: Where measurements are kept, `Paths.machine`.
            timer: Clock.

        Raises:
            StorageError: When the folder cannot be written.
        """
        facts = _facts(device) | {"what": "matrix peak, FLOP/s", "dtype": dtype}
        peak = self._of(folder, "peak", facts, lambda: {"flops": measured_peak(device, dtype, timer)})
        return cast("float", peak["flops"])

    def computes_in_bf16(self, device: str, folder: Path, timer: Timer = time.perf_counter) -> bool:
        """Whether this machine computes in bfloat16 itself: one that emulates it is many times slower in it.

        Args:
            device: `cpu` or `cuda`.
            folder: Where measurements are kept, `Paths.machine`.
            timer: Clock.

        Raises:
            StorageError: When the folder cannot be written.
        """
        import torch

        if device == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        plain, half = (self.peak_flops(device, dtype, folder, timer) for dtype in ("float32", "bfloat16"))
        return half * SLOW > plain

    def bf16_is_faster(
        self, model: PreTrainedModel, device: str, folder: Path, revision: str, timer: Timer = time.perf_counter
    ) -> bool:
        """Whether a training step of this base model is `GAIN` times faster under bfloat16 autocast than without.

        Measured once for each machine and revision. On a CPU whose plain matrix products gain less than that, no step is
        timed: nothing else of a step is faster in bfloat16. A model that cannot compute in it is not faster either.

        Args:
            model: The base model as loaded, before a method is attached; it is left as it was.
            device: `cpu` or `cuda`, where the model is.
            folder: Where measurements are kept, `Paths.machine`.
            revision: Of the base model.
            timer: Clock.

        Raises:
            StorageError: When the folder cannot be written.
            OutOfMemoryError: When one step does not fit; nothing is kept then.
        """
        import torch

        if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return False
        if sum(p.numel() for p in model.parameters()) < SMALLEST:
            return False
        facts = _facts(device) | {
            "what": "seconds of a training step",
            "revision": revision,
            "weights": f"{model.dtype} {getattr(model, 'quantization_method', None) or ''}".strip(),
        }

        def measure() -> Measurement:
            if device == "cpu":
                plain, half = (self.peak_flops(device, dtype, folder, timer) for dtype in ("float32", "bfloat16"))
                if half < GAIN * plain:
                    return {"faster": False, "reason": "matrix products in bfloat16 gain too little here"}
            return _compared(model, device, timer)

        return bool(self._of(folder, "bf16", facts, measure)["faster"])

    def _of(
        self, folder: Path, name: str, facts: Mapping[str, str | int | None], measure: Callable[[], Measurement]
    ) -> Measurement:
        """What is on record for these facts; measured and written where there is nothing, and the first to write counts."""
        path = folder / f"{name}-{fingerprint(facts)}.json"
        if (known := self._known.get(path) or _read(path)) is None:
            write = write_atomically if path.exists() else write_once  # a damaged file is replaced
            elsewhere = next((known for other, known in self._known.items() if other.name == path.name), None)
            measured = elsewhere or {**facts, **measure()}
            write(path, json.dumps(measured, indent=1) + "\n")
            known = _read(path) or measured
        self._known[path] = known
        return known


def measured_peak(device: str, dtype: str, timer: Timer = time.perf_counter) -> float:
    """FLOP/s of the best of a few square matrix products, at the number of threads in use.

    Args:
        device: `cpu` or `cuda`.
        dtype: Name of a torch type.
        timer: Clock.
    """
    import torch

    size = _matrix_size(device, dtype)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, generator=generator, device=device).to(getattr(torch, dtype)) for _ in range(2)
    )
    with torch.no_grad():
        return 2.0 * size**3 / _best_seconds(lambda: torch.mm(left, right), device, timer)


def _compared(model: PreTrainedModel, device: str, timer: Timer) -> Measurement:
    """Best seconds of a step in either precision, and the verdict."""
    import torch

    seconds = {}
    try:
        for name in ("float32", "bfloat16"):
            with _undisturbed(model, device) as step:
                seconds[name] = _best_seconds(partial(step, name == "bfloat16"), device, timer)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # an operation that has no bfloat16 kernel
        return {"faster": False, "reason": str(error)}
    return {"faster": seconds["float32"] >= GAIN * seconds["bfloat16"], **seconds}


@contextmanager
def _undisturbed(model: PreTrainedModel, device: str) -> Iterator[Callable[[bool], None]]:
    """A training step to call: forward, and backward down to the embeddings; leaves gradients and random state alone.

    The gradients of weights are not taken, since which weights move is a method's choice.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)
    ids = torch.randint(model.config.vocab_size, BATCH, generator=generator, device=device)
    embedded: list[Tensor] = []

    def hold(module: object, inputs: object, output: Tensor) -> Tensor:
        embedded[:] = [output.detach().requires_grad_()]
        return embedded[0]

    def step(half: bool) -> None:
        quick = quick_attention(model) if half and device == "cpu" else nullcontext()
        with quick, torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        torch.autograd.grad(loss, embedded)

    hook = model.get_input_embeddings().register_forward_hook(hold)
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
            yield step
    finally:
        hook.remove()


def _best_seconds(work: Callable[[], object], device: str, timer: Timer) -> float:
    """The shortest of at least `FEWEST` runs and about `ENOUGH_S` seconds of them, after one that does not count.

    Args:
        work: What is timed.
        device: `cpu` or `cuda`.
        timer: Clock.
    """
    import torch

    def wait() -> None:  # a GPU's kernels run on after the call that started them
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < ENOUGH_S:
        start = timer()
        work()
        wait()
        taken.append(max(timer() - start, 1e-9))
    return min(taken)


def _matrix_size(device: str, dtype: str) -> int:
    """Large enough for the peak, small enough for a few milliseconds."""
    import torch

    if device == "cuda":
        return 4096 if dtype == "float32" else 8192
    return 512 if torch.get_num_threads() == 1 else 1024


def _facts(device: str) -> dict[str, str | int | None]:
    """What a measurement holds for."""
    import torch

    return {
        "hardware": hardware(device),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "torch": torch.__version__,
        "float32_products": torch.get_float32_matmul_precision(),
    }


def _read(path: Path) -> Measurement | None:
    try:
        measurement = parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    return measurement if isinstance(measurement, dict) else None

"""What is measured of a machine: by a clock of our own here, and once for all who ask."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import StorageError
from harness.files import write_once
from harness.models.base_model import load_model, resolve_model
from harness.records.paths import Paths
from harness.trial import hardware as machine
from harness.trial.hardware import Measurements, measured_peak
from harness.trial.process import pick_device

FLOPS = 2 * 512**3
"""Of a product of two matrices of 512 x 512, the size for one thread."""


class Clock:
    """Gives each timed piece of work the next duration, in seconds."""

    def __init__(self, *durations: float) -> None:
        self.durations, self.running, self.timed = list(durations), False, 0

    def __call__(self) -> float:
        self.running = not self.running
        if self.running:
            return 0.0
        self.timed += 1
        return self.durations.pop(0)


def stopped() -> float:
    raise AssertionError("nothing may be measured")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(machine, "SMALLEST", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(world: Any) -> Any:
    return load_model(resolve_model(str(world.llama)), {}, "cpu")


def test_the_best_time_counts() -> None:
    # three timings at least, and until they add up to a tenth of a second: the fourth is not taken
    assert measured_peak("cpu", "float32", Clock(0.04, 0.02, 0.05)) == FLOPS / 0.02
    clock = Clock(*[0.02] * 4, 0.01, 0.02)
    assert measured_peak("cpu", "bfloat16", clock) == FLOPS / 0.01
    assert clock.timed == 6  # 0.09 s after five


def test_a_peak_is_measured_once_for_all_processes(tmp_path: Path) -> None:
    own = Measurements()
    folder = Paths(tmp_path).machine
    assert own.peak_flops("cpu", "float32", folder, Clock(0.1, 0.1, 0.1)) == FLOPS / 0.1
    assert own.peak_flops("cpu", "float32", folder, stopped) == FLOPS / 0.1
    own = Measurements()  # of another process
    assert own.peak_flops("cpu", "float32", folder, stopped) == FLOPS / 0.1
    [path] = folder.iterdir()
    assert json.loads(path.read_text())["torch"] == torch.__version__


def test_what_differs_is_measured_apart(tmp_path: Path) -> None:
    own = Measurements()
    one = own.peak_flops("cpu", "float32", tmp_path, Clock(0.1, 0.1, 0.1))
    assert own.peak_flops("cpu", "bfloat16", tmp_path, Clock(0.05, 0.05, 0.05)) == 2 * one
    torch.set_num_threads(2)
    assert own.peak_flops("cpu", "float32", tmp_path, Clock(0.1, 0.1, 0.1)) == 8 * one  # twice the size
    assert len(list(tmp_path.iterdir())) == 3


def test_of_processes_that_measure_at_once_the_first_to_write_counts(tmp_path: Path) -> None:
    own = Measurements()

    class Overtaken(Clock):
        """While we measure, another process measures and writes."""

        def __call__(self) -> float:
            if not self.timed:
                Measurements().peak_flops("cpu", "float32", tmp_path, Clock(0.2, 0.2, 0.2))
            return super().__call__()

    assert own.peak_flops("cpu", "float32", tmp_path, Overtaken(0.1, 0.1, 0.1)) == FLOPS / 0.2
    assert own.peak_flops("cpu", "float32", tmp_path, stopped) == FLOPS / 0.2


def test_a_damaged_measurement_is_taken_again(tmp_path: Path) -> None:
    own = Measurements()
    own.peak_flops("cpu", "float32", tmp_path, Clock(0.1, 0.1, 0.1))
    [path] = tmp_path.iterdir()
    path.write_text('{"flops": ')
    own = Measurements()  # of another process
    assert own.peak_flops("cpu", "float32", tmp_path, Clock(0.2, 0.2, 0.2)) == FLOPS / 0.2
    assert json.loads(path.read_text())["flops"] == FLOPS / 0.2


def with_peaks(folder: Path, plain: float, half: float) -> Path:
    """A folder that knows the seconds of a matrix product already."""
    own = Measurements()
    own.peak_flops("cpu", "float32", folder, Clock(*[plain] * 50))
    own.peak_flops("cpu", "bfloat16", folder, Clock(*[half] * 50))
    return folder


@pytest.mark.parametrize(("half_s", "faster"), [(0.1, True), (0.2, False), (0.1538, True), (0.1539, False)])
def test_bfloat16_must_be_thirty_percent_faster(tmp_path: Path, model: Any, half_s: float, faster: bool) -> None:
    own = Measurements()
    folder = with_peaks(tmp_path, 0.1, 0.05)
    clock = Clock(0.2, 0.3, 0.2, half_s, 0.4, 0.4)  # best of three each; 0.2 / 1.3 = 0.153846
    assert own.bf16_is_faster(model, "cpu", folder, "r", clock) is faster
    assert clock.timed == 6


def test_the_decision_is_kept_by_revision(tmp_path: Path, model: Any) -> None:
    own = Measurements()
    folder = with_peaks(tmp_path, 0.1, 0.05)
    assert own.bf16_is_faster(model, "cpu", folder, "one", Clock(*[0.3] * 3, *[0.1] * 3))
    assert not own.bf16_is_faster(model, "cpu", folder, "two", Clock(*[0.3] * 6))
    own = Measurements()  # of another process
    assert own.bf16_is_faster(model, "cpu", folder, "one", stopped)
    assert not own.bf16_is_faster(model, "cpu", folder, "two", stopped)


def test_where_products_gain_too_little_no_step_is_timed(tmp_path: Path, model: Any) -> None:
    own = Measurements()
    folder = with_peaks(tmp_path, 0.1, 0.08)  # 1.25 times
    assert not own.bf16_is_faster(model, "cpu", folder, "r", stopped)


def test_what_has_no_bfloat16_kernel_is_not_faster(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Measurements()

    def forward(**inputs: Any) -> Any:
        raise RuntimeError("\"product\" not implemented for 'BFloat16'")

    monkeypatch.setattr(model, "forward", forward)
    folder = with_peaks(tmp_path, 0.1, 0.05)
    assert not own.bf16_is_faster(model, "cpu", folder, "r", Clock(*[0.3] * 6))
    [kept] = folder.glob("bf16-*.json")
    assert "not implemented" in json.loads(kept.read_text())["reason"]


def test_too_little_memory_decides_nothing(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Measurements()

    def forward(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        own.bf16_is_faster(model, "cpu", with_peaks(tmp_path, 0.1, 0.05), "r", Clock(*[0.3] * 6))
    assert list(tmp_path.glob("bf16-*.json")) == []


def test_measuring_leaves_no_trace_in_model_or_random_state(tmp_path: Path, model: Any) -> None:
    own = Measurements()
    names = dict(model.named_parameters())
    names["model.norm.weight"].grad = torch.ones_like(names["model.norm.weight"])
    weights = {name: parameter.detach().clone() for name, parameter in names.items()}
    moving = {name: parameter.requires_grad for name, parameter in names.items()}
    state = torch.random.get_rng_state()
    own.bf16_is_faster(model, "cpu", with_peaks(tmp_path, 0.1, 0.05), "r", Clock(*[0.3] * 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert not model.get_input_embeddings()._forward_hooks
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad == moving[name]
    assert {name for name, p in names.items() if p.grad is not None} == {"model.norm.weight"}
    assert bool((names["model.norm.weight"].grad == 1).all())


def test_the_first_of_two_writers_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_once(tmp_path / "folder" / "one", "first")
    write_once(tmp_path / "folder" / "one", "second")
    assert [(p.name, p.read_text()) for p in (tmp_path / "folder").iterdir()] == [("one", "first")]

    def no_links(*names: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", no_links)
    write_once(tmp_path / "folder" / "two", "first")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["one", "two"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_once(tmp_path / "file" / "three", "first")


def test_a_small_model_stays_in_float32_unmeasured(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Measurements()
    monkeypatch.setattr(machine, "SMALLEST", 10_000_000)
    assert not own.bf16_is_faster(model, "cpu", tmp_path, "r", stopped)


@pytest.mark.parametrize(
    ("chosen", "there", "left"), [(None, False, None), (None, True, "0"), ("2,3", True, "2"), ("", False, "")]
)
def test_looking_for_a_gpu_leaves_no_trace_where_there_is_none(
    chosen: str | None, there: bool, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that names one would make whoever plans in this process later count on it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen or "")
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device("auto") == ("cuda" if there else "cpu")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left

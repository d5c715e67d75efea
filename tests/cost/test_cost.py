"""Costs against numbers worked out by hand."""

import time
from contextlib import ExitStack

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.cost import meter
from harness.cost.flops import Size, model_size, training_flops
from harness.cost.meter import Meter, Tally
from harness.cost.price import money
from harness.models.base_model import load_model, resolve_model
from harness.plugins import load
from harness.space import Params, defaults
from harness.study.family import stage_space
from harness.study.spec import Prices


def test_an_inner_phase_is_not_the_outer_ones():
    meter = Meter("cpu")
    with meter.phase("train"):
        time.sleep(0.1)
        with meter.phase("evaluate"):
            time.sleep(0.2)
            assert meter.so_far("train") < 0.2
        time.sleep(0.1)
        assert meter.so_far("train") == pytest.approx(0.2, abs=0.1)
    assert meter.seconds["train"] == pytest.approx(0.2, abs=0.1)
    assert meter.seconds["evaluate"] == pytest.approx(0.2, abs=0.1)
    assert meter.total_s == pytest.approx(0.4, abs=0.2)
    assert meter.seconds["load"] == 0.0


def test_a_phase_is_charged_when_it_fails():
    meter = Meter("cpu")

    def fail():
        with meter.phase("data"):
            time.sleep(0.05)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert meter.seconds["data"] >= 0.05


def test_only_the_training_windows_memory_counts():
    """400 MB in loading and in evaluation are not the peak; 200 MB in training are above what was there before."""
    meter = Meter("cpu")
    with meter.phase("load"):
        bytearray(400_000_000)
    with meter.phase("train"):
        pass
    quiet = meter.peak_memory_bytes
    with meter.phase("train"):
        block = bytearray(200_000_000)
        with meter.phase("evaluate"):
            bytearray(400_000_000)
        del block
    assert 190e6 < meter.peak_memory_bytes - quiet < 300e6
    assert meter.peak_memory_from == "resident set, high-water mark"


def test_cpu_seconds_are_of_work_not_of_waiting():
    meter = Meter("cpu")
    with meter.phase("load"):
        time.sleep(0.3)
    assert meter.cpu_s < 0.2
    with meter.phase("train"):
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    assert 0.25 <= meter.cpu_s < 1.0


def test_what_trials_do_together_is_charged_in_shares(monkeypatch):
    """By a clock that only this test turns."""
    now = [0.0]
    monkeypatch.setattr("harness.cost.meter.time.perf_counter", lambda: now[0])
    meters = [Meter("cpu") for _ in range(3)]
    with ExitStack() as stack:
        for meter in meters:
            stack.enter_context(meter.phase("train", 1 / 3))
        now[0] += 6.0
    with meters[0].phase("train"):
        now[0] += 1.0
    assert [meter.seconds["train"] for meter in meters] == [pytest.approx(3.0), pytest.approx(2.0), pytest.approx(2.0)]
    assert sum(meter.total_s for meter in meters) == pytest.approx(7.0)


def test_a_pack_pays_for_its_process_in_shares():
    whole, one = Meter("cpu"), Meter("cpu")
    whole.seconds["load"], whole.cpu_s, one.seconds["load"], one.cpu_s = 8.0, 4.0, 1.0, 1.0
    one.add(whole, 1 / 4)
    assert (one.seconds["load"], one.cpu_s) == (3.0, 2.0)


def test_tokens_of_a_padded_batch():
    tally = Tally()
    tally.add(
        {
            "input_ids": torch.zeros(2, 4),
            "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
            "labels": torch.tensor([[7, -100, 7, 7], [-100, 7, -100, -100]]),
        }
    )
    # the label of the first token is never predicted
    assert (tally.tokens, tally.supervised_tokens, tally.squared_lengths) == (6, 3, 16 + 4)


def test_full_tuning_costs_six_flops_per_parameter_and_token():
    """Kaplan et al. 2020: 6 N per token; attention aside."""
    size = Size(total_params=1000, trainable_params=1000, matmul_params=1000, gradient_params=1000)
    assert training_flops(size, tokens=10, squared_lengths=0) == 6 * 1000 * 10
    frozen = Size(total_params=1000, trainable_params=10, matmul_params=1000, gradient_params=10)
    assert training_flops(frozen, tokens=10, squared_lengths=0) == (4 * 1000 + 2 * 10) * 10


def test_attention_costs_half_of_palms_term():
    """PaLM, appendix B: 12 L H Q T per token with H Q = hidden; of that 4 forward, 8 backward; a causal mask needs half."""
    size = Size(layers=3, hidden=8)
    tokens = length = 16
    assert training_flops(size, tokens, length**2) == pytest.approx((4 + 4) * 3 * 8 * length * tokens / 2)


def test_sizes_of_a_tied_and_of_a_quantised_model(world):
    base = resolve_model(str(world.llama))
    plain = model_size(load_model(base, {}, "cpu"))
    params = AutoModelForCausalLM.from_pretrained(world.llama).num_parameters()
    assert (plain.total_params, plain.matmul_params, plain.layers, plain.hidden) == (params, params, 2, 64)
    options = load("methods", "qlora")().load_options(
        Params(
            defaults(stage_space({"method": "qlora", "objective": "sft", "retention": "none", "curation": "as_is"}))
        ),
        "cpu",
    )
    assert model_size(load_model(base, options, "cpu")).total_params == params


@pytest.mark.parametrize(
    ("prices", "gpu", "wanted"),
    [
        (Prices(), None, None),
        (Prices(cpu_hour=2.0), None, 2.0 * 4 / 2),
        (Prices(gpu_hour={"A": 8.0, "default": 6.0}), "A", 4.0),
        (Prices(gpu_hour={"A": 8.0, "default": 6.0}, cpu_hour=1.0), "B", 3.0 + 1.0 * 4 / 2),
        (Prices(gpu_hour={"A": 8.0}), "B", None),
    ],
)
def test_half_an_hour_on_four_cores(prices, gpu, wanted):
    assert money(prices, 1800, 4, gpu) == wanted


def test_what_earlier_attempts_took_is_counted_once_however_often_it_is_taken_up():
    meter, first, second = Meter("cpu"), Meter("cpu"), Meter("cpu")
    meter.seconds["train"], meter.cpu_s, meter.peak_memory_bytes = 1.0, 0.5, 100
    first.seconds["train"], first.energy_j, first.peak_memory_bytes = 8.0, 3.0, 300
    second.seconds["load"], second.cpu_s = 2.0, 4.0
    meter.carry(first.spent())
    assert (meter.seconds["train"], meter.energy_j, meter.peak_memory_bytes) == (9.0, 3.0, 300)
    meter.carry(second.spent())
    assert (meter.seconds["train"], meter.seconds["load"], meter.cpu_s, meter.total_s) == (1.0, 2.0, 4.5, 3.0)
    assert meter.energy_j == 0.0


def test_free_memory_is_the_least_that_the_machine_its_control_groups_and_its_job_leave(tmp_path, monkeypatch):
    """A job of 100 MB of which 60 are taken; the group above its step's may take 1 GB and has 400 MB, its own has no limit."""
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    step = tmp_path / "job_1" / "step_0"
    step.mkdir(parents=True)
    (step / "memory.max").write_text("max\n")
    (step / "memory.current").write_text("7\n")
    (tmp_path / "job_1" / "memory.max").write_text("1000000000\n")
    (tmp_path / "job_1" / "memory.current").write_text("400000000\n")
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere\n0::/job_1/step_0\n")
    assert list(meter._cgroup_rooms(tmp_path, tmp_path / "cgroup")) == [600_000_000]
    (tmp_path / "status").write_text("VmRSS:\t   61440 kB\n")
    monkeypatch.setattr(meter, "STATUS", tmp_path / "status")
    before = meter.free_memory("cpu")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert meter.free_memory("cpu") == 40 << 20 < before

"""The memory forecast against tensors that live while the harness's own loop trains, and against counts by hand."""

import pytest
import transformers

from harness.cost.memory import Layout, Load
from tests.cost.alive import Trained, measured, predicted

TINY = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = transformers.LlamaConfig(**TINY, num_key_value_heads=2, vocab_size=4096, tie_word_embeddings=False)
BLOCK = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768 + 2 * 256
COUNT = 4 * BLOCK + 2 * 4096 * 256 + 256
"""Parameters: attention with half as many keys as queries, a gated feed-forward part, norms, two tables, a last norm."""
RANKED = 4 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 768))
"""In- plus out-features of its linear layers."""


def trained(method, **changes):
    return Trained(config=LLAMA, method=method, rows=4, length=128, answer=32, **changes)


def test_what_trains_moves_and_is_packed_is_counted_by_the_method_itself():
    full, lora, qlora = (predicted(trained(method)) for method in ("full", "lora", "qlora"))
    assert (full.weights - full.trained, full.trained, full.moments) == pytest.approx(
        (-4 * COUNT, 4 * COUNT, 8 * COUNT), rel=1e-3
    )
    assert (lora.weights, lora.trained) == pytest.approx((2 * COUNT, 4 * 16 * RANKED), rel=1e-3)
    assert (lora.moments, lora.gradients) == (2 * lora.trained, lora.trained)
    # Four bits, and one byte for each 64 weights; the tables and norms stay in 16 bits.
    packed = 4 * (BLOCK - 2 * 256)
    assert qlora.weights == pytest.approx(2 * (COUNT - packed) + packed * (0.5 + 1 / 64), rel=1e-3)
    assert predicted(trained("lora", half=False, params={"precision": "float32"})).weights == pytest.approx(
        4 * COUNT, rel=1e-3
    )


@pytest.mark.parametrize(
    "case",
    [
        trained("full", passes=2),
        trained("lora", recomputes=True),
        trained("layer_freezing"),
    ],
    ids=lambda case: f"{case.method} {case.passes} {case.recomputes}",
)
def test_the_forecast_is_what_lives_while_the_loop_trains(case):
    assert predicted(case).peak == pytest.approx(measured(case), rel=0.1)


def test_a_pass_of_one_example_with_layers_computed_again_is_the_least():
    layout = Layout(
        weights=100, trained=10, moments=20, gradients=10, first_gradient=0, copies=8, token_activations=4, token_kept=1,
        layers=4, logit=1, vocabulary=2, basis="",
    )  # fmt: skip
    load = Load(rows=8, length=10, supervised=16)
    assert layout.memory(load).peak == 130 + 8 + 320 + 32
    assert layout.memory(load, recomputes=True).peak == 130 + 2 + (80 + 80) + 32
    assert layout.least(load).peak == 130 + 2 + 160 + 32  # it cannot be cut
    alone = Load(rows=8, length=10, supervised=16, cuttable=True)
    assert layout.least(alone).peak == 130 + 10 + 2 + (10 + 10) + 4  # gradients add up over the eight


def test_a_size_that_no_weight_has_is_found_for_a_parameter_without_numbers():
    assert predicted(trained("trainable_tokens")).trained == 0


def test_a_method_that_needs_rows_is_taken_as_another_and_that_is_said():
    found = predicted(trained("eva"))
    assert found.basis.startswith("lora in its place")
    assert found.trained == predicted(trained("lora")).trained

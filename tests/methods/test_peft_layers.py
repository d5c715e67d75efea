"""What PEFT's kinds of layers do to a weight, against the closed forms of their papers."""

import pytest
import torch

from harness.axes.contract import Situation
from harness.models.base_model import load_model, resolve_model
from harness.models.facts import ModelFacts
from harness.plugins import load, names
from tests.tiny import attached, stage, trained

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def moved(world):
    """A trained layer of PEFT's, the base's weight (out, in) there, and how far it moved."""

    def get(name, steps=4, **params):
        one = trained(world.llama, stage(name, **{"learning_rate": 1e-2} | params), steps)
        weight = load_model(resolve_model(str(world.llama)), {}, "cpu").get_parameter(NAME).detach()
        layer = one.choices.method.layers(one.model)["base_model.model." + NAME.removesuffix(".weight")]
        return layer, weight, one.choices.method.deltas(one.model)[NAME].detach()

    return get


@pytest.mark.parametrize("name", ["oft", "hra"])
def test_rotations_keep_singular_values(moved, name):
    _, weight, delta = moved(name)
    assert delta.abs().max() > 1e-3
    torch.testing.assert_close(torch.linalg.svdvals(weight + delta), torch.linalg.svdvals(weight), atol=1e-4, rtol=0)


def test_boft_rotates_inputs_and_scales_outputs(moved):
    """`S W R`: rows keep their angles, but unlike with a rotation alone not their lengths."""
    _, weight, delta = moved("boft", steps=10)
    now, was = ((w @ w.T).double() for w in (weight + delta, weight))
    scale = (now.diagonal() / was.diagonal()).sqrt()
    assert (scale - 1).abs().max() > 1e-2
    torch.testing.assert_close(now, scale[:, None] * was * scale, atol=1e-5, rtol=0)
    turned = (weight + delta) / scale[:, None].float()
    assert (turned - weight).abs().max() > 1e-3


def test_poly_adds_a_product_of_average_factors(moved):
    """Skills weigh by the sigmoid of their logits; at first B is zero, so that four ranks are all there is."""
    layer, _, delta = moved("poly", rank=4, skills=3)
    weights = 1 / (1 + (-layer.poly_router["default"].module_logits.detach()[0]).exp())
    down, up = (
        sum(w * f for w, f in zip(weights, factor["default"].detach()[0], strict=True)) / weights.sum()
        for factor in (layer.poly_lora_A, layer.poly_lora_B)
    )
    assert weights.std() > 1e-4
    assert delta.abs().max() > 1e-4
    torch.testing.assert_close(delta, (down @ up).T / 4, atol=1e-6, rtol=0)


def test_poly_draws_its_mixture_in_training(moved):
    layer, _, _ = moved("poly")
    x = torch.ones(1, 1, 64)
    drawn, settled = ({float(layer.train(mode)(x).detach().sum()) for _ in range(3)} for mode in (True, False))
    assert (len(drawn), len(settled)) == (3, 1)


def test_loha_is_a_product_of_products(moved):
    """alpha 16 of rank 4: times 4."""
    layer, _, delta = moved("loha", rank=4, alpha=16.0)
    parts = [getattr(layer, f"hada_{part}")["default"].detach() for part in ("w1_a", "w1_b", "w2_a", "w2_b")]
    torch.testing.assert_close(delta, 4 * (parts[0] @ parts[1]) * (parts[2] @ parts[3]), atol=1e-6, rtol=0)


def test_krona_is_a_kronecker_product(moved):
    layer, _, delta = moved("krona")
    whole = torch.kron(layer.lokr_w1["default"].detach(), layer.lokr_w2["default"].detach())
    torch.testing.assert_close(delta, whole, atol=1e-6, rtol=0)


def test_c3a_is_made_of_circulant_blocks(moved):
    """Along each diagonal of a block, ends joined, the numbers are equal."""
    _, _, delta = moved("c3a", block=16)
    for block in delta.unfold(0, 16, 16).unfold(1, 16, 16).flatten(0, 1):
        for shift in range(16):
            diagonal = torch.stack([block[(row + shift) % 16, row] for row in range(16)])
            assert float(diagonal.max() - diagonal.min()) < 1e-6
    assert delta.abs().max() > 1e-6


@pytest.mark.parametrize("largest", [True, False])
def test_supertuning_moves_the_weights_of_largest_or_smallest_magnitude(moved, largest):
    _, weight, delta = moved("supertuning", trained_share=0.05, largest=largest)
    order = weight.abs().flatten().argsort(descending=largest)
    count = weight.numel() // 20
    assert (delta.flatten()[order[:count]] != 0).all()
    assert not delta.flatten()[order[count:]].any()


def test_shira_moves_as_many_weights_as_lora_has_parameters(moved):
    _, _, delta = moved("shira", rank=4)
    assert int((delta != 0).sum()) == 4 * (64 + 128)


def test_hira_scales_the_weights_by_a_matrix_of_low_rank(moved):
    _, weight, delta = moved("hira", rank=4)
    values = torch.linalg.svdvals(delta / weight)
    assert values[3] > 100 * values[4]
    assert torch.linalg.svdvals(delta)[4] > 1e-3 * torch.linalg.svdvals(delta)[0]


def test_osf_leaves_the_principal_directions(moved):
    """Nothing is added to what the weights do on their first half of singular directions, from either side."""
    _, weight, delta = moved("osf", learning_rate=1e-3, kept_share=0.5)
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    assert delta.abs().max() > 1e-3
    assert (left[:, :32].T @ delta @ right[:32].T).abs().max() < 1e-3 * delta.norm()


def test_delora_bounds_how_far_weights_go(moved):
    """`lambda / rank` times the sum of `rank` parts of length 1, each scaled by the weights' norm."""
    layer, weight, delta = moved("delora", steps=10, rank=4, bound=1, learning_rate=0.05)
    bound = float(layer.delora_lambda["default"].detach().abs()) * weight.norm()
    assert 0 < delta.norm() <= bound


def test_vera_shares_its_projections(world):
    one, _ = attached(world.llama, stage("vera", rank=8))
    other, _ = attached(world.llama, stage("vera", rank=8), seed=2)
    found = {
        id(layer.vera_A["default"]): layer.vera_A["default"] for layer in one.choices.method.layers(one.model).values()
    }
    (shared,) = found.values()
    theirs = next(iter(other.choices.method.layers(other.model).values())).vera_A["default"]
    assert torch.equal(shared, theirs)


@pytest.mark.parametrize("target", ["attention", "mlp"])
def test_the_target_is_where_it_stands(world, target):
    for name in ("vera", "loha", "oft", "waveft"):
        one, _ = attached(world.llama, stage(name, target=target))
        places = list(one.choices.method.layers(one.model))
        assert places
        assert all(("self_attn" in place) == (target == "attention") for place in places), name


def test_sizes_that_do_not_fit_are_cut_and_noted(world):
    _, notes = attached(world.llama, stage("oft", block=48))
    assert notes == ["block 48 was cut to 32: the widths of the layers divide by no larger one"]
    _, notes = attached(world.llama, stage("waveft", frequencies=20000))
    assert notes == ["frequencies 20000 was cut to 4096: the narrowest layer allows no more"]
    _, notes = attached(world.llama, stage("adalora", rank=4, start_ratio=1.0, full_share=0.5, final_share=0.9), 20)
    assert notes == [
        "final_share was cut to 8 of 20 steps: ranks shrink in two steps at least",
        "layers start with a rank of 5, one above the last: else there is none to drop",
    ]
    assert attached(world.llama, stage("adalora"), 20)[1] == []
    for name in ("lokr", "krona"):
        one, notes = attached(world.llama, stage(name, factor=48))
        assert notes == ["factor 48 does not divide the widths [64, 128]: a smaller divisor was taken there"]
        layer = one.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        assert layer.lokr_w1["default"].shape == (8, 8)
        assert attached(world.llama, stage(name, factor=8))[1] == []
    _, notes = attached(world.llama, stage("gralora", rank=7, grid=4))
    assert notes == ["rank 7 was cut to 4, which the grid divides"]
    _, notes = attached(world.llama, stage("adaption_prompt", upper_layers=3))
    assert notes == ["upper_layers 3 was cut to 2: the model has no more layers"]


def test_transposed_layers_are_refused_where_peft_does_not_take_them():
    """A kind that says so is right: PEFT itself refuses, or trains nothing."""
    refused = [name for name in names("methods") if not getattr(load("methods", name), "takes_transposed", True)]
    assert "oft" in refused
    for name in refused:
        reason = load("methods", name)().skip(Situation(model=ModelFacts(model_type="gpt2")))
        assert "transposed" in reason


def test_those_refusals_are_peft_s_own(world):
    for name in names("methods"):
        if not getattr(load("methods", name), "takes_transposed", True):
            try:
                one, _ = attached(world.gpt2, stage(name))
            except (TypeError, ValueError, NotImplementedError):
                continue
            assert not [p for p in one.model.parameters() if p.requires_grad], name


def test_loftq_is_refused_without_a_gpu():
    assert "GPU" in load("methods", "loftq")().skip(Situation(device="cpu"))
    assert load("methods", "loftq")().skip(Situation(device="cuda")) is None

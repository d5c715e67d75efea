"""Methods on mixtures of experts: what they reach, what they refuse, and that none trains less than it says."""

import pytest
import torch

from harness.axes.contract import Situation
from harness.cost.flops import model_size
from harness.models.base_model import load_model, resolve_model
from harness.models.facts import model_facts
from harness.nn.stack import CannotStack, Stack
from harness.plugins import load, names
from harness.space import Params
from tests.tiny import attached, save_kind, stage, train

LINEAR, EXPERTS, TOTAL = 24_576, 147_456, 205_888
"""Of the tiny Mixtral: two layers with 64 x 64 queries and outputs, 64 x 32 keys and values; four experts of 3 x 64 x 96;
besides 2 x 258 x 64 embeddings, 2 x 4 x 64 routers, and five norms of 64."""


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return save_kind(tmp_path_factory.mktemp("mixtral"), "mixtral")


@pytest.fixture
def situation(mixtral):
    return Situation(model=model_facts(resolve_model(str(mixtral))))


def test_lora_trains_experts(mixtral):
    """For each expert factors of its own: rank times in-features and out-features, 64 to 192 and 96 to 64."""
    learner, _ = attached(mixtral, stage("lora", rank=3))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters() if p.requires_grad}
    attention = 2 * 3 * (2 * (64 + 64) + 2 * (64 + 32))
    assert sum(p.numel() for p in before.values()) == attention + 2 * 4 * 3 * ((64 + 192) + (96 + 64))
    train(learner)
    moved = {name for name, old in before.items() if not torch.equal(learner.model.get_parameter(name), old)}
    assert sum(".experts." in name for name in moved) == 2 * 2 * 2  # layers, parameters, factors
    assert learner.settings.reach == pytest.approx((LINEAR + EXPERTS) / TOTAL)


@pytest.mark.parametrize(
    ("method", "params", "reached"),
    [
        ("full", {}, TOTAL),
        ("lora", {"target": "attention"}, LINEAR),
        ("lora", {"target": "mlp"}, EXPERTS),
        ("dora", {}, LINEAR),
        ("oft", {}, LINEAR),
        ("pissa", {}, LINEAR),
        ("layer_freezing", {"trained_share": 0.5}, (LINEAR + EXPERTS + 2 * 4 * 64 + 4 * 64) / 2),
        ("prompt_tuning", {}, 0),
    ],
)
def test_the_share_that_a_method_reaches_is_stated(mixtral, situation, method, params, reached):
    """Exactly when it is attached, and within a router's size when it is planned."""
    one = stage(method, **params)
    settings = attached(mixtral, one)[0].settings
    assert settings.reach == pytest.approx(reached / TOTAL)
    assert bool(settings.reach_experts) == (reached > LINEAR)
    assert load("methods", method)().reach(situation.model, Params(one.params)) == pytest.approx(
        reached / TOTAL, abs=0.005
    )


def test_methods_that_would_leave_experts_in_full_precision_refuse(situation):
    for name in ("qlora", "qlora_int8", "qlora_8bit_moments"):
        reason = load("methods", name)().skip(situation)
        assert reason == (
            "bitsandbytes quantises linear layers only, so that the experts of a mixtral, 72% of its weights, would stay "
            "as they are: use lora"
        )


def test_dropout_that_experts_cannot_have_is_refused(situation):
    def skip(**params):
        return load("methods", "lora")().skip(Situation(model=situation.model, params=Params(params)))

    assert skip(adapter_dropout=0.1, target="all").endswith(
        "adapter_dropout is 0.1: set it to 0, or target to attention"
    )
    assert skip(adapter_dropout=0.1, target="attention") is None
    assert skip(adapter_dropout=0.0, target="all") is None


def test_trials_with_adapted_experts_run_alone_and_others_together(mixtral):
    def learners(target):
        return [attached(mixtral, stage("lora", target=target, rank=rank), seed=rank)[0] for rank in (2, 3)]

    whole = learners("all")
    with pytest.raises(CannotStack, match="changes the weights of experts for a whole pass"):
        Stack([one.model for one in whole], [one.choices.method for one in whole])
    alone = [train(one)[0] for one in learners("attention")]
    for mine, theirs in zip(train(*learners("attention")), alone, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_a_token_passes_some_of_the_experts(mixtral):
    """Two of four, so that half of the experts' numbers multiply nothing; what LoRA adds is counted beside."""
    base = load_model(resolve_model(str(mixtral)), {}, "cpu")
    size = model_size(base.requires_grad_(True))
    dense = TOTAL - 258 * 64 - EXPERTS
    assert size.total_params == size.trainable_params == TOTAL
    assert size.matmul_params == size.gradient_params == dense + EXPERTS // 2
    lora = model_size(attached(mixtral, stage("lora", rank=1))[0].model)
    assert lora.trainable_params == 2 * (2 * (64 + 64) + 2 * (64 + 32)) + 2 * 4 * ((64 + 192) + (96 + 64))
    # an adapter on experts forms the gradients of the weights that it changes
    assert lora.gradient_params == lora.trainable_params + EXPERTS // 2


@pytest.mark.parametrize("method", ["eva", "kasa", "road", "shira"])
def test_shared_experts_and_their_gates_break_no_method(method, tmp_path):
    """A Qwen2 has a gate of one output in each layer, and shared experts that see tokens without their rows."""
    folder = save_kind(tmp_path / "qwen", "qwen2_moe")
    losses = train(attached(folder, stage(method))[0])[0]
    assert all(0 < loss < 20 for loss in losses)


def test_every_method_says_what_it_covers():
    silent = [name for name in names("methods") if load("methods", name).covers is None]
    assert silent == ["ia3"]  # PEFT says where, by architecture

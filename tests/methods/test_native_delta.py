"""Methods that add a computed change to frozen weights, each against a formula or a computation of its own."""

import copy
import math

import pytest
import torch
from scipy.linalg import hadamard
from torch.nn.functional import cross_entropy
from transformers import OPTConfig, OPTForCausalLM

from harness.methods._changes import FastfoodChange, MaskedChange, walsh_hadamard
from harness.methods._delta import placed
from harness.models.base_model import load_model, resolve_model
from harness.nn.sequences import IGNORED
from tests.tiny import ROWS, attached, logits, save_tokenizer, stage, train, trained

STEADY = {"schedule": "constant", "warmup_share": 0.0}
NAMES = ["fishmask", "diff_pruning", "sora", "intrinsic_dimension"]
SMALL = {
    "fishmask": {"mask_share": 0.01, "fisher_rows": 8},
    "diff_pruning": {},
    "sora": {"rank": 4},
    "intrinsic_dimension": {"dimension": 300},
}


def base_of(folder):
    return load_model(resolve_model(str(folder)), {}, "cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_deltas_are_what_merging_adds_and_differentiable(name, family, world):
    folder = getattr(world, family)
    ready = trained(folder, stage(name, learning_rate=1e-2, **SMALL[name]), 3)
    method, before = ready.choices.method, dict(base_of(folder).named_parameters())
    deltas = method.deltas(ready.model)
    merged = method.merge(ready.model, ready.setup)
    after = dict(merged.named_parameters())
    assert deltas
    assert set(after) == set(before)
    for key, value in after.items():
        torch.testing.assert_close(value, before[key] + deltas.get(key, 0.0), atol=1e-7, rtol=0)
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    moving = [p for p in ready.model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(sum((delta**2).sum() for delta in deltas.values()), moving, allow_unused=True)
    assert any(slope is not None and slope.abs().sum() > 0 for slope in slopes)
    torch.testing.assert_close(logits(merged), logits(ready.model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_that_trials_share_stays_as_it_is(name, world):
    from harness.nn.stack import twin

    base = base_of(world.llama).requires_grad_(False)
    ready, _ = attached(world.llama, stage(name, **SMALL[name]))
    before = copy.deepcopy(base.state_dict())
    model = ready.choices.method.attach(twin(base), ready.setup)
    ready.choices.method.merge(model, ready.setup)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert not any(p.requires_grad for p in base.parameters())


# FISH mask


def test_fishmask_takes_the_weights_with_the_largest_squared_gradients(world):
    """Against gradients of every row's loss through `backward`, averaged here."""
    ready, _ = attached(world.llama, stage("fishmask", mask_share=0.02, fisher_rows=8))
    model = base_of(world.llama)
    scores = {}
    for (sequence,) in ready.examples:
        model.zero_grad()
        ids = torch.tensor([sequence.input_ids])
        labels = torch.tensor([sequence.labels])
        found = model(input_ids=ids).logits[0, :-1]
        cross_entropy(found, labels[0, 1:], ignore_index=IGNORED, reduction="sum").backward()
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                scores[name] = scores.get(name, 0.0) + weight.grad**2 / len(ready.examples)
    assert len(ready.examples) == len(ROWS) == 8
    flat = torch.cat([score.flatten() for score in scores.values()])
    count = round(0.02 * len(flat))
    limit = flat.sort(descending=True).values[count - 1]
    chosen = {}
    for name, change in placed(ready.model).items():
        mask = torch.zeros(change.shape.numel(), dtype=torch.bool)
        mask[change.places] = True
        chosen[f"{name}.weight"] = mask.view(change.shape)
    for name, score in scores.items():
        assert torch.equal(chosen.get(name, torch.zeros_like(score, dtype=torch.bool)), score >= limit), name
    assert sum(int(mask.sum()) for mask in chosen.values()) == count


def test_fishmask_moves_its_places_and_no_other(world):
    ready = trained(world.gpt2, stage("fishmask", **SMALL["fishmask"]), 3)
    for name, delta in ready.choices.method.deltas(ready.model).items():
        places = placed(ready.model)[name.removesuffix(".weight")].places
        moved = delta.flatten().nonzero().flatten()
        assert set(moved.tolist()) <= set(places.tolist())
        assert len(moved) > 0


# Diff pruning


def test_a_hard_concrete_gate_is_that_of_the_paper():
    """z = min(1, max(0, s (r - l) + l)), s = sigmoid(log u - log(1 - u) + a); l, r = -1.5, 1.5; one more per matrix."""
    change = MaskedChange((2, 3)).train()
    change.logits.data = torch.tensor([[-3.0, 0.0, 3.0], [1.0, -1.0, 5.0]])
    change.logit.data = torch.tensor([0.5])
    change.draw(torch.Generator().manual_seed(4))
    u = torch.rand(7, generator=torch.Generator().manual_seed(4)).clamp(1e-4, 1 - 1e-4)

    def z(a, u):
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + a)))
        return min(1.0, max(0.0, 3 * s - 1.5))

    logits = change.logits.flatten().tolist()
    wanted = [z(a, float(v)) * z(0.5, float(u[6])) for a, v in zip(logits, u, strict=False)]
    assert change.gates().flatten().tolist() == pytest.approx(wanted, abs=1e-5)
    quiet = [z(a, 0.5) * z(0.5, 0.5) for a in logits]
    assert change.eval().gates().flatten().tolist() == pytest.approx(quiet, abs=1e-6)
    assert 0.0 in quiet


def test_the_expected_number_of_open_gates_is_what_drawing_finds():
    change = MaskedChange((20, 20)).train()
    change.logits.data = torch.linspace(-4, 4, 400).view(20, 20)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(300):
        change.draw(generator)
        each = torch.sigmoid(change.logits + change.noise[0]) * 3 - 1.5
        drawn.append(int((each > 0).sum()))
    whole = 1 / (1 + math.exp(-5.0))  # the matrix's own: sigmoid(5 - log(1.5 / 1.5))
    # a sum of 400 coins has a deviation below 10; the mean of 300 of them below 0.6
    assert change.open().item() == pytest.approx(sum(drawn) / 300 + whole, abs=2.4)


def test_a_strong_penalty_closes_gates_and_the_rest_is_exactly_the_base(world):
    # Adam moves a logit by about its rate per step: 25 steps of 0.5 bring 5 far below 0
    strong = stage("diff_pruning", l0_penalty=1e-3, gate_learning_rate=0.5, learning_rate=1e-2, **STEADY)
    ready, notes = attached(world.llama, strong, 25)
    train(ready)
    ready.model.eval()
    deltas = ready.choices.method.deltas(ready.model)
    zero = sum(int((delta == 0).sum()) for delta in deltas.values())
    total = sum(delta.numel() for delta in deltas.values())
    assert zero > 0.5 * total
    (share,) = [float(note.split()[0]) for note in notes]
    assert share <= 1 - zero / total + 1e-4


def test_a_steps_draw_is_a_function_of_seed_and_step(world):
    def noise(seed, step):
        ready, _ = attached(world.llama, stage("diff_pruning"), seed=seed)
        ready.choices.method.before_step(ready.model, step)
        return next(iter(placed(ready.model).values())).noise[0]

    assert torch.equal(noise(1, 3), noise(1, 3))
    assert not torch.equal(noise(1, 3), noise(1, 4))
    assert not torch.equal(noise(1, 3), noise(2, 3))


# SoRA


def test_sora_is_the_gated_product(world):
    ready, _ = attached(world.gpt2, stage("sora", rank=3))
    for name, change in placed(ready.model).items():
        torch.nn.init.normal_(change.up)
        wanted = change.up @ torch.diag(change.gate) @ change.down
        weight = base_of(world.gpt2).get_submodule(name).weight
        torch.testing.assert_close(change.value(), wanted.T)  # GPT-2 keeps its weights transposed
        torch.testing.assert_close(ready.model.get_submodule(name).weight, weight + wanted.T)


def test_soras_gates_are_thresholded_by_rate_times_penalty(world):
    """AdamW's first step moves a gate by its rate, if anything; then 0.01 * 30 = 0.3 towards zero, and no further."""
    ready, notes = attached(world.llama, stage("sora", rank=4, gate_penalty=30.0, learning_rate=0.01, **STEADY), 1)
    starts = {name: change.gate.detach().clone() for name, change in placed(ready.model).items()}
    train(ready)
    left = 0
    for name, change in placed(ready.model).items():
        # where B is zero a gate has no slope: only the threshold moves it
        shrunk = starts[name].sign() * (starts[name].abs() - 0.3).clamp(min=0)
        torch.testing.assert_close(change.gate.detach(), shrunk, atol=1e-6, rtol=0)
        left += int((shrunk != 0).sum())
    assert 0 < left < 4 * 14
    assert notes == [f"{left} of {4 * 14} ranks are left"]


def test_soras_threshold_follows_the_schedule(world):
    """The second of two steps has half of the rate of 0.01: times 30, a gate moves by 0.15."""
    falling = {"schedule": "linear", "warmup_share": 0.0}
    ready, _ = attached(world.llama, stage("sora", rank=4, gate_penalty=30.0, learning_rate=0.01, **falling), 2)
    gate = next(iter(placed(ready.model).values())).gate
    start = gate.detach().clone()
    ready.choices.method.after_step(ready.model, 2)
    shrunk = start.sign() * (start.abs() - 0.15).clamp(min=0)
    torch.testing.assert_close(gate.detach(), shrunk, atol=1e-6, rtol=0)


# Intrinsic dimension


@pytest.mark.parametrize("size", [1, 2, 16, 256, 1024])
def test_the_fast_transform_is_the_hadamard_matrix(size):
    x = torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(walsh_hadamard(x), torch.tensor(hadamard(size), dtype=torch.float64) @ x)


def test_the_projection_is_fastfood_and_keeps_norms_in_the_mean():
    """H G P H B as matrices; its columns have norm 1 in the mean over projections."""
    shared, factors = torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    norms = []
    for seed in range(200):
        change = FastfoodChange((3, 7), shared, factors, 1, torch.Generator().manual_seed(seed))
        h = torch.tensor(hadamard(32), dtype=torch.float32)
        matrix = h @ torch.diag(change.gaussian) @ torch.eye(32)[change.order] @ h @ torch.diag(change.signs)
        torch.testing.assert_close(change.value().flatten(), 2 * matrix[:21, :5] @ shared, atol=1e-4, rtol=1e-4)
        norms.append(float(matrix[:21, 0].norm() ** 2))
    assert sum(norms) / len(norms) == pytest.approx(1.0, abs=0.1)


def test_intrinsic_leaves_what_is_outside_the_blocks(tmp_path):
    """An OPT whose embeddings are narrower than its layers has two linear layers more: six in each of two blocks move."""
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(
        vocab_size=258, num_attention_heads=4, max_position_embeddings=96, bos_token_id=0, eos_token_id=0, **sizes
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    ready, _ = attached(tmp_path, stage("intrinsic_dimension", dimension=300), 1)
    moved = ready.choices.method.layers(ready.model)
    assert len(moved) == 12
    assert all(name.startswith("model.decoder.layers.") for name in moved)


def test_intrinsic_trains_its_dimension_and_moves_all_layers(world):
    ready = trained(world.llama, stage("intrinsic_dimension", dimension=300, learning_rate=1e-2), 2)
    assert sum(p.numel() for p in ready.model.parameters() if p.requires_grad) == 300
    deltas = ready.choices.method.deltas(ready.model)
    assert len(deltas) == 14
    assert all(delta.abs().max() > 0 for delta in deltas.values())

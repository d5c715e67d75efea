"""What each variant of LoRA claims of its start, its scale and its optimiser, against closed forms and PEFT's own code."""

import dataclasses

import pytest
import torch

from harness.models.base_model import load_model, resolve_model
from harness.tasks.training_rows import Row
from harness.training import checkpoint
from harness.training.alone import Alone
from harness.training.checkpoint import Progress
from tests.tiny import ROWS, attached, logits, stage, train, trained


def base_of(world):
    return {
        name: value.detach()
        for name, value in load_model(resolve_model(str(world.llama)), {}, "cpu").named_parameters()
    }


def layers(one):
    return {
        name.removeprefix("base_model.model."): layer for name, layer in one.choices.method.layers(one.model).items()
    }


def test_rslora_scales_by_the_root_of_the_rank(world):
    """alpha 32, rank 16: 32 / 4 = 8, where LoRA has 2."""
    for name, scale in (("lora", 2.0), ("rslora", 8.0)):
        one, _ = attached(world.llama, stage(name))
        assert {layer.scaling["default"] for layer in layers(one).values()} == {scale}


def test_pissa_takes_the_largest_singular_values_out_of_the_base(world):
    one, _ = attached(world.llama, stage("pissa", rank=4))
    for name, weight in base_of(world).items():
        if (layer := layers(one).get(name.removesuffix(".weight"))) is not None:
            values = torch.linalg.svdvals(weight)
            left = torch.linalg.svdvals(layer.base_layer.weight)
            torch.testing.assert_close(left[: len(values) - 4], values[4:], atol=1e-5, rtol=0)
            torch.testing.assert_close(torch.linalg.svdvals(layer.get_delta_weight("default"))[:4], values[:4])


def test_kasa_drops_the_smallest_singular_values(world):
    one, _ = attached(world.llama, stage("kasa", rank=4))
    for name, weight in base_of(world).items():
        if (layer := layers(one).get(name.removesuffix(".weight"))) is not None:
            values, left = torch.linalg.svdvals(weight), torch.linalg.svdvals(layer.base_layer.weight)
            torch.testing.assert_close(left[:-4], values[:-4], atol=1e-5, rtol=0)
            assert left[-4:].max() < 1e-5


def test_olora_starts_with_an_orthonormal_factor_of_the_weights(world):
    one, _ = attached(world.llama, stage("olora", rank=4))
    for layer in layers(one).values():
        columns = layer.lora_B["default"].weight
        torch.testing.assert_close(columns.T @ columns, torch.eye(4), atol=1e-5, rtol=0)


def test_mica_starts_from_the_minor_directions(world):
    """The weights hardly reach the frozen factor: its columns give back the smallest singular values."""
    one, _ = attached(world.llama, stage("mica", rank=4))
    for name, weight in base_of(world).items():
        if (layer := layers(one).get(name.removesuffix(".weight"))) is not None:
            reached = torch.linalg.svdvals(layer.lora_B["default"].weight.T @ weight)
            torch.testing.assert_close(reached, torch.linalg.svdvals(weight)[-4:], atol=1e-5, rtol=1e-3)


def test_a_rank_beyond_the_narrowest_layer_is_cut_and_noted(world):
    one, notes = attached(world.llama, stage("pissa", rank=100))
    assert {layer.r["default"] for layer in layers(one).values()} == {64}
    assert notes == ["rank 100 was cut to 64: the narrowest layer allows no more"]


def test_eva_starts_from_the_principal_components_of_a_layers_inputs(world):
    """The first layer's inputs are normed embeddings: their components by a decomposition of the centred rows."""
    one, _ = attached(world.llama, stage("eva", rank=4))
    base = load_model(resolve_model(str(world.llama)), {}, "cpu")
    ids = [one.setup.tokenizer(row.prompt + row.completion)["input_ids"] for row in ROWS]
    ends = torch.tensor([token for row in ids for token in [*row, one.setup.tokenizer.eos_token_id]])
    with torch.no_grad():
        rows = base.model.layers[0].input_layernorm(base.model.embed_tokens(ends))
    wanted = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh
    layer = layers(one)["model.layers.0.self_attn.q_proj"]
    found = layer.lora_A["default"].weight
    assert torch.allclose((found * wanted[: len(found)]).sum(1).abs(), torch.ones(len(found)), atol=1e-3)
    assert not layer.lora_B["default"].weight.any()


def test_lora_ga_first_moves_where_full_tuning_would(world):
    """Of rank 2, its inner factor is the gradient's first two right singular vectors, its outer one the next two left."""
    from harness.methods._calibration import batches, drawn

    one, _ = attached(world.llama, stage("lora_ga", rank=2))
    base = load_model(resolve_model(str(world.llama)), {}, "cpu").train()
    for batch in batches(drawn(one.setup.rows(), 256, one.setup), one.setup):
        base(**batch).loss.backward()
    name = "model.layers.1.mlp.down_proj"
    left, _, right = torch.linalg.svd(base.get_submodule(name).weight.grad)
    columns = torch.nn.functional.normalize(layers(one)[name].lora_B["default"].weight.detach(), dim=0)
    rows = torch.nn.functional.normalize(layers(one)[name].lora_A["default"].weight.detach(), dim=1)
    torch.testing.assert_close((left[:, 2:4] * columns).sum(0).abs(), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close((right[:2] * rows).sum(1).abs(), torch.ones(2), atol=1e-3, rtol=0)


def test_loraplus_moves_the_outer_factor_by_its_ratio(world):
    """AdamW's first step moves every number by its rate."""
    flat = {"schedule": "constant", "warmup_share": 0.0, "learning_rate": 1e-4, "weight_decay": 0.0}
    one, _ = attached(world.llama, stage("loraplus", rate_ratio=8.0, **flat), steps=1)
    train(one)
    moved = max(float(layer.lora_B["default"].weight.detach().abs().max()) for layer in layers(one).values())
    assert moved == pytest.approx(8e-4, rel=1e-2)


def test_lora_fa_moves_the_weights_as_full_tunings_gradient_says_in_the_span_of_its_inner_factor(world):
    """The gradient that its first step takes is `G A^T (A A^T)^-1 / s`, so that `s B A` is `G` projected on rows of A."""
    one, _ = attached(world.llama, stage("lora_fa", rank=4), steps=1)
    session = Alone(one)
    seen = {}
    step = session.optimizer.step

    def watched():
        seen.update({id(p): p.grad.clone() for p in session.trained.values()})
        step()

    session.optimizer.step = watched
    session.advance(1)
    layer = next(iter(layers(one).values()))
    inner, outer = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = seen[id(outer)] @ torch.linalg.pinv(inner @ inner.T) / layer.scaling["default"] ** 2
    state = next(value for key, value in session.optimizer.state.items() if "q_proj" in key)
    torch.testing.assert_close(state["exp_avg_B"] / 0.1, wanted, rtol=3e-2, atol=float(wanted.abs().max()) * 3e-2)


def test_adalora_ends_with_the_ranks_that_it_was_asked_for(world):
    """Rank 4 on 14 layers: 56 singular values are left of 14 times 6."""
    one = trained(world.llama, stage("adalora", rank=4, learning_rate=5e-3), steps=20)
    left = sum(int((layer.lora_E["default"] != 0).sum()) for layer in layers(one).values())
    assert sum(layer.lora_E["default"].numel() for layer in layers(one).values()) == 84
    assert left == 56


def test_adalora_is_pulled_to_orthonormal_factors_as_peft_does_it(world):
    """PEFT adds its term where the model computes the loss."""
    one, _ = attached(world.llama, stage("adalora", orthogonality=0.3))
    ids = torch.arange(5, 45).reshape(2, 20)
    with_term = one.model(input_ids=ids, labels=ids).loss
    without = one.model.get_base_model()(input_ids=ids, labels=ids).loss
    found = one.choices.method.penalty(one.model, one.setup)()
    assert float(found.detach()) == pytest.approx(float((with_term - without).detach()), rel=1e-5)


@pytest.mark.parametrize("rung", [4, 12])
def test_adalora_goes_on_from_a_checkpoint_bit_for_bit(world, tmp_path, rung):
    """Before and after its ranks are final."""
    chosen = stage("adalora", rank=4, learning_rate=5e-3)
    whole = trained(world.llama, chosen, steps=16)
    first, _ = attached(world.llama, chosen, steps=16)
    first = dataclasses.replace(first, watch=dataclasses.replace(first.watch, stop_at=rung))
    train(first)
    checkpoint.save(
        tmp_path / "rung",
        first,
        Progress(key="key", step=rung, curve=(), losses=(0.0, 0), train_seconds=0.0, tokens=0, total_s=0.0),
    )
    second, _ = attached(world.llama, chosen, steps=16)
    checkpoint.restore(tmp_path / "rung", second)
    train(second)
    for (name, mine), other in zip(second.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("name", ["pissa", "olora", "corda", "lora_ga"])
def test_the_base_comes_back_after_training(world, name):
    one = trained(world.llama, stage(name, learning_rate=1e-2), steps=4)
    tuned = logits(one.model)
    bare = logits(load_model(resolve_model(str(world.llama)), {}, "cpu"))
    with one.choices.method.detached(one.model) as off:
        torch.testing.assert_close(logits(off), bare, atol=2e-5, rtol=0)
    assert torch.equal(logits(one.model), tuned)
    assert not torch.allclose(tuned, bare, atol=1e-2)


def test_corda_knows_which_rows_to_keep(world):
    """`kpm` calibrates on the base's own texts."""
    corpus = [Row(completion=text) for text in ("a quick brown fox", "jumps over", "the lazy dog")]
    starts = [
        attached(world.llama, stage("corda", rank=4, corda_mode=mode), corpus=corpus)[0].model
        for mode in ("ipm", "kpm")
    ]
    one, other = (dict(model.named_parameters()) for model in starts)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert not torch.allclose(one[name], other[name], atol=1e-3)


def test_trainable_tokens_are_the_commonest(world):
    """Of `0 red: der`, `1 blue: eulb`, ...: a space, in all rows twice, then e (twelve times) and r (eight)."""
    one, _ = attached(world.llama, stage("trainable_tokens", tokens=2))
    kept = one.model.peft_config["default"].token_indices
    texts = [row.prompt + row.completion for row in ROWS]
    counts = {character: "".join(texts).count(character) for character in set("".join(texts))}
    first, second = sorted(counts, key=counts.get, reverse=True)[:2]
    assert kept == [one.setup.tokenizer(character)["input_ids"][0] for character in (first, second)]
    _, notes = attached(world.llama, stage("trainable_tokens", tokens=1000))
    assert notes == [f"tokens 1000 was cut to {len(counts)}: the training rows have no more"]

"""Virtual tokens before the text: nobody who asks the model sees them, in training, scoring, generating or after loading."""

import pytest
import torch
from safetensors.torch import load_file

from harness.axes.contract import Situation
from harness.models.base_model import load_model, resolve_model
from harness.plugins import load
from harness.trial.model_folder import load_tuned, save_model
from tests.tiny import ROWS, attached, logits, stage, train, trained

METHODS = ["prompt_tuning", "multitask_prompt_tuning", "p_tuning", "cpt", "prefix_tuning", "cartridge"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_text_is_generated_as_the_logits_say(world, name, family):
    model = trained(getattr(world, family), stage(name, learning_rate=0.05), steps=3).model.eval()
    ids = torch.tensor([[5, 9, 30, 31, 7]])
    with torch.no_grad():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
        )
        for _ in range(5):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert found.tolist() == ids.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_one_answers_as_the_trained_one_does(world, name, tmp_path):
    one = trained(world.llama, stage(name, learning_rate=0.05), steps=3)
    save_model(tmp_path / "model", one, resolve_model(str(world.llama)))
    torch.testing.assert_close(logits(load_tuned(tmp_path / "model")), logits(one.model), atol=1e-5, rtol=0)


def test_prompts_by_hand(world):
    """The logits are those of the base, given the trained embeddings and then the text's."""
    one = trained(world.llama, stage("prompt_tuning", virtual_tokens=3, learning_rate=0.05), steps=3)
    base = load_model(resolve_model(str(world.llama)), {}, "cpu")
    ids = torch.arange(5, 45).reshape(2, 20)
    prompt = one.model.prompt_encoder["default"].embedding.weight.detach()
    with torch.no_grad():
        text = base.get_input_embeddings()(ids)
        wanted = base(inputs_embeds=torch.cat([prompt.expand(2, -1, -1), text], dim=1)).logits[:, 3:]
    torch.testing.assert_close(logits(one.model), wanted, atol=1e-5, rtol=0)


def test_a_task_s_prompt_is_the_shared_one_times_an_outer_product(world, tmp_path):
    """Which is how it is kept: PEFT loads it as a plain prompt."""
    one = trained(world.llama, stage("multitask_prompt_tuning", virtual_tokens=3, learning_rate=0.1), steps=3)
    encoder = one.model.prompt_encoder["default"]
    column, row = encoder.prefix_task_cols.detach()[0], encoder.prefix_task_rows.detach()[0]
    assert (column.shape, row.shape) == ((3, 1), (1, 64))
    wanted = encoder.embedding.weight.detach() * column * row
    save_model(tmp_path / "model", one, resolve_model(str(world.llama)))
    (kept,) = load_file(tmp_path / "model" / "adapter_model.safetensors").values()
    assert wanted.abs().max() > 1e-2
    torch.testing.assert_close(kept, wanted)


def test_a_prompt_starts_as_words_of_the_vocabulary(world):
    one, _ = attached(world.llama, stage("prompt_tuning", virtual_tokens=5))
    words = one.model.get_input_embeddings().weight
    for row in one.model.prompt_encoder["default"].embedding.weight:
        assert any(torch.equal(row, word) for word in words)


@pytest.mark.parametrize("name", ["prefix_tuning", "mam", "unipelt"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_tokens_of_a_prefix_do_not_stay_alike(world, name, family):
    """Keys start as standard normal numbers, values at zero; 64 features in each of two layers."""
    one, _ = attached(getattr(world, family), stage(name, virtual_tokens=6, learning_rate=0.05), steps=3)
    prefix = one.model.prompt_encoder["default"].embedding.weight
    keys, values = prefix.detach().clone().view(6, 2, 2, 64).unbind(2)
    assert (float(keys.mean()), float(keys.std())) == pytest.approx((0.0, 1.0), abs=0.15)
    assert not values.any()
    train(one)
    learned = prefix.detach().view(6, 2, 2, 64)[:, :, 1]
    for layer in range(2):  # tokens with the same key would have the same gradient, so that all rows were one
        assert torch.linalg.matrix_rank(learned[:, layer], tol=1e-3) == 6


def test_a_cartridge_starts_as_the_text_that_it_holds(world):
    """In front of `xyz`, keys and values of the first rows give what the rows in front of it would."""
    one, _ = attached(world.llama, stage("cartridge", virtual_tokens=7))
    base = load_model(resolve_model(str(world.llama)), {}, "cpu")
    tokens = [t for row in ROWS for t in one.setup.tokenizer(row.prompt + row.completion)["input_ids"]][:7]
    text = torch.tensor([[60, 61, 62]])
    with torch.no_grad():
        wanted = base(input_ids=torch.cat([torch.tensor([tokens]), text], dim=1)).logits[:, 7:]
        found = one.model.eval()(input_ids=text).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_cpt_moves_what_was_asked_and_leaves_the_answers(world):
    one = trained(world.llama, stage("cpt", virtual_tokens=12, learning_rate=0.05), steps=3)
    config, encoder = one.model.peft_config["default"], one.model.prompt_encoder["default"]
    moved = encoder.delta_embedding.weight.detach().norm(dim=1) > 0
    # `0 red:` and ` der`, then the first of `1 blue:`
    assert config.cpt_tokens_type_mask == [2] * 6 + [4] * 4 + [6] * 2
    assert moved.tolist() == [True] * 6 + [False] * 4 + [True] * 2


def test_trainers_that_want_logits_for_virtual_tokens_are_refused():
    fused, other = (load("objectives", name) for name in ("sft", "reward_model"))
    for name in ("prompt_tuning", "p_tuning", "cpt"):
        method = load("methods", name)()
        assert method.skip(Situation(beside={"objective": fused})) is None
        assert "TRL" in method.skip(Situation(beside={"objective": other}))

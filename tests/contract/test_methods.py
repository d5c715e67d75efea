"""Every method on a two-layer Llama and a GPT-2, whose linear layers are transposed: what moves, and what is kept."""

import re

import pytest
import torch

from harness.artifacts import save_model
from harness.models import load_model, model_facts, resolve_model
from harness.plugins import Situation, load, names
from tests.tiny import attached, logits, stage, train, trained

METHODS = [name for name in names("methods") if load("methods", name).needs_training]
CASES = [(name, family) for name in METHODS for family in ("llama", "gpt2")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request, world):
    name, family = request.param
    folder = getattr(world, family)
    base = resolve_model(str(folder))
    facts = model_facts(base)
    reason = load("methods", name)().skip(Situation("cpu", facts["model_type"], facts))
    if reason:
        pytest.skip(reason)
    return name, folder, base


@pytest.fixture(scope="module")
def after(world):
    """Two steps of a method on a folder, trained once for all tests of this file."""
    kept = {}

    def get(name, folder):
        if (name, folder) not in kept:
            kept[name, folder] = trained(folder, stage(name))
        return kept[name, folder]

    return get


def test_identity_at_start_is_as_claimed(case):
    name, folder, base = case
    ready, _ = attached(folder, stage(name))
    method = ready.choices.method
    before = load_model(base, method.load_options(dict(ready.choices.params), "cpu"), "cpu")
    same = torch.allclose(logits(ready.model), logits(before), atol=1e-6)
    assert same == method.identity_at_start


def test_two_steps_have_a_finite_loss_and_move_only_what_is_declared(case):
    name, folder, _ = case
    ready, _ = attached(folder, stage(name))
    method, model = ready.choices.method, ready.model
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    declared = {key for key in before if re.fullmatch(method.trains, key)}
    assert {key for key, value in model.named_parameters() if value.requires_grad} == declared

    (losses,) = train(ready)

    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved
    assert moved <= declared


def test_adapters_off_is_the_base(case, after):
    name, folder, base = case
    ready = after(name, folder)
    method = ready.choices.method
    before = load_model(base, method.load_options(dict(ready.choices.params), "cpu"), "cpu")
    try:
        with method.detached(ready.model) as bare:
            torch.testing.assert_close(logits(bare), logits(before), atol=1e-6, rtol=0)
    except NotImplementedError:
        assert method.trains == r".*"


def test_what_is_saved_loads_without_the_harness_and_gives_the_same_logits(case, tmp_path):
    """A merged model through transformers alone, an adapter through PEFT; merged equals unmerged to 1e-4."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, folder, base = case
    ready = trained(folder, stage(name))
    wanted = logits(ready.model)
    plain = (tmp_path / "model").absolute()

    save_model(plain, ready, base)

    loader = AutoModelForCausalLM if ready.choices.method.mergeable else AutoPeftModelForCausalLM
    torch.testing.assert_close(logits(loader.from_pretrained(plain)), wanted, atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(plain)("red")["input_ids"] == ready.setup.tokenizer("red")["input_ids"]
    assert ((plain / "adapter_config.json").exists()) != ready.choices.method.mergeable

"""The shared optimiser against transformers and torch; and what a session leaves for the next."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig, RwkvConfig, Trainer, get_scheduler
from transformers.models.auto import AutoModelForCausalLM

from harness.nn.optimizer import decaying, learning_rate, warmup_steps
from harness.space import Params
from harness.study.family import OPTIMIZER_SPACE
from harness.training.alone import Alone
from harness.training.trl import SCHEDULES
from tests.tiny import attached, stage, train

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_bias=True,
    ),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "rwkv": RwkvConfig(vocab_size=50, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, bos_token_id=0),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_what_decays_is_what_transformers_would_let_decay(family):
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    names = {name for name, _ in model.named_parameters()}
    assert decaying(model) & names == theirs & names  # a tied parameter has one name
    assert decaying(model) & names < names


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix_tuning"])
def test_what_decays_of_an_adapter_is_what_transformers_would_let_decay(method, world):
    ready, _ = attached(world.gpt2, stage(method))
    moving = {name for name, value in ready.model.named_parameters() if value.requires_grad}
    assert decaying(ready.model) == set(Trainer.get_decay_parameter_names(None, ready.model)) & moving


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 60),
    st.floats(0.0, OPTIMIZER_SPACE["warmup_share"].high),
    st.floats(1e-6, 1e-1),
)
def test_schedules_are_those_of_transformers(schedule, steps, share, peak):
    params = Params({"learning_rate": peak, "schedule": schedule, "warmup_share": share})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    reference = get_scheduler(
        SCHEDULES[schedule], optimizer, num_warmup_steps=warmup_steps(params, steps), num_training_steps=steps
    )
    for step in range(steps):
        assert learning_rate(params, step, steps) == pytest.approx(reference.get_last_lr()[0], rel=1e-12, abs=1e-18)
        optimizer.step()
        reference.step()


def test_a_schedule_by_hand():
    """Ten steps, two of warm-up: 0 and 1/2 of the peak, then the peak falls by eighths."""
    params = Params({"learning_rate": 8.0, "schedule": "linear", "warmup_share": 0.2})
    assert [learning_rate(params, step, 10) for step in range(10)] == [0, 4, 8, 7, 6, 5, 4, 3, 2, 1]


def test_an_optimiser_step_is_torchs(world):
    """AdamW with decay on weights only, clipped to a norm of 1/10, on the gradients of the loss itself."""
    optimizer = {"weight_decay": 0.1, "max_grad_norm": 0.1, "schedule": "constant", "warmup_share": 0.0}
    ready, _ = attached(world.gpt2, stage("full", learning_rate=1e-3, batch_size=8, **optimizer), steps=1)
    other, _ = attached(world.gpt2, stage("full", learning_rate=1e-3, batch_size=8, **optimizer), steps=1)
    train(ready)
    model = other.model.train()
    losses = []
    for example in other.examples:
        ids, labels = (torch.tensor([values]) for values in (example[0].input_ids, example[0].labels))
        output = model(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(output, labels[0, 1:], reduction="none"))
    everything = torch.cat(losses)
    (everything.sum() / (everything != 0).sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    weights = [p for name, p in model.named_parameters() if p.dim() > 1]
    rest = [p for name, p in model.named_parameters() if p.dim() == 1]
    torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3).step()
    for (name, mine), theirs in zip(ready.model.named_parameters(), model.parameters(), strict=True):
        # where a gradient is as small as rounding, Adam's first step has its sign only
        apart = (mine - theirs).abs() > 1e-6
        assert apart.float().mean() < 1e-2, name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_session_that_is_closed_and_opened_again_is_the_same_session(method, world):
    """Weights, moments and step are all that a continuation needs."""

    def ready():
        return attached(world.gpt2, stage(method, schedule="cosine"), steps=6)[0]

    straight, broken = ready(), ready()
    train(straight)
    while broken.active:
        session = Alone(broken)
        session.advance(1)
        session.close()
    assert broken.losses == straight.losses
    for mine, theirs in zip(broken.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)

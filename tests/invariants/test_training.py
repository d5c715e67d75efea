"""What training itself rests on: accumulation, prompts without loss, and the loss that TRL computes."""

import pytest
import torch

from harness.nn.sequences import IGNORED
from harness.training.alone import Alone
from harness.training.trl import trainer_for
from tests.tiny import ROWS, attached, stage, train


def moved(world, **params):
    ready, _ = attached(
        world.llama, stage("full", weight_decay=0.1, schedule="constant", warmup_share=0.0, **params), 4
    )
    train(ready)
    return {name: value.detach() for name, value in ready.model.named_parameters()}, ready


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("batch_size", "gradient_accumulation"), [(2, 2), (1, 4)])
def test_k_batches_of_b_are_one_of_kb(batch_size, gradient_accumulation, world):
    """Rows differ in length, so only a mean over all tokens of the step comes out equal."""
    whole, ready = moved(world, batch_size=4)
    parts, other = moved(world, batch_size=batch_size, gradient_accumulation=gradient_accumulation)
    assert len({len(row.completion) for row in ROWS}) > 1
    assert ready.watch.tally == other.watch.tally
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=0)


def test_prompt_tokens_carry_no_loss(world):
    ready, _ = attached(world.llama, stage("full", batch_size=8))
    tokenizer = ready.setup.tokenizer
    shown = {
        (
            tokenizer.decode([i for i, label in zip(s.input_ids, s.labels, strict=True) if label == IGNORED]),
            tokenizer.decode([label for label in s.labels if label != IGNORED]),
        )
        for (s,) in ready.examples
    }
    assert shown == {(row.prompt, row.completion + "<end>") for row in ROWS}


def ours(ready):
    """Loss of the first step as the own loop computes it, and its gradients."""
    session, slopes = Alone(ready), {}

    def update():
        slopes.update({name: value.grad for name, value in ready.model.named_parameters() if value.requires_grad})
        return torch.zeros(1)

    session.optimizer_step = update
    session.advance(1)
    return torch.tensor(ready.losses.total), slopes


def gradients(model, loss):
    moving = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return dict(zip(moving, torch.autograd.grad(loss, list(moving.values()), allow_unused=True), strict=True))


def padded(ready):
    """The examples of the first step as a batch with an attention mask, made here."""
    sequences = [ready.examples[index][0] for index in ready.order[0]]
    width = max(len(s.input_ids) for s in sequences)
    rows = [(s, width - len(s.input_ids)) for s in sequences]
    return {
        "input_ids": torch.tensor([[*s.input_ids, *[1] * gap] for s, gap in rows]),
        "labels": torch.tensor([[*s.labels, *[IGNORED] * gap] for s, gap in rows]),
        "attention_mask": torch.tensor([[1] * len(s.input_ids) + [0] * gap for s, gap in rows]),
    }


def test_what_a_prompt_should_predict_changes_nothing(world):
    """The gradient is that of the completion's cross-entropy, computed here from the logits."""
    ready, _ = attached(world.llama, stage("full", batch_size=8), steps=1)
    loss, slopes = ours(ready)
    inputs = padded(ready)
    supervised = inputs["labels"][:, 1:] != IGNORED
    output = ready.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(output[supervised], inputs["input_ids"][:, 1:][supervised])
    torch.testing.assert_close(loss, wanted.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(slopes, gradients(ready.model, wanted), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("objective", ["sft", "continued_pretraining"])
@pytest.mark.parametrize("method", ["full", "lora", "prefix_tuning"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_and_gradients_are_trls(family, method, objective, world):
    """The same padded batch through the objective's trainer; adapters are moved, since half of a new one has no slope."""
    lengths = {"max_length": 16} if objective == "continued_pretraining" else {}
    ready, _ = attached(getattr(world, family), stage(method, objective, batch_size=8, **lengths), steps=1)
    moving = [value for value in ready.model.parameters() if value.requires_grad]
    torch.manual_seed(3)
    for value in moving:
        value.data.add_(0.02 * torch.randn_like(value))
    loss, slopes = ours(ready)
    inputs = padded(ready)
    items = (inputs["labels"][:, 1:] != IGNORED).sum()
    wanted = trainer_for(ready).compute_loss(ready.model, inputs, num_items_in_batch=items)
    torch.testing.assert_close(loss, wanted.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(slopes, gradients(ready.model, wanted), atol=1e-5, rtol=1e-4)

"""What training itself rests on: accumulation, and prompts without loss."""

import pytest
import torch

from harness.objectives._language_model import IGNORED
from harness.train import train
from tests.tiny import ROWS, attached, stage


def moved(world, **params):
    ready, _ = attached(
        world.llama, stage("full", weight_decay=0.1, schedule="constant", warmup_share=0.0, **params), 4
    )
    train(ready)
    return {name: value.detach() for name, value in ready.model.named_parameters()}, ready


@pytest.mark.parametrize(("batch_size", "gradient_accumulation"), [(2, 2), (1, 4)])
def test_k_batches_of_b_are_one_of_kb(batch_size, gradient_accumulation, world):
    """Rows differ in length, so only a mean over all tokens of the step comes out equal."""
    whole, ready = moved(world, batch_size=4)
    parts, other = moved(world, batch_size=batch_size, gradient_accumulation=gradient_accumulation)
    assert len({len(row["completion"]) for row in ROWS}) > 1
    assert ready.watch.tally == other.watch.tally
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=0)


def batch(ready):
    return next(iter(ready.trainer.get_train_dataloader()))


def test_prompt_tokens_carry_no_loss(world):
    ready, _ = attached(world.llama, stage("full", batch_size=8))
    inputs = batch(ready)
    tokenizer = ready.setup.tokenizer
    shown = {
        (
            tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label == IGNORED and i != 1]),
            tokenizer.decode([label for label in labels if label != IGNORED]),
        )
        for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True)
    }
    assert shown == {(row["prompt"], row["completion"] + "<end>") for row in ROWS}


def test_what_a_prompt_should_predict_changes_nothing(world):
    """The gradient is that of the completion's cross-entropy, computed here from the logits."""
    ready, _ = attached(world.llama, stage("full", batch_size=8))
    inputs = batch(ready)
    model = ready.model.train()
    supervised = inputs["labels"][:, 1:] != IGNORED
    loss = ready.trainer.compute_loss(model, dict(inputs), num_items_in_batch=supervised.sum())
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(output[supervised], inputs["input_ids"][:, 1:][supervised])
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["full", "lora", "prefix_tuning"])
def test_the_short_way_to_the_loss_is_trls(method, world, monkeypatch):
    """The same batch through TRL's own fused output layer: loss and gradients agree."""
    ready, _ = attached(world.llama, stage(method, batch_size=8))
    inputs, model = batch(ready), ready.model.train()

    def loss_and_gradients():
        model.zero_grad()
        loss = ready.trainer.compute_loss(model, dict(inputs))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    short = loss_and_gradients()
    monkeypatch.setattr("harness.objectives._language_model.LOGITS", 0)
    torch.testing.assert_close(short, loss_and_gradients(), atol=1e-6, rtol=1e-4)

"""Distillation: divergences by hand and against TRL's, what is learned, and what is refused."""

import math
import warnings

import pytest
import torch

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.objectives.distillation import divergence
from harness.plugins import load
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.space import Named, Params
from harness.tasks.training_rows import Row
from harness.trial.group import Workspace, run_trial
from harness.trial.packs import alone_because
from tests.tiny import ROWS, attached, config, save_llama, save_tokenizer, stage, train

KINDS = {"forward": 0.0, "reverse": 1.0, "jensen_shannon": 0.5}
"""And TRL's interpolation between them."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A wider model whose predictions are far from uniform."""
    folder = save_llama(tmp_path_factory.mktemp("teacher"), width=32)
    model = load_model(resolve_model(str(folder)), {}, "cpu")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6)
    model.save_pretrained(folder)
    return folder


def model_of(model):
    base = resolve_model(model.name)
    return load_model(base, {}, "cpu"), load_tokenizer(base)


def ready(world, teacher, method="full", steps=4, rows=ROWS, **params):
    made = stage(method, "distillation", **{"learning_rate": 1e-3, "teacher": str(teacher)} | params)
    return attached(world.llama, made, steps, rows, model_of=model_of)[0]


def test_divergences_by_hand():
    p, q = (0.5, 0.5), (0.2, 0.8)
    mixed = (0.35, 0.65)

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    wanted = {"forward": kl(p, q), "reverse": kl(q, p), "jensen_shannon": (kl(p, mixed) + kl(q, mixed)) / 2}
    for kind, value in wanted.items():
        # logits are log-probabilities but for a constant
        found = divergence(torch.tensor([p]).log() + 3, torch.tensor([q]).log() - 1, kind)
        assert found.tolist() == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_trls(kind, temperature, world, teacher):
    """TRL's does not multiply by the temperature's square."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        from trl.experimental.gkd import GKDTrainer

    one = ready(world, teacher, divergence=kind, distillation_temperature=temperature)
    batch = one.trainer.data_collator([{"pair": number} for number in range(4)])
    one.model.eval()
    with torch.no_grad():
        ours = one.trainer.compute_loss(one.model, batch).item()
        student, known = (
            m(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            for m in (one.model, model_of(Named(str(teacher)))[0].eval())
        )
    theirs = GKDTrainer.generalized_jsd_loss(
        student, known, labels=batch["labels"][:, 1:], beta=KINDS[kind], temperature=temperature
    )
    assert theirs.item() > 1e-3
    assert ours == pytest.approx(temperature**2 * theirs.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_comes_nearer_to_its_teacher(kind, world, teacher):
    """One batch of all rows, so that losses of first and last step are of the same tokens."""
    one = ready(world, teacher, "full", 30, learning_rate=3e-3, schedule="constant", batch_size=8, divergence=kind)
    (curve,) = train(one)
    assert curve[-1] < 0.5 * curve[0]


def test_virtual_tokens_are_no_part_of_the_text(world, teacher):
    one = ready(world, teacher, "prefix_tuning", 2)
    (curve,) = train(one)
    assert len(curve) == 2
    assert one.failure is None


def test_batches_of_a_step_are_averaged(world, teacher):
    """Rows of equal lengths, so that a mean of means is the mean."""
    rows = [Row(prompt=f"{n}:", completion=" abc") for n in range(4)]

    def first(**sizes):
        return train(ready(world, teacher, steps=1, rows=rows, **sizes))[0][0]

    assert first(batch_size=1, gradient_accumulation=4) == pytest.approx(first(batch_size=4), rel=1e-5)


def test_teachers_that_cannot_be_are_refused(world, teacher, tmp_path):
    plugin = load("objectives", "distillation")()
    assert "names none" in plugin.skip(Situation(params=Params({"teacher": " "})))
    assert plugin.skip(Situation(params=Params({"teacher": "a"}))) is None
    assert plugin.skip(Situation()) is None
    with pytest.raises(SpecError, match="teacher must name one model, but names 2: name the one"):
        ready(world, f"{teacher},{teacher}")
    other = save_llama(tmp_path)
    save_tokenizer(other, eos_token="<pad>")
    with pytest.raises(SpecError, match=r"a teacher must have the model's own tokenizer, but .* has another"):
        ready(world, other)


def test_a_trial(world, teacher, tmp_path):
    trial = config(world, stage("lora", "distillation", teacher=str(teacher)), steps=3)
    assert "trainer of its own" in alone_because(trial)
    result = run_trial(trial, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    assert result.status is TrialStatus.COMPLETE, result.reason
    assert result.cost.supervised_tokens > 0

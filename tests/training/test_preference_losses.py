"""Losses of the preference objectives: by hand, and against TRL's on the same pairs."""

import math
import tempfile

import pytest
import torch

from harness.nn.sequences import TokenLosses
from harness.objectives.base import TrainerParts
from harness.plugins import load
from harness.space import Params
from harness.training.trl import _arguments
from tests.tiny import stage, train
from tests.training.pairs import ROWS, ready, shaken

LOSS_TYPES = load("objectives", "dpo").space["loss_type"].choices


def said(policy, base=None, apart=None, lengths=None):
    """Losses of one trial whose sequences have these log-probabilities, one token each unless `lengths` says more."""
    lengths = lengths or [1] * len(policy)
    owners = [index for index, length in enumerate(lengths) for _ in range(length)]
    nats = torch.tensor([[-policy[index] / lengths[index] for index in owners]], dtype=torch.float64)
    return TokenLosses(
        nats=nats,
        sequence=torch.tensor([owners]),
        completion=torch.ones(nats.shape, dtype=torch.bool),
        sequences=len(policy),
        reference=None if base is None else torch.tensor([base], dtype=torch.float64),
        apart=apart,
    )


class Setup:
    def __init__(self, **params):
        self.params = Params(params)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log(1 + math.exp(x))


# Two pairs with beta 0.5: log-ratios to the base of chosen and rejected answers are (2, -1) and (-0.4, 0.6), so that the
# margins are 1.5 and -0.5; chosen answers have 4 and 2 tokens, rejected ones 2 and 3, so that per token the log-ratios
# differ by 2/4 + 1/2 = 1 and by -0.4/2 - 0.6/3 = -0.4. Label smoothing is 0.1.
BY_HAND = {
    "sigmoid": softplus(-1.5) + softplus(0.5),
    "hinge": 0 + 1.5,
    "ipo": (1 - 1) ** 2 + (-0.4 - 1) ** 2,
    "robust": (0.9 * (softplus(-1.5) + softplus(0.5)) - 0.1 * (softplus(1.5) + softplus(-0.5))) / 0.8,
    "exo_pair": sum(p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1) for p in (sigmoid(1.5), sigmoid(-0.5))),
    "nca_pair": softplus(-1)
    + softplus(1) / 2
    + softplus(-0.5) / 2
    + softplus(0.2)
    + softplus(-0.2) / 2
    + softplus(0.3) / 2,
    "bco_pair": softplus(-1) + softplus(-0.5) + softplus(0.2) + softplus(0.3),
    "sppo_hard": (2 - 1) ** 2 + (-1 + 1) ** 2 + (-0.4 - 1) ** 2 + (0.6 + 1) ** 2,
    "apo_zero": (1 - sigmoid(1)) + sigmoid(-0.5) + (1 - sigmoid(-0.2)) + sigmoid(0.3),
    "apo_down": sigmoid(1) + (1 - sigmoid(1.5)) + sigmoid(-0.2) + (1 - sigmoid(-0.5)),
    "discopop": sigmoid(-30) * softplus(-1.5)
    + sigmoid(30) * math.exp(-1.5)
    + sigmoid(10) * softplus(0.5)
    + sigmoid(-10) * math.exp(0.5),
    "sigmoid_norm": softplus(-0.5) + softplus(0.2),
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_dpo_by_hand(loss_type):
    losses = said([-3.0, -6.0, -5.4, -2.0], [-5.0, -5.0, -5.0, -2.6], lengths=[4, 2, 2, 3])
    setup = Setup(loss_type=loss_type, beta=0.5, label_smoothing=0.1)
    (found,) = load("objectives", "dpo")().loss(losses, [setup]).tolist()
    assert found == pytest.approx(BY_HAND[loss_type], abs=1e-9)


def test_orpo_by_hand():
    """Answers' probabilities by geometric mean: 1/2 and 1/4, then 1/5 and 1/2: odds ratios 3 and 1/4."""
    policy = [2 * math.log(1 / 2), 3 * math.log(1 / 4), math.log(1 / 5), 2 * math.log(1 / 2)]
    (found,) = load("objectives", "orpo")().loss(said(policy, lengths=[2, 3, 1, 2]), [Setup(odds_weight=0.2)]).tolist()
    imitation = 2 * (2 * math.log(2) + math.log(5)) / 3
    # the log of a sigmoid of a log-odds ratio r is log(r / (1 + r))
    assert found == pytest.approx(imitation - 0.2 * (math.log(3 / 4) + math.log(1 / 5)), abs=1e-9)


@pytest.mark.parametrize(("mismatched", "point"), [([1.0, 0.2, 0.4, 0.8], 0.6), ([-1.0, 0.2, -0.4, 0.8], 0.0)])
def test_kto_by_hand(mismatched, point):
    losses = said([-3.0, -6.0, -5.4, -2.0], [-5.0, -5.0, -5.0, -2.6], said(mismatched, [0.0] * 4))
    setup = Setup(beta=0.5, desirable_weight=1.2, undesirable_weight=0.7)
    (found,) = load("objectives", "kto")().loss(losses, [setup]).tolist()
    gains = sum(1 - sigmoid(0.5 * (ratio - point)) for ratio in (2.0, -0.4))
    losses = sum(1 - sigmoid(0.5 * (point - ratio)) for ratio in (-1.0, 0.6))
    assert found == pytest.approx(1.2 * gains + 0.7 * losses, abs=1e-9)


TRL_CASES = [("dpo", {"loss_type": name, "label_smoothing": 0.1, "beta": 0.3}) for name in LOSS_TYPES]
TRL_CASES += [
    ("orpo", {"odds_weight": 0.5}),
    ("kto", {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.7}),
]


def trls(one):
    """TRL's trainer on a learner's model, and its loss on the learner's first batch."""
    with tempfile.TemporaryDirectory() as folder:
        parts = TrainerParts(one.model, one.rows, _arguments(one.setup.params, one.setup, folder), one.setup)
        trainer = one.choices.objective.trainer(parts)
    one.model.train()
    drawn = [{"pair": int(index)} for index in one.order[0]]
    return trainer.compute_loss(one.model, trainer.data_collator(drawn))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("objective", "params"),
    TRL_CASES,
    ids=lambda case: str(case.get("loss_type", "")) if isinstance(case, dict) else case,
)
def test_the_loss_is_trls(objective, params, method, world):
    made = stage(method, objective, learning_rate=1e-4, **params)
    ours, theirs = shaken(ready(world.llama, made)), shaken(ready(world.llama, made))
    ((loss, *_),) = train(ours)
    assert loss == pytest.approx(trls(theirs).item(), rel=1e-5, abs=1e-5)


def test_the_gradient_is_trls(world):
    made = stage("lora", "kto", learning_rate=1e-4, beta=0.4, max_grad_norm=0.0)
    ours, theirs = shaken(ready(world.llama, made, steps=1)), shaken(ready(world.llama, made, steps=1))
    train(ours)
    trls(theirs).backward()
    gradients = {name: p.grad for name, p in theirs.model.named_parameters() if p.requires_grad}
    assert set(gradients) == set(ours.moments)
    for name, gradient in gradients.items():  # after one step of AdamW, the first moment is a tenth of the gradient
        torch.testing.assert_close(ours.moments[name][0], gradient / 10, atol=1e-6, rtol=1e-4)


def test_kto_on_texts_that_trl_unpairs_tokenises_and_mismatches_itself(world):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    made = stage("full", "kto", learning_rate=1e-4, batch_size=8)
    ours, theirs = (shaken(ready(world.llama, made, steps=1, rows=ROWS[:8])) for _ in range(2))
    ((loss,),) = train(ours)
    shown = [theirs.examples[index] for index in theirs.order[0]]
    text = theirs.setup.tokenizer.decode
    pairs = [
        {
            "prompt": text(chosen.input_ids[: chosen.prompt]),
            "chosen": text(chosen.input_ids[chosen.prompt : -1]),
            "rejected": text(rejected.input_ids[rejected.prompt : -1]),
        }
        for chosen, rejected in shown
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(theirs.setup.params, theirs.setup, folder) | {"per_device_train_batch_size": 16}
        trainer = KTOTrainer(
            theirs.model,
            theirs.setup.load_base(),
            KTOConfig(**arguments, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(pairs),
            processing_class=theirs.setup.tokenizer,
        )
    theirs.model.train()
    (batch,) = trainer.get_train_dataloader()
    assert loss == pytest.approx(trainer.compute_loss(theirs.model, batch).item(), abs=1e-5)

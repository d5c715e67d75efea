"""CPO, SimPO, AOT and UNA: losses by hand and against TRL's, training together, what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.plugins import load
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.space import Params
from harness.tasks.facts import TaskFacts
from harness.tasks.metadata import TaskMetadata
from harness.tasks.training_rows import Row
from harness.trial.group import Workspace, run_pack
from tests.tiny import config, stage, train
from tests.training.pairs import ROWS, made_up, ready, shaken
from tests.training.test_preference_losses import Setup, said, sigmoid, softplus, trls

CASES = [
    *(("cpo", {"comparison": kind, "beta": 0.3, "imitation_weight": 0.7}) for kind in ("sigmoid", "hinge", "ipo")),
    ("simpo", {"sharpness": 3.0, "target_margin": 0.6}),
    *(("aot", {"pairing": kind, "beta": 0.3, "label_smoothing": 0.1}) for kind in ("paired", "unpaired")),
]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("objective", "params"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_the_loss_is_trls(objective, params, method, world):
    made = stage(method, objective, learning_rate=1e-4, **params)
    ours, theirs = shaken(ready(world.llama, made)), shaken(ready(world.llama, made))
    ((loss, *_),) = train(ours)
    assert loss == pytest.approx(trls(theirs).item(), rel=1e-5, abs=1e-5)


# Sums of log-probabilities -3 and -6 (4 and 2 tokens), then -5.4 and -2 (2 and 3): margins 3 and -3.4; per token
# -0.75 and -3, then -2.7 and -2/3. The two chosen answers have 6 tokens and 8.4 nats.
POLICY, LENGTHS = [-3.0, -6.0, -5.4, -2.0], [4, 2, 2, 3]
PER_TOKEN = (-0.75 + 3, -2.7 + 2 / 3)


@pytest.mark.parametrize(
    ("comparison", "compared"),
    [
        ("sigmoid", softplus(-1.5) + softplus(1.7)),
        ("hinge", 0 + (1 + 1.7)),
        ("ipo", (PER_TOKEN[0] - 1) ** 2 + (PER_TOKEN[1] - 1) ** 2),
    ],
)
def test_cpo_by_hand(comparison, compared):
    setup = Setup(comparison=comparison, beta=0.5, imitation_weight=0.25)
    (found,) = load("objectives", "cpo")().loss(said(POLICY, lengths=LENGTHS), [setup]).tolist()
    assert found == pytest.approx(compared + 2 * 0.25 * 8.4 / 6, abs=1e-9)


def test_simpo_by_hand():
    setup = Setup(sharpness=2.0, target_margin=0.3)
    (found,) = load("objectives", "simpo")().loss(said(POLICY, lengths=LENGTHS), [setup]).tolist()
    assert found == pytest.approx(sum(softplus(-(2 * margin - 0.3)) for margin in PER_TOKEN), abs=1e-9)


def test_aot_by_hand():
    """Log-ratios of chosen to rejected answers are 3 and -3.4, the base's 0 and -2.4; sorted, -1 and 3 are left."""
    losses = said(POLICY, [-5.0, -5.0, -5.0, -2.6])
    (found,) = (
        load("objectives", "aot")().loss(losses, [Setup(pairing="paired", beta=0.5, label_smoothing=0.0)]).tolist()
    )
    assert found == pytest.approx(softplus(0.5) + softplus(-1.5), abs=1e-9)
    # to the base: chosen 2 and -0.4, rejected -1 and 0.6; sorted, -0.4 + 1 and 2 - 0.6
    (found,) = (
        load("objectives", "aot")().loss(losses, [Setup(pairing="unpaired", beta=0.5, label_smoothing=0.1)]).tolist()
    )
    wanted = sum(0.9 * softplus(-m) + 0.1 * softplus(m) for m in (0.3, 0.7))
    assert found == pytest.approx(wanted, abs=1e-9)


def scored(scores):
    return replace(said([-3.0, -6.0, -5.4, -2.0], [-5.0, -5.0, -5.0, -2.6]), scores=torch.tensor([scores]))


def test_una_by_hand():
    """Log-ratios to the base are 2, -1, -0.4, 0.6."""
    una, scores = load("objectives", "una")(), [1.0, 0.0, 0.5, 0.25]
    implicit = [sigmoid(0.5 * ratio) for ratio in (2.0, -1.0, -0.4, 0.6)]
    (found,) = una.loss(scored(scores), [Setup(distance="squared", beta=0.5)]).tolist()
    assert found == pytest.approx(sum((i - s) ** 2 for i, s in zip(implicit, scores, strict=True)), abs=1e-7)
    (found,) = una.loss(scored(scores), [Setup(distance="cross_entropy", beta=0.5)]).tolist()
    wanted = -sum(s * math.log(i) + (1 - s) * math.log(1 - i) for i, s in zip(implicit, scores, strict=True))
    assert found == pytest.approx(wanted, abs=1e-6)


def test_una_on_pairs_is_half_of_trls_bco(world):
    """Cross-entropy with 1 and 0 is TRL's `bco_pair`, which is a mean over pairs instead of answers."""
    theirs = shaken(ready(world.llama, stage("lora", "dpo", loss_type="bco_pair", beta=0.3, learning_rate=1e-4)))
    ours = shaken(ready(world.llama, stage("lora", "una", beta=0.3, learning_rate=1e-4)))
    ((loss, *_),) = train(ours)
    assert loss == pytest.approx(trls(theirs).item() / 2, abs=1e-5)


def with_score(metadata, rows, world, **params):
    one = ready(world.llama, stage("full", "una", learning_rate=1e-5, **params))
    return one.choices.objective.examples(rows, replace(one.setup, task_metadata=TaskMetadata(**metadata)))


def test_una_takes_the_column_that_the_task_names(world):
    rows = [Row(prompt=f"{n}:", completion=" a", doc={"good": n / 4}) for n in range(5)]
    found = with_score({"score": "good"}, rows, world)
    assert [[s.score for s in example] for example in found] == [[0.0], [0.25], [0.5], [0.75], [1.0]]
    assert with_score({}, ROWS[:1], world)[0][0].score == 1.0
    with pytest.raises(SpecError, match=r"scores must lie in \[0, 1\], but good of row 'q' is 7: scale them"):
        with_score({"score": "good"}, [Row(prompt="q", completion="a", doc={"good": 7})], world)
    with pytest.raises(SpecError, match=r"metadata\.score: .*godo.*good"):
        with_score({"score": "godo"}, rows, world)


def test_una_needs_scores_or_pairs():
    una = load("objectives", "una")()
    plain = TaskFacts(columns=("prompt", "completion"))
    assert "rejected" in una.skip(Situation(task=plain))
    assert una.skip(Situation(task=replace(plain, metadata=TaskMetadata(score="good")))) is None


def test_aot_needs_rows_to_sort(world):
    with pytest.raises(SpecError, match=r"sorts the rows of a batch, but batch_size is 1: raise it"):
        ready(world.llama, stage("full", "aot", learning_rate=1e-5, batch_size=1))


FUSED = {
    "cpo": [{"beta": 0.1, "imitation_weight": 1.0}, {"beta": 0.4, "imitation_weight": 0.0}, {"beta": 0.02}],
    "simpo": [{"sharpness": 2.0}, {"sharpness": 5.0, "target_margin": 0.2}, {"target_margin": 2.0}],
    "aot": [{"beta": 0.1}, {"beta": 0.4, "label_smoothing": 0.2}, {"beta": 0.02}],
    "una": [{"beta": 0.1}, {"beta": 0.4}, {"beta": 0.02}],
}


@pytest.mark.parametrize("objective", FUSED)
def test_together_is_alone(objective, world):
    stages = [
        stage("lora", objective, rank=rank, learning_rate=rate, **params)
        for rank, rate, params in zip((2, 8, 4), (1e-3, 5e-4, 2e-4), FUSED[objective], strict=True)
    ]

    def learners():
        return [ready(world.llama, one, 15, made_up(30 + n, n), seed=n) for n, one in enumerate(stages)]

    alone = [curve for one in learners() for curve in train(one)]
    together = train(*learners())
    assert all(abs(curve[0] - curve[-1]) > 1e-4 for curve in alone)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("objective", FUSED)
def test_a_trial_on_a_task_with_preferences(objective, tmp_path, world):
    trial = config(world, stage("lora", objective, learning_rate=5e-4), task="manners", steps=4)
    (result,) = run_pack([trial], Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    assert result.status is TrialStatus.COMPLETE, result.reason


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("dpo", {"loss_type": "exo_pair", "label_smoothing": 0.0}, "exo_pair must have a label_smoothing"),
        ("dpo", {"loss_type": "exo_pair", "label_smoothing": 0.1}, None),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.0}, None),
        ("dpo", {"loss_type": "sigmoid", "label_smoothing": 0.1}, "sigmoid does not know label_smoothing"),
        ("dpo", {}, None),
        ("aot", {"batch_size": 1}, "sorts the rows of a batch"),
        ("kto", {"batch_size": 1}, "mismatches the rows of a batch"),
        ("kto", {"batch_size": 2}, None),
    ],
)
def test_settings_that_do_nothing_or_cannot_work_are_refused_in_planning(name, params, said):
    reason = load("objectives", name)().skip(Situation(params=Params(params)))
    assert reason is None if said is None else said in reason

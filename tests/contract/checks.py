"""What holds of every method on every architecture that it does not refuse: one function each.

A method is attached and trained for two steps once per architecture; every check looks at that.
"""

import dataclasses
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.evaluation.loglikelihood import LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Request, RowPlan
from harness.methods.base import Method
from harness.models.base_model import load_model, resolve_model
from harness.models.facts import model_facts
from harness.training.alone import Alone
from tests.contract.counts_native import COUNTS as NATIVE
from tests.contract.counts_native import GIVEN
from tests.contract.counts_peft import COUNTS as PEFT
from tests.contract.sizes import SIZES
from tests.tiny import ROWS, attached, logits, stage, train

COUNTS = PEFT | NATIVE
EXACT = 2e-5
"""Logits of up to 10 in float32."""


@dataclasses.dataclass
class Trained:
    """A method after two steps on a model."""

    name: str
    family: str
    folder: Path
    learner: object
    base: dict
    """The base's parameters by name, as the method loads it."""
    bare: torch.Tensor
    """The base's logits."""
    start: torch.Tensor
    """Logits before the first step."""
    first: tuple[float, float]
    """Summed loss of the first pass, as the loop and as the model's own logits have it."""
    losses: list[float]
    trainable: set
    declared: set
    moved: set
    count: int
    reach: float
    """Share of the base's weights that can change."""

    @property
    def method(self):
        return self.learner.choices.method

    @property
    def model(self):
        return self.learner.model

    @property
    def params(self):
        return self.learner.choices.params


def own_loss(one):
    """Summed nats of the supervised tokens of the next step's first pass, from whole logits row by row."""
    total = 0.0
    for example in one.next_examples()[: one.batch[0]]:
        for sequence in example:
            with torch.no_grad():
                rows = one.model(input_ids=torch.tensor([sequence.input_ids])).logits[0].double().log_softmax(-1)
            pairs = list(enumerate(sequence.labels))[1:]
            total -= sum(float(rows[place - 1, label]) for place, label in pairs if label >= 0)
    return total


def ready(name, folder):
    """A method attached, with what it cannot do without."""
    tasks = {"low": ROWS, "high": [dataclasses.replace(row, completion=row.completion.upper()) for row in ROWS]}
    return attached(folder, stage(name, **GIVEN.get(name, {})), tasks=tasks)[0]


def build(name, family, folder):
    one = ready(name, folder)
    method, model = one.choices.method, one.model
    bare = load_model(resolve_model(str(folder)), method.load_options(one.choices.params, "cpu"), "cpu")
    start = logits(model)
    session = Alone(one)
    model.eval()
    first = (session.preview()[0], own_loss(one))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trainable = {key for key, value in model.named_parameters() if value.requires_grad}
    (losses,) = train(one)
    return Trained(
        name,
        family,
        folder,
        one,
        {key: value.detach().clone() for key, value in bare.named_parameters()},
        logits(bare),
        start,
        first,
        losses,
        trainable,
        {key for key in before if re.fullmatch(method.trains, key)},
        {key for key, value in model.named_parameters() if not torch.equal(value, before[key])},
        sum(value.numel() for key, value in before.items() if key in trainable),
        one.settings.reach,
    )


def identity_at_start_is_as_claimed(case):
    same = torch.allclose(case.start, case.bare, atol=EXACT)
    if case.method.identity_at_start or case.folder.name == "llama":  # RWKV's upper blocks hold almost nothing to lose
        assert same == case.method.identity_at_start


def two_steps_have_a_finite_loss_and_move_only_what_is_declared(case):
    assert len(case.losses) == 2
    assert all(0 < loss < 20 for loss in case.losses)
    assert case.trainable == case.declared
    assert case.moved
    assert case.moved <= case.declared


def the_loss_is_that_of_the_models_own_logits(case):
    loop, own = case.first
    assert loop == pytest.approx(own, rel=1e-5)


def as_many_numbers_are_trained_as_the_formula_says(case):
    assert case.count == COUNTS[case.name](SIZES[case.family], case.learner)


def adapters_off_is_the_base(case):
    if type(case.method).detached is Method.detached:
        with pytest.raises(NotImplementedError), case.method.detached(case.model):
            pass
        return
    with case.method.detached(case.model) as off:
        torch.testing.assert_close(logits(off), case.bare, atol=EXACT, rtol=0)
    assert {key for key, value in case.model.named_parameters() if value.requires_grad} == case.trainable


def a_shared_base_is_left_as_it_is(case):
    """By name, as PEFT wraps layers; a method that trains the base itself has no business sharing it."""
    now = {}
    for key, value in case.model.named_parameters():
        plain = key.replace("base_layer.", "")
        now |= {plain.removeprefix(prefix): value for prefix in ("base_model.model.", "base_model.", "")}
    kept = [key for key, value in case.base.items() if key in now and value.dtype.is_floating_point]
    same = all(torch.equal(now[key], case.base[key]) for key in kept)
    assert kept
    assert same or not case.method.shares_base


def a_row_depends_on_nothing_but_what_comes_before_in_it(case):
    """Neither on other rows nor on later tokens, or scores would depend on how a batch is put together."""
    ids = torch.arange(5, 45).reshape(2, 20)
    case.model.eval()
    with torch.no_grad():
        whole = case.model(input_ids=ids).logits
        alone, early = case.model(input_ids=ids[1:]).logits, case.model(input_ids=ids[:, :9]).logits
    torch.testing.assert_close(alone[0], whole[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(early, whole[:, :9], atol=1e-4, rtol=0)


def it_is_scored_as_its_logits_say(case):
    context, answers = (5, 9, 30, 31, 7), ((40, 41, 9), (12, 80))
    case.model.eval()
    with torch.no_grad():
        plan = RowPlan([Request(context, answer) for answer in answers], 60, 64)
        found = LikelihoodScorer().score(StackedModels(case.model), plan).values[0]
        wanted = []
        for answer in answers:
            ids = torch.tensor([[*context, *answer]])
            rows = case.model(input_ids=ids).logits[0].log_softmax(-1)
            wanted.append(sum(float(rows[len(context) + k - 1, token]) for k, token in enumerate(answer)))
    assert np.allclose(found, wanted, atol=1e-4)


def merged_is_unmerged_and_the_deltas_say_what_moved(case):
    method, model = case.method, case.model
    if not method.mergeable:
        assert not method.deltas(model)
        return
    wanted = logits(model)
    deltas = method.deltas(model)
    merged = method.merge(deepcopy(model) if type(method).merge is Method.merge else model, case.learner.setup)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=0)
    if not deltas:
        return
    base = case.base
    if "quantization_config" in case.method.load_options(
        case.params, "cpu"
    ):  # packed: the base is what is merged before the first step
        blank, _ = attached(case.folder, stage(case.name))
        base = dict(method.merge(blank.model, blank.setup).named_parameters())
    assert all(value.requires_grad for value in deltas.values())
    for key, value in merged.named_parameters():
        moved = value - base[key]
        torch.testing.assert_close(deltas.get(key, torch.zeros_like(moved)), moved, atol=1e-6, rtol=1e-4)


def the_same_seed_gives_the_same_bits(case):
    other = ready(case.name, case.folder)
    train(other)
    twins = dict(other.model.named_parameters())
    assert all(torch.equal(value, twins[key]) for key, value in case.model.named_parameters())


def the_reach_is_what_was_planned(case):
    """The headers cannot tell a router or the gate of a state space from a linear layer; those are small."""
    facts = model_facts(resolve_model(str(case.folder)))
    planned = case.method.reach(facts, case.params)
    assert planned is None or planned == pytest.approx(case.reach, abs=0.03)


def failures(case, every):
    for check in every:
        try:
            check(case)
        except Exception as error:
            yield f"on {case.family}, {check.__name__}: {type(error).__name__}: {error}"


EVERY = (
    identity_at_start_is_as_claimed,
    two_steps_have_a_finite_loss_and_move_only_what_is_declared,
    the_loss_is_that_of_the_models_own_logits,
    as_many_numbers_are_trained_as_the_formula_says,
    adapters_off_is_the_base,
    a_shared_base_is_left_as_it_is,
    a_row_depends_on_nothing_but_what_comes_before_in_it,
    it_is_scored_as_its_logits_say,
    merged_is_unmerged_and_the_deltas_say_what_moved,
)

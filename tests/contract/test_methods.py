"""Every method on a two-layer Llama, a GPT-2 (transposed layers, biases) and an RWKV: what moves, and what is kept.

A method is attached and trained for two steps once per model; all tests look at that.
"""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.axes.contract import Situation
from harness.evaluation.loglikelihood import Members, score
from harness.evaluation.prefix_tree import Ask, Plan
from harness.methods.base import Method
from harness.models.base_model import load_model, resolve_model
from harness.models.facts import model_facts
from harness.plugins import load, names
from harness.training.alone import Alone
from harness.trial.model_folder import TUNED, save_model
from tests.contract.counts_native import COUNTS as NATIVE
from tests.contract.counts_native import GIVEN
from tests.contract.counts_peft import COUNTS as PEFT
from tests.contract.sizes import SIZES
from tests.tiny import ROWS, attached, logits, save_tokenizer, stage, train

METHODS = [name for name in names("methods") if load("methods", name).needs_training]
CASES = [(name, family) for name in METHODS for family in SIZES]
COUNTS = PEFT | NATIVE
EXACT = 2e-5
"""Logits of up to 10 in float32."""


@pytest.fixture(scope="session")
def rwkv(tmp_path_factory, shared_data):
    """A real checkpoint, with the tiny tokenizer: its own has no token for padding."""
    folder = tmp_path_factory.mktemp("rwkv")
    for path in (shared_data / "checkpoints" / "tiny-rwkv4").iterdir():
        if path.name == "config.json" or path.suffix == ".safetensors":
            shutil.copyfile(path, folder / path.name)
    save_tokenizer(folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]  # of 258 tokens, and PEFT would make the model fit them
    written["model"]["vocab"] = {token: place for token, place in vocabulary.items() if place < 256}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    return folder


@dataclasses.dataclass
class Trained:
    """A method after two steps on a model."""

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
    tasks = {"low": ROWS, "high": [replace(row, completion=row.completion.upper()) for row in ROWS]}
    return attached(folder, stage(name, **GIVEN.get(name, {})), tasks=tasks)[0]


def build(name, folder):
    one = ready(name, folder)
    method, model = one.choices.method, one.model
    bare = load_model(resolve_model(str(folder)), method.load_options(dict(one.choices.params), "cpu"), "cpu")
    start = logits(model)
    session = Alone(one)
    model.eval()
    first = (session.preview()[0], own_loss(one))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trainable = {key for key, value in model.named_parameters() if value.requires_grad}
    (losses,) = train(one)
    return Trained(
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
    )


@pytest.fixture(scope="session")
def after(request, world):
    """Every case, built when it is first asked for; a reason to skip where the method refuses."""
    kept = {}

    def get(name, family):
        if (name, family) not in kept:
            folder = request.getfixturevalue("rwkv") if family == "rwkv" else getattr(world, family)
            facts = model_facts(resolve_model(str(folder)))
            reason = load("methods", name)().skip(Situation("cpu", facts))
            kept[name, family] = reason or build(name, folder)
        return kept[name, family]

    return get


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request, after):
    found = after(*request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def test_identity_at_start_is_as_claimed(case):
    same = torch.allclose(case.start, case.bare, atol=EXACT)
    if case.method.identity_at_start or case.folder.name == "llama":  # RWKV's upper blocks hold almost nothing to lose
        assert same == case.method.identity_at_start


def test_two_steps_have_a_finite_loss_and_move_only_what_is_declared(case):
    assert len(case.losses) == 2
    assert all(0 < loss < 20 for loss in case.losses)
    assert case.trainable == case.declared
    assert case.moved
    assert case.moved <= case.declared


def test_the_loss_is_that_of_the_models_own_logits(case):
    loop, own = case.first
    assert loop == pytest.approx(own, rel=1e-5)


def test_as_many_numbers_are_trained_as_the_formula_says(case, request):
    name, family = request.node.callspec.params["case"]
    assert case.count == COUNTS[name](SIZES[family], case.learner)


def test_every_method_has_a_formula():
    assert sorted(COUNTS) == sorted(METHODS)
    assert not set(PEFT) & set(NATIVE)


def test_adapters_off_is_the_base(case):
    if type(case.method).detached is Method.detached:
        with pytest.raises(NotImplementedError), case.method.detached(case.model):
            pass
        return
    with case.method.detached(case.model) as off:
        torch.testing.assert_close(logits(off), case.bare, atol=EXACT, rtol=0)
    assert {key for key, value in case.model.named_parameters() if value.requires_grad} == case.trainable


def test_a_shared_base_is_left_as_it_is(case):
    """By name, as PEFT wraps layers; a method that trains the base itself has no business sharing it."""
    now = {}
    for key, value in case.model.named_parameters():
        plain = key.replace("base_layer.", "")
        now |= {plain.removeprefix(prefix): value for prefix in ("base_model.model.", "base_model.", "")}
    kept = [key for key, value in case.base.items() if key in now and value.dtype.is_floating_point]
    same = all(torch.equal(now[key], case.base[key]) for key in kept)
    assert kept
    assert same or not case.method.shares_base


def test_a_row_depends_on_nothing_but_what_comes_before_in_it(case):
    """Neither on other rows nor on later tokens, or scores would depend on how a batch is put together."""
    ids = torch.arange(5, 45).reshape(2, 20)
    case.model.eval()
    with torch.no_grad():
        whole = case.model(input_ids=ids).logits
        alone, early = case.model(input_ids=ids[1:]).logits, case.model(input_ids=ids[:, :9]).logits
    torch.testing.assert_close(alone[0], whole[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(early, whole[:, :9], atol=1e-4, rtol=0)


def test_it_is_scored_as_its_logits_say(case):
    context, answers = (5, 9, 30, 31, 7), ((40, 41, 9), (12, 80))
    case.model.eval()
    with torch.no_grad():
        plan = Plan([Ask(context, answer) for answer in answers], 60, 64)
        found = score(Members(case.model), plan).values[0]
        wanted = []
        for answer in answers:
            ids = torch.tensor([[*context, *answer]])
            rows = case.model(input_ids=ids).logits[0].log_softmax(-1)
            wanted.append(sum(float(rows[len(context) + k - 1, token]) for k, token in enumerate(answer)))
    assert np.allclose(found, wanted, atol=1e-4)


def test_merged_is_unmerged_and_the_deltas_say_what_moved(case):
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
    if case.method.load_options(dict(case.params), "cpu"):  # packed: the base is what is merged before the first step
        blank, _ = attached(case.folder, stage(case.learner.choices.method.__module__.rpartition(".")[2]))
        base = dict(method.merge(blank.model, blank.setup).named_parameters())
    assert all(value.requires_grad for value in deltas.values())
    for key, value in merged.named_parameters():
        moved = value - base[key]
        torch.testing.assert_close(deltas.get(key, torch.zeros_like(moved)), moved, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bits(name, after):
    one = after(name, "llama")
    if isinstance(one, str):
        one = after(name, "gpt2")
    if isinstance(one, str):
        pytest.skip(one)
    other = ready(name, one.folder)
    train(other)
    twins = dict(other.model.named_parameters())
    assert all(torch.equal(value, twins[key]) for key, value in one.model.named_parameters())


@pytest.fixture(scope="session")
def reloaded(request, after, tmp_path_factory):
    """Logits of all saved models of this run, loaded in one new process; and how each was loaded."""
    root = tmp_path_factory.mktemp("saved")
    folders = {"whole": {}, "adapter": {}, "native": {}}
    wanted = "test_what_is_saved_gives_the_same_logits_in_a_new_process"
    chosen = [item.callspec.params["case"] for item in request.session.items if item.name.startswith(wanted)]
    for name, family in chosen:
        found = after(name, family)
        if isinstance(found, str):
            continue
        plain = root / f"{name}-{family}"
        save_model(plain, found.learner, resolve_model(str(found.folder)))
        quantised = found.method.load_options(dict(found.params), "cpu")
        adapter = "adapter" if (plain / "adapter_config.json").exists() and not quantised else "native"
        folders["whole" if found.method.mergeable else adapter][plain.name] = str(plain)
    (root / "request.json").write_text(json.dumps(folders))
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.reload", str(root / "request.json")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    return load_file(root / "request.safetensors"), folders


def test_what_is_saved_gives_the_same_logits_in_a_new_process(case, reloaded, request):
    """A merged model through transformers alone, an adapter through PEFT, anything else through `load_tuned`."""
    found, folders = reloaded
    name = "-".join(request.node.callspec.params["case"])
    torch.testing.assert_close(found[name], logits(case.model), atol=1e-4, rtol=0)
    assert (name in folders["whole"]) == case.method.mergeable
    assert (Path(folders["native"][name]) / TUNED).exists() if name in folders["native"] else True


def test_rates_are_searched_over_at_least_two_decades():
    for name in METHODS:
        rate = load("methods", name).space["learning_rate"]
        assert math.log10(rate.high / rate.low) >= 2, name

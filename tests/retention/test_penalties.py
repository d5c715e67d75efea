"""Retention by penalties: closed forms, numbers by hand, what is refused, and whole trials."""

import math

import pytest
import torch

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.plugins import load, names
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.retention._corpus import corpus_tokens, diagonal_fisher, path_importance
from harness.retention.hierarchical import layered
from harness.retention.kl_to_base import divergence
from harness.tasks.metadata import TaskMetadata
from harness.tasks.training_rows import Row
from harness.training.alone import Alone
from harness.trial.group import Workspace, run_trial
from harness.trial.packs import alone_because
from tests.tiny import attached, config, stage, train, trained
from tests.training.pairs import made_up, shaken

CORPUS = [Row(completion=f"old {number} text" + "s" * number) for number in range(12)]
PENALTIES = ("l2_sp", "ewc", "hierarchical", "kl_to_base")
QUICK = {"ewc": {"ewc_rows": 4}, "hierarchical": {"importance_steps": 3}}


def ready(folder, method="full", retention="l2_sp", **params):
    one, _ = attached(folder, stage(method, retention=retention, **params), 3, corpus=CORPUS)
    return one


def moved(one, folder):
    """How far the merged model's weights are from the base's."""
    base = dict(load_model(resolve_model(str(folder)), {}, "cpu").named_parameters())
    return {name: value.detach() - base[name].detach() for name, value in one.plain().named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_l2_sp_is_half_the_pull_times_the_squared_distance(method, family, world):
    """Measured from the base, also where the weights have moved before the session starts, as in a continuation."""
    folder = getattr(world, family)
    one = shaken(ready(folder, method, pull=3.0))
    wanted = 1.5 * sum(float(move.double().square().sum()) for move in moved(one, folder).values())
    assert Alone(one).penalty().item() == pytest.approx(wanted, rel=1e-4)


def test_a_methods_own_term_and_retentions_are_added(world):
    """Diff pruning's is the expected number of open gates: a sigmoid of each logit, as its stretch is symmetric."""
    one = shaken(ready(world.llama, "diff_pruning", pull=3.0, l0_penalty=1e-3))
    distance = sum(float(move.double().square().sum()) for move in moved(one, world.llama).values())
    gates = [p for name, p in one.model.named_parameters() if name.endswith((".logits", ".logit"))]
    wanted = 1.5 * distance + 1e-3 * sum(float(p.detach().double().sigmoid().sum()) for p in gates)
    assert distance > 0.1
    assert Alone(one).penalty().item() == pytest.approx(wanted, rel=1e-4)


class Logistic(torch.nn.Module):
    """Says token 1 after token t with the probability of a sigmoid of w[t]."""

    def __init__(self, weights):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(weights))

    def forward(self, input_ids, use_cache):
        second = self.w[input_ids]
        return type("Output", (), {"logits": torch.stack([torch.zeros_like(second), second], -1)})


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_the_empirical_fisher_of_a_logistic_model():
    """The gradient of a label y after t is y - p(t); texts 0 1, 0 0, and 1 1 0, whose gradients at 1 add up first."""
    model = Logistic([0.5, -1.0])
    p = [sigmoid(0.5), sigmoid(-1.0)]
    found = diagonal_fisher(model, ["w"], [[0, 1], [0, 0], [1, 1, 0]], None)["w"]
    wanted = [((1 - p[0]) ** 2 + p[0] ** 2) / 4, ((1 - p[1]) - p[1]) ** 2 / 4]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_the_sampled_fisher_of_a_logistic_model():
    """In closed form p (1 - p), times the share of tokens after t; 4000 draws of a variance below 1/4 each."""
    model, texts = Logistic([0.5, -1.0]), [[0, 0, 1, 1, 0]] * 2000
    found = diagonal_fisher(model, ["w"], texts, seed=1)["w"]
    wanted = torch.tensor([sigmoid(w) * (1 - sigmoid(w)) / 2 for w in (0.5, -1.0)])
    torch.testing.assert_close(found, wanted, rtol=0.08, atol=0)


def test_ewc_weighs_squared_distances_by_the_fisher_information(world):
    """The gradients of one row's summed log-likelihood, from the model's own loss."""
    one = shaken(ready(world.llama, retention="ewc", ewc_strength=5.0, ewc_rows=1, ewc_labels="empirical"))
    (text,) = corpus_tokens(one.setup, 1)
    base = load_model(resolve_model(str(world.llama)), {}, "cpu").eval()
    ids = torch.tensor([text])
    base(input_ids=ids, labels=ids).loss.mul(len(text) - 1).backward()
    fisher = {name: value.grad.double() ** 2 / (len(text) - 1) for name, value in base.named_parameters()}
    wanted = 2.5 * sum(float((fisher[name] * move**2).sum()) for name, move in moved(one, world.llama).items())
    assert wanted > 0.01
    assert Alone(one).penalty().item() == pytest.approx(wanted, rel=1e-3)


def test_the_path_integral_is_the_drop_in_loss(world):
    """Summed over weights, minus gradient times movement is how far the loss fell, for small steps."""
    model = load_model(resolve_model(str(world.llama)), {}, "cpu").eval()
    (text,) = corpus_tokens(ready(world.llama).setup, 1)
    ids, names = torch.tensor([text]), [name for name, _ in model.named_parameters()]
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    before = model(input_ids=ids, labels=ids).loss.item()
    found = path_importance(model, names, [text], steps=20, rate=1e-5)
    dropped = before - model(input_ids=ids, labels=ids).loss.item()
    gained = sum(
        float((found[name] * ((value.detach() - start[name]) ** 2 + (20 * 1e-5) ** 2)).sum())
        for name, value in model.named_parameters()
    )
    assert dropped > 1e-3
    assert gained == pytest.approx(dropped, rel=0.05)


def test_layers_share_out_by_a_softmax_of_their_norms():
    """The mean importance is 2: scaled, layer 0 has (1.5, 2) with norm 2.5, the rest (0.3, 0.4) and (0.3, 0.8, ...)."""
    found = layered({"h.0.w": torch.tensor([3.0, 4.0]), "out": torch.tensor([0.6, 0.4])}, temperature=0.5)
    # over their mean of 2: norms 2.5 and sqrt(0.3**2 + 0.2**2)
    norms = [math.sqrt(0.13), 2.5]
    weights = [math.exp(norm / (0.5 * sum(norms) / 2)) for norm in norms]
    outside, inside = (2 * weight / sum(weights) for weight in weights)
    torch.testing.assert_close(found["h.0.w"], inside * torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(found["out"], outside * torch.tensor([0.3, 0.2]))


def test_divergence_by_hand():
    base, own = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    forward = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    reverse = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert divergence(base, own, "forward").item() == pytest.approx(forward, abs=1e-6)
    assert divergence(base, own, "reverse").item() == pytest.approx(reverse, abs=1e-6)


@pytest.mark.parametrize("method", ["full", "lora", "pissa", "prefix_tuning"])
def test_kl_to_base_is_that_of_every_row_by_itself(method, world):
    """Nothing at the start, unless virtual tokens take attention; later that of the rows one by one, unpadded."""
    one = ready(world.llama, method, "kl_to_base", kl_strength=2.0, kl_rows=12)
    at_start = Alone(one).penalty().item()
    assert (at_start == pytest.approx(0, abs=1e-6)) == (method != "prefix_tuning")
    shaken(one)
    base, total, tokens = load_model(resolve_model(str(world.llama)), {}, "cpu").eval(), 0.0, 0
    one.model.eval()
    for text in corpus_tokens(one.setup, 12):
        ids = torch.tensor([text])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, -len(text) : -1].log_softmax(-1) for m in (base, one.model))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(text) - 1
    assert total > 0.01
    assert Alone(one).penalty().item() == pytest.approx(2 * total / tokens, rel=1e-3)


def test_every_step_has_rows_of_its_own_and_a_continuation_the_same(world):
    def at(step):
        one = shaken(ready(world.llama, "full", "kl_to_base", kl_rows=2))
        session = Alone(one)
        one.choices.retention.before_step(step)
        return session.penalty().item()

    assert at(2) == at(2) != at(1)


@pytest.mark.parametrize("retention", PENALTIES)
def test_a_strong_penalty_keeps_weights_or_predictions_nearer(retention, world):
    strong = {"l2_sp": {"pull": 100.0}, "ewc": {"ewc_strength": 1e6}, "hierarchical": {"hierarchy_strength": 1e3}}
    strength = strong.get(retention, {"kl_strength": 100.0}) | QUICK.get(retention, {})
    params = {"learning_rate": 3e-3, "schedule": "constant", "warmup_share": 0.0}

    def drift(kind, **more):
        one = trained(world.llama, stage("full", retention=kind, **params, **more), 8, corpus=CORPUS)
        base = load_model(resolve_model(str(world.llama)), {}, "cpu").eval()
        total = 0.0
        for text in corpus_tokens(one.setup, 12):
            ids = torch.tensor([text])
            with torch.no_grad():
                p, q = (m.eval()(input_ids=ids).logits[0].log_softmax(-1) for m in (base, one.model))
            total += float((p.exp() * (p - q)).sum(-1).mean())
        return total

    assert drift(retention, **strength) < 0.8 * drift("none")


SAMPLED = {"generations": 2, "completion_tokens": 4}


@pytest.mark.parametrize("objective", [n for n in names("objectives") if not load("objectives", n).fuses])
def test_a_trainer_of_an_objectives_own_adds_the_term_once_per_step(objective, world):
    """Five times the sum of the embeddings adds 5 to each one's slope, in two passes too, and nothing to the loss told."""
    rows, base = made_up(8), resolve_model(str(world.gpt2))
    own = {"distillation": {"teacher": "gpt2"}, "grpo": SAMPLED, "rloo": SAMPLED}.get(objective, {})

    def stepped(strength):
        made = stage("full", objective, learning_rate=1e-4, gradient_accumulation=2, max_grad_norm=0.0, **own)
        more = {"task_metadata": TaskMetadata(reward=lambda doc, answer: len(answer))}
        more["model_of"] = lambda name: (load_model(base, {}, "cpu"), load_tokenizer(base))
        one, _ = attached(world.llama, made, 1, rows, **more)
        embeddings, slopes = one.model.get_input_embeddings().weight, []
        one.choices.retention.penalty = lambda *given: lambda: strength * embeddings.sum()
        one.choices.method.before_update = lambda model, step: slopes.append(embeddings.grad.clone())
        train(one)
        return *slopes, one.losses.mean

    (free, loss), (held, same) = stepped(0.0), stepped(5.0)
    torch.testing.assert_close(held - free, torch.full_like(free, 5.0), atol=1e-4, rtol=0)
    assert same == pytest.approx(loss, abs=1e-6)


def test_what_moves_no_weight_is_refused(world):
    prefix, lora, full, none = (load("methods", name) for name in ("prefix_tuning", "lora", "full", "none"))
    l2_sp = load("retention", "l2_sp")()
    for method in (prefix, load("methods", "kasa"), load("methods", "ir_qlora")):
        assert "does not say how far" in l2_sp.skip(Situation(beside={"method": method}))
    assert "trains none" in l2_sp.skip(Situation(beside={"method": none}))
    assert [l2_sp.skip(Situation(beside={"method": m})) for m in (lora, full)] == [None, None]
    assert l2_sp.skip(Situation()) is None
    with pytest.raises(
        SpecError, match="must know how far weights of the base move, but PrefixTuning does not say: use"
    ):
        Alone(ready(world.llama, "prefix_tuning"))


def test_a_corpus_without_texts_is_refused(world):
    one, _ = attached(world.llama, stage("full", retention="ewc"), 3, corpus=[Row(completion="")] * 2)
    one.setup.tokenizer.eos_token = None
    with pytest.raises(SpecError, match="needs texts of what the base knows, but its corpus has none: name another"):
        Alone(one)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("retention", PENALTIES)
def test_a_trial(retention, method, tmp_path, world):
    trial = config(world, stage(method, retention=retention, **QUICK.get(retention, {})), steps=3)
    assert "adds a term to the loss" in alone_because(trial)
    place = Workspace(Paths(tmp_path), (world.tasks,), device="cpu", corpora={str(world.llama): "text"})
    result = run_trial(trial, place)
    assert result.status is TrialStatus.COMPLETE, result.reason


def test_switching_the_method_off_leaves_the_steps_gradients_alone(world):
    """PiSSA is switched off by putting its first factors back in place."""
    one = trained(world.llama, stage("pissa", retention="kl_to_base"), 2, corpus=CORPUS)
    assert one.failure is None

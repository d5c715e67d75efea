"""X-LoRA: each expert learns its task, and the router weighs them by what the base says, however the model is called."""

import pytest
import torch

from harness.axes.contract import Situation
from harness.evaluation.loglikelihood import LikelihoodScorer, StackedModels
from harness.evaluation.prefix_tree import Request, RowPlan
from harness.methods._experts import Router
from harness.models.base_model import load_model, resolve_model
from harness.models.facts import ModelFacts
from harness.plugins import load
from harness.space import Params
from harness.tasks.training_rows import Row
from harness.training.alone import Alone
from harness.trial.model_folder import load_tuned, save_model
from tests.tiny import attached, logits, stage, train

TASKS = {
    "vowels": [Row(prompt=f"{i}:", completion=" aeiou") for i in range(8)],
    "digits@3f": [Row(prompt=f"{i}:", completion=" 12345") for i in range(8)],
}
PARAMS = {"expert_tasks": "vowels, digits@3f", "source_steps": 60, "source_learning_rate": 1e-2, "alpha": 16.0}
ROWS = [Row(prompt=f"{number} and a long text before what is asked:", completion=" x") for number in range(8)]


def ready(folder, rows=ROWS, **params):
    return attached(folder, stage("x_lora", **PARAMS | params), rows=rows, tasks=TASKS)


@pytest.fixture(params=["llama", "gpt2"])
def mixed(request, world):
    """Experts that do much, and a router that tells tokens apart."""
    one, notes = ready(getattr(world, request.param))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        router(one.model).head.weight.normal_(std=1.0, generator=generator)
    one.model.eval()
    return one, notes, getattr(world, request.param)


def router(model):
    return model.base_model.router


def experts(model):
    return {name.removesuffix(".adapter"): m for name, m in model.named_modules() if type(m).__name__ == "Experts"}


def with_expert(model, folder, index):
    """The base with an expert merged into its weights: alpha 16 of rank 8 is times 2."""
    base = load_model(resolve_model(str(folder)), {}, "cpu")
    with torch.no_grad():
        for name, mixture in experts(model).items():
            own, weight = mixture.sources[index], base.get_submodule(name).weight
            change = 2 * own.up.weight @ own.down.weight
            weight += change.T if type(base.get_submodule(name)).__name__ == "Conv1D" else change
    return base


def test_a_router_that_is_sure_leaves_one_expert_alone(mixed):
    one, _, folder = mixed
    for index in range(2):
        with torch.no_grad():
            router(one.model).head.weight.zero_()
            router(one.model).head.bias.copy_(torch.tensor([1.0, -1.0]).repeat(len(experts(one.model))))
            router(one.model).head.bias.mul_(100 * (1 - 2 * index))
        wanted = logits(with_expert(one.model, folder, index))
        torch.testing.assert_close(logits(one.model), wanted, atol=1e-4, rtol=0)
    assert (logits(with_expert(one.model, folder, 0)) - wanted).abs().max() > 0.1


def test_weights_follow_from_the_last_hidden_states_of_the_base(mixed):
    one, _, folder = mixed
    ids = torch.arange(5, 45).reshape(2, 20)
    base = load_model(resolve_model(str(folder)), {}, "cpu").eval()
    with torch.no_grad():
        hidden = base(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        one.model(input_ids=ids)
    head = router(one.model).head
    scores = (hidden @ head.weight.T + head.bias).detach()
    for layer, mixture in enumerate(experts(one.model).values()):
        wanted = scores[..., 2 * layer : 2 * layer + 2].softmax(-1)
        torch.testing.assert_close(mixture.weights.detach(), wanted, atol=1e-5, rtol=0)
        assert wanted[..., 0].std() > 0.1


def test_the_temperature_divides_the_routers_scores():
    """Two layers of three experts at a temperature of 1/2."""
    made, hidden = Router(4, 2, 3, 0.5), torch.randn(2, 5, 4)
    scores = hidden @ made.head.weight.T + made.head.bias
    wanted = torch.stack([(2 * scores[..., :3]).softmax(-1), (2 * scores[..., 3:]).softmax(-1)])
    torch.testing.assert_close(made(hidden), wanted)


def test_each_expert_learns_its_own_task(mixed):
    one, notes, folder = mixed
    nats = []
    for model in (with_expert(one.model, folder, 0), with_expert(one.model, folder, 1)):
        nats.append([])
        for text in (" aeiou", " 12345"):
            ids = torch.tensor([one.setup.tokenizer("3:" + text)["input_ids"]])
            labels = ids.clone()
            labels[:, :2] = -100
            nats[-1].append(float(model(input_ids=ids, labels=labels).loss.detach()))
    assert nats[0][0] < nats[1][0] - 0.5
    assert nats[1][1] < nats[0][1] - 0.5
    assert [note.partition(" ended")[0] for note in notes] == ["the adapter of vowels", "the adapter of digits"]


@pytest.mark.parametrize("beams", [1, 3])
def test_text_is_generated_alike_with_and_without_a_cache(mixed, beams):
    """Rows of a batch change places among beams, and so must what the router has read of them."""
    one, _, _ = mixed
    ids = torch.tensor([[5, 9, 30, 31, 7], [80, 12, 44, 45, 46]])
    cached, plain = (
        one.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            num_beams=beams,
            eos_token_id=None,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_a_cache_continues_what_the_router_has_read(mixed):
    from transformers import DynamicCache

    one, _, _ = mixed
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        whole, cache = one.model(input_ids=ids).logits, DynamicCache()
        parts = [one.model(input_ids=part, past_key_values=cache).logits for part in ids.split([7, 1, 12], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)
        with one.choices.method.detached(one.model) as bare:
            filled = bare(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="start empty"):
            one.model(input_ids=ids[:, :1], past_key_values=filled)


def test_nothing_that_the_router_reads_is_cut_short(mixed):
    """Losses of few positions, and scores of a kind of model that is known to take shortcuts."""
    one, _, folder = mixed
    found, _ = Alone(one).preview(), one.model.eval()
    total = 0.0
    for (sequence,) in one.next_examples()[: one.batch[0]]:
        with torch.no_grad():
            rows = one.model(input_ids=torch.tensor([sequence.input_ids])).logits[0].log_softmax(-1)
        total -= sum(float(rows[k - 1, label]) for k, label in enumerate(sequence.labels) if k and label >= 0)
    assert found[0] == pytest.approx(total, rel=1e-5)
    assert not one.spare_memory()  # what is computed again is read when other weights stand
    context, answers = (5, 9, 30, 31, 7), ((40, 41, 9), (12, 80))
    plan = RowPlan([Request(context, answer) for answer in answers], 60, 64)
    with torch.no_grad():
        LikelihoodScorer().score(StackedModels(load_model(resolve_model(str(folder)), {}, "cpu").eval()), plan)
        values = LikelihoodScorer().score(StackedModels(one.model), plan).values[0]
        for value, answer in zip(values, answers, strict=True):
            rows = one.model(input_ids=torch.tensor([[*context, *answer]])).logits[0].log_softmax(-1)
            wanted = sum(float(rows[len(context) + k - 1, token]) for k, token in enumerate(answer))
            assert value == pytest.approx(wanted, abs=1e-4)


def test_the_stage_trains_the_router_alone_and_is_loaded_again(world, tmp_path):
    one, _ = ready(world.llama, source_steps=5, learning_rate=1e-2)
    before = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    train(one)
    moved = {name for name, value in one.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"model.router.head.weight", "model.router.head.bias"}
    save_model(tmp_path, one, resolve_model(str(world.llama)))
    tuned = load_tuned(tmp_path)
    assert not any(module.training for module in tuned.modules())
    torch.testing.assert_close(logits(tuned), logits(one.model), atol=1e-6, rtol=0)


def test_what_cannot_work_is_refused():
    method = load("methods", "x_lora")()
    for text in ("", "trec", "trec, trec"):
        assert "two tasks or more" in method.skip(
            Situation(model=ModelFacts(model_type="llama"), params=Params({"expert_tasks": text}))
        )
    assert "no attention" in method.skip(Situation(model=ModelFacts(model_type="rwkv", heads=0)))
    assert method.skip(Situation(model=ModelFacts(model_type="llama"), params=Params({"expert_tasks": "a, b"}))) is None

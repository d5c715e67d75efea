"""Curations that take the loss off tokens, against scores computed another way: by the models' own loss, token by token."""

import math

import pytest
import torch

from harness.axes.contract import Situation
from harness.nn.sequences import IGNORED
from harness.plugins import load
from harness.tasks.training_rows import Row
from tests.tiny import WORDS, attached, stage, train

LONG = [Row(prompt=f"{i} {word}:", completion=f" {word[::-1]} {word} {i * 37}") for i, word in enumerate(WORDS * 3)]


def shaken(model, seed=5, scale=0.3):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale * parameter.abs().mean())
    return model


def own_losses(model, examples):
    """Nats of every labelled token, by (example, position): one forward pass for each, with transformers' own loss."""
    found = {}
    for row, (sequence,) in enumerate(examples):
        ids = torch.tensor([sequence.input_ids])
        for place in range(1, len(sequence.labels)):
            if sequence.labels[place] != IGNORED:
                labels = torch.full_like(ids, IGNORED)
                labels[0, place] = ids[0, place]
                with torch.no_grad():
                    found[row, place] = model(input_ids=ids, labels=labels).loss.item()
    return found


def labelled(examples):
    return {
        (row, place)
        for row, (sequence,) in enumerate(examples)
        for place, label in enumerate(sequence.labels)
        if label != IGNORED and place
    }


def by_ids(examples):
    return {sequence.input_ids: sequence.labels for (sequence,) in examples}


def test_cleaning_keeps_the_tokens_whose_loss_fell_most(setup_for, examples_of):
    """`round(ratio n)` of all n answer tokens, by base loss less reference loss, ranked over all rows together."""
    curation, setup, notes = setup_for("token_cleaning", token_keep_ratio=0.4, cleaning_reference="other@1=1")
    reference = shaken(setup.load_base())
    setup = setup_with(setup, model_of=lambda name: (reference, setup.tokenizer))
    examples = examples_of(setup, LONG)
    base, other = own_losses(setup.load_base(), examples), own_losses(reference, examples)
    gains = {key: base[key] - other[key] for key in base}
    count = round(0.4 * len(gains))
    wanted = set(sorted(gains, key=gains.get, reverse=True)[:count])
    kept = by_ids(curation.tokens(examples, setup))
    found = {
        (row, place)
        for row, (sequence,) in enumerate(examples)
        for place, label in enumerate(kept.get(sequence.input_ids, ()))
        if label != IGNORED
    }
    assert found == wanted
    assert f"kept {count} of {len(gains)} tokens" in notes[-1]
    rows = {row for row, _ in wanted}
    assert len(kept) == len(rows)  # a row without any is left out
    shares = [sum(key[0] == row for key in wanted) for row in rows]
    assert len(set(shares)) > 1  # not the same number from every row


def setup_with(setup, **hooks):
    import dataclasses

    return dataclasses.replace(setup, **hooks)


def test_a_reference_of_its_own_is_trained_on_the_first_rows_which_stay_whole(setup_for, examples_of):
    curation, setup, notes = setup_for("token_cleaning", token_keep_ratio=0.5, cleaning_warmup=0.25, cleaning_rate=1e-3)
    examples = examples_of(setup, LONG)
    kept = curation.tokens(examples, setup)
    first = round(0.25 * len(examples))
    assert kept[:first] == examples[:first]
    rest = labelled(examples[first:])
    assert len(labelled(kept[first:])) == round(0.5 * len(rest))
    assert f"of {len(rest)} tokens of {len(examples) - first} rows" in notes[-1]
    assert kept == curation.tokens(examples, setup)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_later_part_is_judged_by_the_reference_as_it_is_then(setup_for, examples_of, rounds):
    """Two parts of twelve rows: the reference is trained once, between them, so it ends as it judged the second."""
    curation, setup, _ = setup_for(
        "token_cleaning", cleaning_rounds=rounds, token_keep_ratio=0.5, cleaning_reference="o@1=1", cleaning_rate=1e-2
    )
    reference = shaken(setup.load_base())
    before = [value.detach().clone() for value in reference.parameters()]
    setup = setup_with(setup, model_of=lambda name: (reference, setup.tokenizer))
    examples = examples_of(setup, LONG)
    kept = by_ids(curation.tokens(examples, setup))
    moved = any(not torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert moved == (rounds == 2)
    last = examples[12:] if rounds == 2 else examples
    base, other = own_losses(setup.load_base(), last), own_losses(reference, last)
    best = sorted(base, key=lambda key: other[key] - base[key])[: round(0.5 * len(base))]
    found = {
        (row, place)
        for row, (sequence,) in enumerate(last)
        for place, label in enumerate(kept.get(sequence.input_ids, ()))
        if label != IGNORED
    }
    assert found == set(best)


def test_another_tokenizer_is_refused(setup_for, examples_of):
    from tests.evaluation.conftest import make_model, make_tokenizer

    curation, setup, _ = setup_for("token_cleaning", cleaning_reference="other@1=1")
    setup = setup_with(setup, model_of=lambda name: (make_model(), make_tokenizer(bos=True)))
    with pytest.raises(Exception, match="must have the base's tokenizer, but has another"):
        curation.tokens(examples_of(setup), setup)


def test_masking_keeps_exactly_the_tokens_below_the_threshold(setup_for, examples_of):
    _, setup, _ = setup_for("as_is")
    examples = examples_of(setup, LONG)
    losses = own_losses(setup.load_base(), examples)
    threshold = math.exp(sorted(losses.values())[len(losses) // 3])
    curation, setup, notes = setup_for("perplexity_mask", token_perplexity=threshold * (1 + 1e-4))
    kept = by_ids(curation.tokens(examples, setup))
    wanted = {key for key, nats in losses.items() if math.exp(nats) <= threshold * (1 + 1e-4)}
    found = {
        (row, place)
        for row, (sequence,) in enumerate(examples)
        for place, label in enumerate(kept.get(sequence.input_ids, ()))
        if label != IGNORED
    }
    assert found == wanted
    assert f"kept {len(wanted)} of {len(losses)} tokens" in notes[-1]


def test_likelihoods_are_kept_for_the_next_trial_of_the_same_base(setup_for, examples_of, tmp_path):
    curation, setup, _ = setup_for("perplexity_mask", token_perplexity=400.0)
    loads = []

    def load_base():
        loads.append(1)
        return plain()

    plain = setup.load_base
    kept = setup_with(setup, cache=tmp_path, base="tiny@1", load_base=load_base)
    examples = examples_of(setup, LONG)
    first, again = curation.tokens(examples, kept), curation.tokens(examples, kept)
    assert first == again == curation.tokens(examples, setup)
    assert len(loads) == 1
    curation.tokens(examples, setup_with(kept, base="tiny@2"))  # other weights
    curation.tokens(examples[:-1], kept)  # other texts
    assert len(loads) == 3


def test_the_first_tokens_by_hand(setup_for, examples_of):
    """' kcalb' has six bytes: the prompt '3 black:' stays, then the space, 'k' and 'c'; the end token is cut off."""
    curation, setup, notes = setup_for("first_tokens", prefix_tokens=3, whole_answers=0.0)
    examples = examples_of(setup)
    (cut,) = curation.tokens(examples, setup)[3]
    assert setup.tokenizer.decode(cut.input_ids) == "3 black: kc"
    assert [label != IGNORED for label in cut.labels] == [False] * 8 + [True] * 3
    assert cut.prompt == 8
    assert notes[-1] == "8 of 8 answers were cut to their first 3 tokens"


def test_some_answers_stay_whole(setup_for, examples_of):
    curation, setup, notes = setup_for("first_tokens", prefix_tokens=1, whole_answers=0.25)
    examples = examples_of(setup)
    found = curation.tokens(examples, setup)
    assert sum(new == old for new, old in zip(found, examples, strict=True)) == 2
    assert notes[-1].startswith("6 of 8 answers")


@pytest.mark.parametrize("name", ["token_cleaning", "perplexity_mask", "first_tokens"])
def test_it_trains_on_less(world, name):
    """End to end through the loop: fewer supervised tokens are counted than without it."""
    settings = {"first_tokens": {"prefix_tokens": 1}, "perplexity_mask": {"token_perplexity": 258.0}}.get(name, {})
    one, _ = attached(world.llama, stage(curation=name, **settings), rows=LONG)
    plain, _ = attached(world.llama, stage(), rows=LONG)
    (losses,), _ = train(one), train(plain)
    assert all(math.isfinite(loss) for loss in losses)
    assert 0 < one.watch.tally.supervised_tokens < plain.watch.tally.supervised_tokens


@pytest.mark.parametrize("name", ["token_cleaning", "perplexity_mask", "first_tokens"])
def test_it_refuses_objectives_without_a_loss_on_tokens(name):
    beside = {"objective": load("objectives", "dpo")}
    assert "no loss on single tokens" in load("curation", name)().skip(Situation(beside=beside))
    assert load("curation", name)().skip(Situation(beside={"objective": load("objectives", "sft")})) is None
    assert load("curation", name)().skip(Situation()) is None


def test_first_tokens_refuses_packed_rows():
    beside = {"objective": load("objectives", "continued_pretraining")}
    assert "joins rows" in load("curation", "first_tokens")().skip(Situation(beside=beside))
    assert load("curation", "perplexity_mask")().skip(Situation(beside=beside)) is None


def test_the_inner_training_is_a_step_of_adamw_on_the_labelled_tokens(setup_for, examples_of, monkeypatch):
    """One step on all rows, whole or piece by piece: what torch's AdamW makes of transformers' own loss."""
    from harness.curation import _likelihoods

    _, setup, _ = setup_for("as_is")
    sequences = [sequence for (sequence,) in examples_of(setup)]
    base = setup.load_base().requires_grad_(True)
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-3, weight_decay=0.0)
    tokens = sum(label != IGNORED for s in sequences for label in s.labels[1:])
    for s in sequences:
        loss = base(input_ids=torch.tensor([s.input_ids]), labels=torch.tensor([s.labels])).loss
        (loss * sum(label != IGNORED for label in s.labels[1:]) / tokens).backward()
    torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
    optimizer.step()
    for logits in (_likelihoods.LOGITS, 1):
        monkeypatch.setattr(_likelihoods, "LOGITS", logits)
        model = setup.load_base()
        _likelihoods.train_briefly(model, sequences, 1e-3, seed=3)
        for mine, theirs in zip(model.parameters(), base.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)

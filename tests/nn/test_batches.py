"""Which examples make up a step, how they become tensors, and that how they are put together changes no loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.nn.batches import collate, cuts, step_order
from harness.nn.logits import supervised_nats
from harness.nn.sequences import IGNORED, TokenSequence
from harness.tasks.training_rows import Row
from tests.tiny import attached, stage

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=60).map(tuple)
STEPS, PER_STEP, SEED = st.integers(1, 180), st.integers(1, 8), st.integers(0, 2**63 - 1)


@given(LENGTHS, PER_STEP, STEPS, SEED)
def test_every_step_has_its_number_of_examples_longest_first(lengths, per_step, steps, seed):
    order = step_order(lengths, per_step, steps, seed)
    assert order.shape == (steps, per_step)
    assert order.min() >= 0
    assert order.max() < len(lengths)
    sizes = np.asarray(lengths)[order]
    assert (np.diff(sizes, axis=1) <= 0).all()


@given(LENGTHS, PER_STEP, STEPS, SEED)
def test_it_is_a_function_of_lengths_numbers_and_seed_alone(lengths, per_step, steps, seed):
    first = step_order(lengths, per_step, steps, seed).copy()
    np.random.seed(1)
    step_order.cache_clear()
    assert np.array_equal(step_order(lengths, per_step, steps, seed), first)


@given(LENGTHS, PER_STEP, STEPS, SEED)
def test_every_row_is_shown_once_in_each_pass(lengths, per_step, steps, seed):
    """After any number of steps at which a pass ends, each was shown as often as any other."""
    order = step_order(lengths, per_step, steps, seed)
    for step in range(1, steps + 1):
        passes, rest = divmod(step * per_step, len(lengths))
        if rest == 0:
            shown = np.bincount(order[:step].ravel(), minlength=len(lengths))
            assert shown.tolist() == [passes] * len(lengths)
    shown = np.bincount(order.ravel(), minlength=len(lengths))
    assert shown.max() - shown.min() <= 1


@given(LENGTHS, PER_STEP, STEPS, SEED)
def test_no_step_holds_a_row_twice_unless_a_pass_ends_in_it(lengths, per_step, steps, seed):
    if len(lengths) % per_step == 0:
        order = step_order(lengths, per_step, steps, seed)
        assert all(len(set(step)) == per_step for step in order.tolist())


def random_members(count, rows, sequences=1):
    """Trials with rows of 10 to 59 tokens, longest first."""
    rng = np.random.default_rng(0)
    lengths = -np.sort(-rng.integers(10, 60, (count, rows)), axis=1)
    return [[(TokenSequence((5,) * n, (5,) * n),) * sequences for n in own] for own in lengths]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("count", "rows", "sequences"), [(1, 1, 1), (1, 8, 1), (4, 8, 1), (8, 16, 2), (3, 7, 1)])
def test_cuts_cover_every_row_once_in_order(count, rows, sequences, device):
    places = cuts(random_members(count, rows, sequences), device)
    assert [index for place in places for index in range(rows)[place]] == list(range(rows))


def test_a_step_is_cut_where_padding_costs_more_than_another_pass():
    """Eight trials of 16 rows: half of them 50 tokens long, half 10; uncut, 8 * 8 * 40 tokens would be padding."""
    long, short = ((TokenSequence((5,) * n, (5,) * n),) for n in (50, 10))
    assert cuts([[long] * 8 + [short] * 8] * 8, "cpu") == [slice(0, 8), slice(8, 16)]
    assert cuts([[long] * 16] * 8, "cpu") == [slice(0, 16)]
    assert cuts([[long, short]], "cpu") == [slice(0, 2)], "40 tokens are not worth a pass"


def test_cuts_leave_little_padding():
    members = random_members(8, 16)
    tokens = sum(len(s.input_ids) for own in members for (s,) in own)
    whole = 8 * 16 * max(len(own[0][0].input_ids) for own in members)
    pieces = sum(
        8 * len(range(16)[place]) * max(len(own[place][0][0].input_ids) for own in members)
        for place in cuts(members, "cpu")
    )
    assert whole / tokens > 1.5
    assert pieces / tokens < 1.3


def test_another_seed_and_another_pass_compose_other_steps():
    lengths = tuple(range(2, 402))
    first, second = ([frozenset(step) for step in step_order(lengths, 8, 100, seed).tolist()] for seed in (1, 2))
    assert len(set(first[:50]) & set(second[:50])) < 10
    assert len(set(first[:50]) & set(first[50:])) < 10


def test_a_continuation_needs_no_state_and_longer_stages_begin_alike():
    lengths = tuple(range(2, 402))
    short, long = step_order(lengths, 4, 200, 5), step_order(lengths, 4, 300, 5)
    assert np.array_equal(short, long[:200])


@st.composite
def members(draw):
    """Rows of one to three trials, as many for each, with prompts of any length."""
    rows, count = draw(st.integers(1, 4)), draw(st.integers(1, 3))

    def sequence():
        ids = tuple(draw(st.lists(st.integers(2, 250), min_size=2, max_size=9)))
        prompt = draw(st.integers(0, len(ids) - 1))
        return TokenSequence(ids, (IGNORED,) * prompt + ids[prompt:], prompt)

    return [[(sequence(),) for _ in range(rows)] for _ in range(count)]


@given(members())
def test_a_batch_holds_every_trials_rows_and_where_their_loss_is(trials):
    batch = collate(trials, 1, "cpu")
    rows, flat = len(trials[0]), batch.input_ids.flatten()
    width = batch.input_ids.shape[1]
    assert batch.rows == rows
    assert batch.lengths == tuple(max(len(s.input_ids) for (s,) in own) for own in trials)
    assert width == max(batch.lengths)
    for k, own in enumerate(trials):
        found = []
        for row, (s,) in enumerate(own):
            shown = batch.input_ids[k * rows + row].tolist()
            assert shown == [*s.input_ids, *[1] * (width - len(s.input_ids))]
            first = max(1, s.prompt)
            found += [(row, first + n, token) for n, token in enumerate(s.input_ids[first:])]
        there = batch.target[k] != IGNORED
        position = batch.position[k][there]
        assert there.sum() == len(found)
        assert batch.sequence[k][there].tolist() == [row for row, _, _ in found]
        assert batch.target[k][there].tolist() == flat[position + 1].tolist() == [token for _, _, token in found]
        assert (position - (k * rows + batch.sequence[k][there]) * width + 1).tolist() == [at for _, at, _ in found]
        assert batch.completion[k][there].all()
        assert (batch.sequence[k][~there] == rows).all()
        assert not batch.completion[k][~there].any()


def nats(model, groups):
    """Nats of every supervised token, sequence by sequence, computed in these groups."""
    found = {}
    for group in groups:
        batch = collate([group], 1, "cpu")
        values = supervised_nats(model, batch)[0]
        for row, (s,) in enumerate(group):
            found[s] = values[batch.sequence[0] == row]
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora", "prefix_tuning"])
def test_how_sequences_are_put_together_changes_no_loss(method, family, world):
    """One padded batch, buckets of like length, and one sequence at a time, which has no padding at all."""
    rows = [Row(prompt=f"{n}:", completion=" " + "ab" * n) for n in range(1, 17)]
    ready, _ = attached(getattr(world, family), stage(method, batch_size=4), steps=4, rows=rows)
    with torch.no_grad():
        padded = nats(ready.model, [ready.examples])
        buckets = nats(ready.model, [[ready.examples[index] for index in step] for step in ready.order])
        single = nats(ready.model, [[example] for example in ready.examples])
    assert padded.keys() == buckets.keys() == single.keys()
    for sequence in single:
        torch.testing.assert_close(padded[sequence], single[sequence], atol=1e-5, rtol=0)
        torch.testing.assert_close(buckets[sequence], single[sequence], atol=1e-5, rtol=0)


def test_the_output_layer_is_handed_supervised_positions_only(world):
    ready, _ = attached(world.llama, stage("full"))
    batch, seen = collate([ready.examples], 1, "cpu"), []
    head = ready.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    supervised_nats(ready.model, batch)
    hook.remove()
    wanted = sum(label != IGNORED for (s,) in ready.examples for label in s.labels[1:])
    assert seen == [(1, wanted, 258)]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("positions", [1, 7])
def test_logits_in_pieces_give_the_same_loss_and_gradients(positions, method, world, monkeypatch):
    """Where they would take too much memory at once, a few positions' at a time."""
    ready, _ = attached(world.llama, stage(method))
    batch = collate([ready.examples], 1, "cpu")

    def loss_and_gradients():
        ready.model.zero_grad()
        values = supervised_nats(ready.model, batch)
        values.sum().backward()
        return [values.detach(), *(p.grad.clone() for p in ready.model.parameters() if p.grad is not None)]

    whole, seen = loss_and_gradients(), []
    head = ready.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    monkeypatch.setattr("harness.nn.logits.LOGITS", positions * 258)
    pieces = loss_and_gradients()
    assert max(seen) == positions
    assert len(whole) == len(pieces)
    for mine, other in zip(pieces, whole, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_trial_with_fewer_supervised_tokens_is_filled_up_without_loss(world):
    ready, _ = attached(world.llama, stage("full"))
    short, long = ready.examples[0], max(ready.examples, key=lambda example: len(example[0].labels))
    batch = collate([[long], [short]], 1, "cpu")
    values = supervised_nats(ready.model, batch)
    there = batch.target != IGNORED
    assert there.sum(1).tolist() == [sum(label != IGNORED for label in one[0].labels[1:]) for one in (long, short)]
    assert (values[~there] == 0).all()
    assert (values[there] > 0).all()

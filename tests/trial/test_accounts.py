"""A trial's accounts against numbers worked out by hand."""

from harness.cost.flops import Size
from harness.cost.meter import Meter
from harness.study.spec import Prices
from harness.training.checkpoint import Progress
from harness.trial.accounts import Accounts


def test_stages_of_a_trial_are_counted_each_with_its_own_size():
    """By hand: 2 x 2 x matmul + 2 x trained per token, and what a rung before it had taken on top."""
    before = Progress(key="k", step=3, curve=(), losses=(0.0, 0), train_seconds=2.0, tokens=7, total_s=9.0)
    accounts = Accounts(meter=Meter("cpu"), inherited=before)
    for trained, tokens in ((10, 3), (100, 5)):
        size = Size(total_params=100, trainable_params=trained, gradient_params=trained, matmul_params=100)
        accounts.open_stage(size).tokens = tokens
    assert accounts.flops == 3 * (400 + 20) + 5 * (400 + 200)
    assert accounts.tokens == 3 + 5 + 7
    assert (accounts.train_seconds, accounts.total_s) == (2.0, 9.0)
    cost = accounts.cost(Prices(), 1, None)
    assert (cost.tokens, cost.trainable_params, cost.utilisation) == (8, 100, None)

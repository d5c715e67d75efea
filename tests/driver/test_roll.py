"""The roll of a study: what is reused, and what each trial costs it."""

from dataclasses import replace

from harness.driver.roll import Roll
from harness.driver.trials import base_proposals
from harness.records.study_trials import read_members
from harness.records.trial import CostRecord, TrialResult, TrialStatus
from tests.driver import standin


def proposal(tmp_path):
    return next(base_proposals(standin.experiment(standin.study(), standin.site(tmp_path))))


def result(config, seconds=5.0, money=0.25):
    cost = CostRecord(seconds={"train": seconds}, money=money)
    return TrialResult(config=config, status=TrialStatus.CRASHED, reason="as the test asked", cost=cost)


def test_a_trial_that_two_families_share_is_counted_for_both_and_paid_for_once(tmp_path):
    one = proposal(tmp_path)
    roll = Roll(standin.site(tmp_path).paths, "standin", [])
    for family in ("a", "b"):
        member = replace(one.member, family=family)
        roll.enter(member, recorded=False)
        roll.count(member, result(one.config))
    assert (roll.tally.failed, roll.tally.reused) == (2, 0)
    assert (roll.tally.seconds, roll.tally.money) == (5.0, 0.25)
    assert [member.family for member in read_members(roll.paths, "standin")] == ["a", "b"]


def test_the_costs_of_trials_add_up_and_an_unknown_price_adds_nothing(tmp_path):
    roll = Roll(standin.site(tmp_path).paths, "standin", [])
    asked = list(base_proposals(standin.experiment(standin.study(), standin.site(tmp_path))))
    for one, money in zip(asked, (0.25, None, 0.5, 1.0), strict=True):
        roll.enter(one.member, recorded=False)
        roll.count(one.member, result(one.config, money=money))
    assert (roll.tally.seconds, roll.tally.money) == (20.0, 1.75)


def test_a_trial_with_a_record_of_another_study_is_reused_and_costs_nothing(tmp_path):
    one = proposal(tmp_path)
    roll = Roll(standin.site(tmp_path).paths, "standin", [])
    roll.enter(one.member, recorded=True)
    roll.count(one.member, result(one.config))
    assert (roll.tally.reused, roll.tally.seconds, roll.tally.money) == (1, 0.0, None)
    assert [member.reused for member in read_members(roll.paths, "standin")] == [True]


def test_a_record_that_the_study_had_made_itself_is_not_reused(tmp_path):
    one = proposal(tmp_path)
    roll = Roll(standin.site(tmp_path).paths, "standin", [one.member])
    again = replace(one.member, repetition=1)
    roll.enter(again, recorded=True)
    roll.count(again, result(one.config))
    assert (roll.tally.reused, roll.tally.seconds) == (0, 5.0)
    assert [member.reused for member in read_members(roll.paths, "standin")] == [False]

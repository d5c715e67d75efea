"""The table of causes: what the documents say of each is what the driver does."""

import re
from pathlib import Path

from harness.records.causes import Cause

DOCUMENT = Path(__file__).parents[2] / "docs" / "cluster.md"


def test_the_document_has_the_table_that_the_driver_reads():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (\w+) \| (\d+) \| (\w+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    policies = [(cause, cause.policy) for cause in Cause]
    assert rows == [
        (cause, policy.what, policy.fault, str(policy.chances), policy.status if policy.fault == "trial" else "none")
        for cause, policy in policies
    ]


def test_only_what_a_trial_may_have_done_is_uncertain_or_ends_it():
    for cause in Cause:
        policy = cause.policy
        assert policy.chances > 0 or policy.fault == "user"
        assert not (policy.fault == "trial" and policy.certain)

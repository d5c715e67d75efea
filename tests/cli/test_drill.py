"""The drill passes where the machinery works, and fails where it does not."""

from dataclasses import replace

import pytest

from harness.cli.drill import TRIALS, Drilled, practise
from harness.database.equality import Certificate, Compared

SAME = Compared(table="trials", rows=(16, 16), columns=("key",), digests=("a", "a"))
PASSED = Drilled(
    runner="local",
    struck=("snakemake", "worker", "driver", "job"),
    spared={"node": "--node was not given"},
    complete=TRIALS,
    ran_again=2,
    under_way=2,
    ended_twice=0,
    certificate=Certificate(tables=(SAME,), left_out={"started_at": "when"}),
    seconds=1.0,
)
UNEQUAL = replace(PASSED.certificate, tables=(replace(SAME, rows=(16, 15), digests=("a", "b")),))


def test_the_drill_passes_here_and_leaves_nothing(tmp_path):
    outcome = practise("local", {}, tmp_path)
    assert outcome.passed, outcome.text()
    assert {*outcome.struck} == {"snakemake", "worker", "driver", "job"}
    assert list((tmp_path / "results").iterdir()) == []
    assert {table.table for table in outcome.certificate.tables if table.rows[0] == TRIALS} >= {"trials", "scores"}


@pytest.mark.slurm
def test_the_drill_passes_on_slurm_where_a_node_goes_down_too(slurm, tmp_path_factory):
    outcome = practise("slurm", {"time_min": "5", "mem_gb": "0.5"}, tmp_path_factory.mktemp("drill"), node=True)
    assert outcome.passed, outcome.text()
    assert {*outcome.struck} == {"snakemake", "worker", "driver", "job", "node"}, outcome.text()


@pytest.mark.parametrize(
    "change",
    [
        {"complete": TRIALS - 1},
        {"ran_again": 3},
        {"ended_twice": 1},
        {"struck": ("snakemake", "driver", "job")},  # no worker
        {"struck": ("worker", "driver", "job")},  # nobody says why not Snakemake
        {"spared": {"node": "it may not", "job": "it may not"}, "struck": ("snakemake", "worker", "driver")},
        {"certificate": UNEQUAL},
    ],
)
def test_anything_lost_repeated_not_tried_or_different_fails_the_drill(change):
    assert PASSED.passed
    assert not replace(PASSED, **change).passed
    assert "FAILED" in replace(PASSED, **change).text()


def test_the_certificate_says_what_was_compared_and_what_may_differ():
    said = PASSED.text()
    assert "trials             16 rows x   1 columns  equal, sha256 a" in said
    assert "may differ: started_at (when)" in said
    assert "DIFFERENT from 15 rows" in UNEQUAL.text()

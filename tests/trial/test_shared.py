"""Two processes that want the same trial at once: it runs in one of them, and both have its record."""

import threading
import time
from dataclasses import replace

import pytest

from harness.records.results import write_result
from harness.records.trial import ModelRef, Pipeline, Stage, TaskRef, TrialConfig, TrialResult, TrialStatus
from harness.trial import group
from harness.trial.workspace import Workspace
from tests.patience import PATIENCE_S

FIRST = TrialConfig(
    pipeline=Pipeline(ModelRef("base", "r"), (Stage(method="lora"),)), task=TaskRef("task", "f"), steps=10
)
CONFIGS = [replace(FIRST, seed=seed) for seed in range(4)]


@pytest.fixture
def ran(paths, monkeypatch):
    """Seeds of the trials that ran, in order; each takes a while."""
    ran = []

    def run(configs):
        ran.extend(config.seed for config in configs)
        time.sleep(0.3)
        for config in configs:
            write_result(paths, TrialResult(config=config, status=TrialStatus.COMPLETE))
        return [TrialResult(config=config, status=TrialStatus.COMPLETE) for config in configs]

    monkeypatch.setattr(group, "_runs", lambda configs, workspace, process: configs)
    monkeypatch.setattr(group, "_run_group", run)
    return ran


def test_what_another_process_runs_is_waited_for_and_not_run_again(paths, ran):
    """A lock belongs to whoever opened the file, so that threads are to each other as processes are."""
    packs = [CONFIGS[:3], CONFIGS[1:], [CONFIGS[3], CONFIGS[0], CONFIGS[3]]]
    found = {}

    def pack(number):
        found[number] = group.run_pack(packs[number], Workspace(paths), object())

    threads = [threading.Thread(target=pack, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(ran) == [0, 1, 2, 3]
    assert [[result.config for result in found[number]] for number in range(3)] == packs

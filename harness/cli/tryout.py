"""Trials that train nothing, to try a site with: its processes, its files, its scheduler."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.metrics.base import SHARE
from harness.records.paths import Paths
from harness.records.trial import CostRecord, ModelRef, Score, TaskRef, TrialConfig, TrialResult, TrialStatus
from harness.study.family import resolved_families

if TYPE_CHECKING:
    from harness.driver.experiment import Experiment, Site
    from harness.study.spec import StudySpec


NAME = "tryout"
"""Of their study."""


def command(folder: Path, work: str, trials: int, runner: str, options: Mapping[str, str]) -> list[str]:
    """What runs a driver of such trials as a process of its own.

    Args:
        folder: For its results; on a file system that the workers share.
        work: What workers do, as `module:function`.
        trials: How many.
        runner: Where they run.
        options: The runner's.
    """
    given = [f"{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", __name__, str(folder), work, str(trials), runner, *given]


def complete(config: TrialConfig, seconds: float) -> TrialResult:
    """The record of such a trial."""
    score = Score(
        task=config.task.name,
        split=config.evaluation.split,
        metric="none",
        value=int(config.key[:8], 16) / 16**8,  # something that another trial has not
        stderr=None,
        n=1,
        higher_is_better=True,
        comparability="tryout",
    )
    return TrialResult(
        config=config, status=TrialStatus.COMPLETE, scores=(score,), cost=CostRecord(seconds={"train": seconds})
    )


def _study(trials: int) -> StudySpec:
    """Any method will do, since nothing is trained."""
    from harness.plugins import names
    from harness.study.spec import StudySpec

    return StudySpec.model_validate(
        {
            "name": NAME,
            "question": "Do trials run here?",
            "base_models": ["tryout"],
            "tasks": ["tryout"],
            "families": {"tryout": {"method": names("methods")[0]}},
            "budget": {"trials": trials, "steps": 1},
            "search": {"sampler": "random"},
        }
    )


def _experiment(study: StudySpec, site: Site) -> Experiment:
    """The study without any model or task behind its names."""
    from harness.driver.experiment import Experiment, ModelInfo, TaskInfo
    from harness.models.facts import ModelFacts

    name = study.name
    items = {"validation": (1,), "test": (1,)}
    return Experiment(
        spec=study,
        site=site,
        models=(ModelInfo(ModelRef(name, ""), ModelFacts(parameters=1)),),
        tasks=(TaskInfo(ref=TaskRef(name, ""), higher_is_better=True, scale=SHARE, rows=1, chars=1.0, items=items),),
        families=resolved_families(study),
    )


def _drive(folder: Path, work: str, trials: int, runner: str, options: Sequence[str]) -> int:
    """Run the trials; the exit code."""
    from harness.driver.experiment import Site
    from harness.driver.phases import run_phase

    site = Site(
        paths=Paths(folder, folder),
        runner=runner,
        options={key: value for key, _, value in (option.partition("=") for option in options)},
        device="cpu",
        display=False,
        work=work,
    )
    try:
        return run_phase("search", _study(trials), site, _experiment).exit_code
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(_drive(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:]))

"""Programs that lm-eval's own tasks have judged: what they load to run them runs them in the sandbox instead.

lm-eval's `humaneval` and `mbpp` load Hugging Face's metric `code_eval`, which is downloaded, and runs programs as the user does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any

from harness.metrics._sandbox import Limits, passes
from harness.metrics.pass_at_k import estimate

Ran = Mapping[int, list[tuple[int, Mapping[str, object]]]]
"""Of each problem: the numbers of its candidates, and what became of them."""


class CodeEval:
    """Has the interface of Hugging Face's metric `code_eval`, version 1.0."""

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = 3.0,
    ) -> tuple[dict[str, float], Ran]:
        """Run each candidate, with its problem's tests behind it.

        Args:
            references: Tests of each problem.
            predictions: Candidates for each problem.
            k: Draws of which one has to pass; more than there are candidates are left out.
            num_workers: Not used: the sandbox takes the processors that there are.
            timeout: Seconds of CPU time that a program may take.

        Returns:
            `pass@k` for each k, and what became of each candidate.

        Raises:
            SpecError: When this machine cannot shut a program in.
        """
        done = [
            passes([f"{candidate}\n{test}" for candidate in candidates], Limits(timeout))
            for test, candidates in zip(references, predictions, strict=True)
        ]
        rates = {
            f"pass@{drawn}": fmean(estimate(len(own), sum(own), drawn) for own in done)
            for drawn in k
            if all(len(own) >= drawn for own in done)
        }
        ran: dict[int, list[tuple[int, Mapping[str, object]]]] = {
            number: [(place, {"task_id": number, "passed": passed}) for place, passed in enumerate(own)]
            for number, own in enumerate(done)
        }
        return rates, ran


@cache
def shut_in() -> None:
    """Once per process: whoever loads `code_eval` gets `CodeEval`."""
    import evaluate

    load = evaluate.load

    def loaded(path: str, *arguments: Any, **options: Any) -> Any:
        return CodeEval() if path == "code_eval" else load(path, *arguments, **options)

    evaluate.load = loaded

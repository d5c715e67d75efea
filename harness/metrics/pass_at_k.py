"""Share of programming problems that one of k generated programs would solve, by running them."""

from __future__ import annotations

import math

from harness.errors import SpecError
from harness.metrics._sandbox import Limits, passes
from harness.metrics.base import SHARE, Answered, Measure, Settings


class PassAtK(Measure):
    r"""The unbiased estimate from n samples of which c pass: 1 - C(n - c, k) / C(n, k).

    `program` is a template of what is run, with the row's columns and `completion`, for example
    `"{{prompt}}{{completion}}\n{{test}}\ncheck({{entry_point}})"`. It runs in a sandbox; the task must say
    `unsafe_code: true`, and generates `repeats` samples with `do_sample: true`.
    """

    summary = "share of problems that one of k generated programs solves"
    paper = "Chen et al. 2021, arXiv 2107.03374"
    output_types = ("generate_until",)
    scale = SHARE
    every_sample = True
    runs_code = True
    settings = {"k": 1, "program": "", "timeout_s": 5.0, "memory_mb": 512}

    def check(self, settings: Settings, where: str) -> None:
        """Ask for a program with the completion in it, and for numbers above 0.

        Args:
            settings: Of the entry, with defaults filled in.
            where: Task file and metric, for the error message.

        Raises:
            SpecError: When they are not what was asked for.
        """
        super().check(settings, where)
        if "completion" not in str(settings["program"]):
            raise SpecError(
                f"{where} must have a program with {{{{completion}}}}, but got {settings['program']!r}: add it"
            )
        for name in ("k", "timeout_s", "memory_mb"):
            # YAML's `true` is an int for Python
            if isinstance(settings[name], bool) or not isinstance(settings[name], int | float) or settings[name] <= 0:
                raise SpecError(f"{where}: {name} must be a number above 0, but is {settings[name]!r}: correct it")

    def item(self, answered: Answered) -> float:
        """In [0, 1]."""
        from lm_eval.utils import apply_template

        (given,) = answered.answers
        samples = [given] if isinstance(given, str) else list(given)
        k, settings = int(answered.settings["k"]), answered.settings
        if k > len(samples):
            raise SpecError(f"pass_at_k with k = {k} needs at least {k} samples, but has {len(samples)}: raise repeats")
        programs = [apply_template(str(settings["program"]), {**answered.doc, "completion": text}) for text in samples]
        done = passes(programs, Limits(float(settings["timeout_s"]), int(settings["memory_mb"])))
        return estimate(len(samples), sum(done), k)


def estimate(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples passes; without bias (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Args:
        n: Samples generated.
        c: Samples of these that pass.
        k: Samples drawn of the n without replacement, at most n.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)

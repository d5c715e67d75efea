"""Baseline: a pipeline does as well as the very same setting did on other tasks, on average."""

from __future__ import annotations

import re

from harness.recommend.surrogates._mean_of_alike import MeanOfAlike


class MeanOfSetting(MeanOfAlike):
    """What had the same choices, parameters and length."""

    summary = "A pipeline does as well as the very same setting did on average."
    alike = re.compile(r"(stage\d+\.|stages$|log_steps|log_trained_steps|fidelity)")

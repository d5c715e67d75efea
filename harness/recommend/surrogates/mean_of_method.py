"""Baseline: a pipeline does as well as those with the same choices on all axes did on average."""

from __future__ import annotations

import re

from harness.recommend.surrogates._mean_of_alike import MeanOfAlike


class MeanOfMethod(MeanOfAlike):
    """What had the same choices, whatever their parameters."""

    summary = "A pipeline does as well as those with the same choices did on average."
    alike = re.compile(r"stage\d+\.(method|objective|retention|curation)=")

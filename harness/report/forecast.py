"""What `plan` predicted against what happened."""
from __future__ import annotations
from harness.report.markup import Html
def forecast_table(study):
    return Html("")

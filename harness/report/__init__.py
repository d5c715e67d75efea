"""The report: one self-contained HTML file per study, which opens with the answer."""

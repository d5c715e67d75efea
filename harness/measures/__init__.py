"""Metrics and filters that lm-eval lacks, for a task's YAML to name: one file per metric, its stem is its name."""

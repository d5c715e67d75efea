"""Metrics and filters that lm-eval lacks, one file each."""

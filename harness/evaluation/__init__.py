"""Scores live models on lm-eval tasks, item by item."""

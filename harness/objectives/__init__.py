"""Objectives: what is minimised, on which rows."""

"""Surrogates: models of untried pipelines."""

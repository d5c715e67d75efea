"""Curation: what happens to the training rows."""

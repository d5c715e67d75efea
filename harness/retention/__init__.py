"""Retention: how old knowledge is kept."""

"""Drives a study: resolves it, plans it, runs its trials, shows its progress."""

"""Schedulers: which trials go on to a higher fidelity."""

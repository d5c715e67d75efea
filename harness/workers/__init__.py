"""Warm workers: processes that take packs of trials from a queue of files, and the processors and GPUs they may use."""

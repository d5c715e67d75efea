"""How long a test waits for another process."""

PATIENCE_S = 600.0
"""Seconds after which a process counts as hanging. A busy machine takes long for everything: no test may fail for that."""

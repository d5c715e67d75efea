"""How long a test waits for another process, and whether a run of the tests may take long."""

import os

PATIENCE_S = 600.0
"""Seconds after which a process counts as hanging. A busy machine takes long for everything: no test may fail for that."""
THOROUGH = os.environ.get("CI") == "true"
"""Whether every combination is tried, as CI does; else each part once, with the others in turn."""

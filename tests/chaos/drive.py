"""A driver as a process of its own, to be killed: `python -m tests.chaos.drive FOLDER RUNNER OPTION=VALUE...`."""

import logging
import os
import sys
from pathlib import Path

from harness.errors import HarnessError
from tests.driver import standin

TRIALS = int(os.environ.get("STANDIN_TRIALS", "5"))
TOGETHER = {"families": standin.TOGETHER} if "STANDIN_TOGETHER" in os.environ else {}
STUDY = standin.study(tasks=["one"], budget={"trials": TRIALS, "steps": 9}, **TOGETHER)
RUNS = 9
"""Two families with five trials each, of which they share the first."""

if __name__ == "__main__":
    folder, runner, *options = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    site = standin.site(Path(folder), runner, options=dict(option.split("=", 1) for option in options))
    try:
        print(standin.run(os.environ.get("STANDIN_PHASE", "search"), STUDY, site).text())
    except HarnessError as error:
        print(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)

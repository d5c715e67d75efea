"""A driver as a process of its own, to be killed: `python -m tests.chaos.drive FOLDER RUNNER OPTION=VALUE...`."""

import logging
import os
import sys
from pathlib import Path

from harness import sweep
from harness.errors import HarnessError
from tests.sweep import standin

STUDY = standin.study(tasks=["one"], budget={"trials": int(os.environ.get("STANDIN_TRIALS", "5")), "steps": 9})
RUNS = 9
"""Two families with five trials each, of which they share the first."""

if __name__ == "__main__":
    folder, runner, *options = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    site = standin.site(Path(folder), runner, options=dict(option.split("=") for option in options))
    try:
        print(sweep.run_search(STUDY, site, standin.setting(STUDY)).text())
    except HarnessError as error:
        print(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)

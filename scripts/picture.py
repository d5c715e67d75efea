"""Photographs the top of a report: `python scripts/picture.py reports/quickstart.html docs/report.png` makes README's picture."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
)


def photograph(page: Path, picture: Path, width: int, height: int) -> None:
    """Write what a window shows of a page as a PNG.

    Args:
        page: An HTML file.
        picture: Where the PNG goes.
        width: Of the window, in pixels.
        height: Of the window, in pixels.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"a browser is needed, but none of {', '.join(BROWSERS)} is installed: install one")
    with tempfile.TemporaryDirectory() as profile:
        flags = (f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture.resolve()}")
        subprocess.run([browser, *QUIET, *flags, page.resolve().as_uri()], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Take the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1500, help="of the window, in pixels")
    args = parser.parse_args()
    photograph(args.page, args.picture, args.width, args.height)


if __name__ == "__main__":
    main()

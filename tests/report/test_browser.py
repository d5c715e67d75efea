"""The report in headless Chromium: rendered whole, without a script and without one request."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from scripts.picture import photograph
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.browser

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found:
        return found
    reason = "Chromium is not installed: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def test_the_report_renders_without_one_request(chromium: str, report: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    done = run(chromium, report, tmp_path, f"--log-net-log={log}", "--dump-dom")
    assert "What was forgotten, skill by skill" in done.stdout
    assert done.stdout.count("<svg") == report.read_text(encoding="utf-8").count("<svg") > 5
    requested = {
        event["params"]["url"]
        for event in json.loads(log.read_text())["events"]
        if "url" in event.get("params", {}) and str(event["params"]["url"]).startswith(("http:", "https:", "ws:"))
    }
    # what the browser itself asks of its maker is not the page's doing
    assert {url for url in requested if "google" not in url} == set()


def test_the_page_itself_forbids_scripts_and_loads(chromium: str, report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    added = "<script>document.title = 'it ran'</script><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
    changed, control = tmp_path / "changed.html", tmp_path / "control.html"
    changed.write_text(text.replace("</body>", added + "</body>"), encoding="utf-8")
    control.write_text(f"<!DOCTYPE html><title>not yet</title>{added}", encoding="utf-8")
    assert "<title>it ran</title>" in run(chromium, control, tmp_path, "--dump-dom").stdout
    assert "<title>it ran</title>" not in run(chromium, changed, tmp_path, "--dump-dom").stdout


def test_readmes_picture_is_what_a_window_shows(chromium: str, report: Path, tmp_path: Path) -> None:
    """A PNG's width and height stand at its 17th byte, four bytes each."""
    assert chromium
    photograph(report, tmp_path / "top.png", 375, 600)
    assert struct.unpack(">II", (tmp_path / "top.png").read_bytes()[16:24]) == (375, 600)


def run(chromium: str, report: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [chromium, *QUIET, f"--user-data-dir={folder / 'profile'}", *flags, report.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)

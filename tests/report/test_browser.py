"""The report, and a comparison's page, in headless Chromium: rendered whole, without a script and without one request."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.compare.judgement import compare
from harness.compare.page import render
from scripts.picture import photograph
from tests.compare.made_up import model, right, skill
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
    shown, requested = opened(chromium, report, tmp_path)
    assert "What was forgotten, skill by skill" in shown
    assert shown.count("<svg") == report.read_text(encoding="utf-8").count("<svg") > 5
    assert requested == set()


def test_a_comparisons_page_renders_without_a_script_or_a_request(chromium: str, tmp_path: Path) -> None:
    """What models answered may be a page of its own: it is shown as text."""
    evil = "<script>document.title = 'it ran'</script><img src='http://127.0.0.1:9/a.gif'>"
    base = skill(right(300, 400), np.full(400, 2.0))
    base = replace(base, answers=tuple(replace(own, prompt=evil, right=evil, given=evil) for own in base.answers))
    found = compare(model(evil, one=base), [model("tuned", one=skill(right(200, 400), np.full(400, 2.5)))], 0.05)
    page = tmp_path / "comparison.html"
    page.write_text(render(found), encoding="utf-8")
    shown, requested = opened(chromium, page, tmp_path)
    assert "tuned lost 1 of the 1 skill of" in shown
    assert "<title>it ran</title>" not in shown
    assert requested == set()


def opened(chromium: str, page: Path, folder: Path) -> tuple[str, set[str]]:
    """A page as the browser has it, and the addresses that it asked for."""
    log = folder / "net.json"
    done = run(chromium, page, folder, f"--log-net-log={log}", "--dump-dom")
    requested = {
        event["params"]["url"]
        for event in json.loads(log.read_text())["events"]
        if "url" in event.get("params", {}) and str(event["params"]["url"]).startswith(("http:", "https:", "ws:"))
    }
    # what the browser itself asks of its maker is not the page's doing
    return done.stdout, {url for url in requested if "google" not in url}


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

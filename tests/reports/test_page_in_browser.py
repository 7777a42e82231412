"""The page in a real browser: nothing is wider than the window of a desktop or a phone, and it makes no requests."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgefed.reports.build import build_report
from edgefed.reports.page import render_page
from edgefed.reports.report import Report
from tests.reports.made_runs import make_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "headless_shell")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at pages with")

# A phone's width is that of a frame: a browser's own window cannot be made so narrow.
FRAME = """<!DOCTYPE html><iframe src="page.html" style="border:0;width:{width}px;height:4000px"></iframe>
<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const wide = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > {width} + 0.5
    && !e.closest("svg"));
  document.body.dataset.width = page.documentElement.scrollWidth;
  document.body.dataset.wide = wide.map(e => e.tagName + "." + e.className).join(" ");
  document.body.dataset.requests = page.defaultView.performance.getEntriesByType("resource").length;
}}</script>"""


def look(directory: Path, page: str, width: int) -> dict[str, str]:
    (directory / "page.html").write_text(page)
    (directory / "frame.html").write_text(FRAME.format(width=width))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={directory / 'browser'}", "--window-size=1400,1000", "--virtual-time-budget=5000",
            "--dump-dom", (directory / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout))


def check(found: dict[str, str], width: int) -> None:
    assert found["wide"] == ""
    assert int(found["width"]) <= width
    assert found["requests"] == "0"


@pytest.mark.parametrize("width", [1280, 700, 390])
def test_nothing_is_wider_than_the_window(tmp_path: Path, whole: Report, width: int) -> None:
    before = build_report(make_run(seed=2, name="before"))
    check(look(tmp_path, render_page(whole, before=before), width), width)


def test_hostile_texts_do_not_push_the_page_apart(tmp_path: Path) -> None:
    check(look(tmp_path, render_page(build_report(make_run(2, 2, hostile=True))), 390), 390)

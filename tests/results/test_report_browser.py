"""The pages in a real browser: silent, self-contained, narrow enough, accessible.

These tests need Chromium with its driver on the PATH (``chromium`` and ``chromedriver``), the
package selenium, and axe-core, whose licence keeps it out of this repository: ``npm install
axe-core`` in the checkout, or set ``LTDD_AXE`` to an ``axe.min.js``. They are skipped, and say so,
where one of these is missing.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.finished_pages import finished_run

from ltdd.results.pages.comparison import write_comparison
from ltdd.results.pages.report import write_report

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PHONE, DESKTOP = 360, 1200


@pytest.fixture(scope="module")
def axe() -> str:
    path = Path(os.environ.get("LTDD_AXE") or ROOT / "node_modules/axe-core/axe.min.js")
    if not path.is_file():
        pytest.skip(f"NO ACCESSIBILITY CHECK: needs axe-core at {path} or LTDD_AXE")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="NO BROWSER TEST: needs selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("NO BROWSER TEST: needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module", params=["report", "comparison"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    # names of classes are the widest words of a page
    names = ("a class with quite a long name", *(f"class_{i}" for i in range(1, 10)))
    first = finished_run(root / "first_of_the_runs", names)
    if request.param == "report":
        return write_report(first)
    second = finished_run(root / "second", names, seed=1)
    return write_comparison([first, second], root / "page.html")


def show(browser: Any, page: Path, width: int, dark: bool = False) -> None:
    """Open a page in a window of the given width, with everything that folds unfolded."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


def test_the_page_is_silent_and_asks_for_nothing(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    show(browser, page, DESKTOP)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"].split("#")[0]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_does_not_scroll_sideways(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_is_accessible(browser: Any, page: Path, axe: str, width: int, dark: bool) -> None:
    show(browser, page, width, dark)
    browser.execute_script(axe)
    result = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert len(result["passes"]) > 15  # it has looked
    violations = [
        (found["impact"], found["id"], [node["html"][:200] for node in found["nodes"]])
        for found in result["violations"]
    ]
    assert violations == []


def test_the_page_prints(browser: Any, page: Path) -> None:
    show(browser, page, DESKTOP)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 20


def test_the_checks_find_a_bad_page(browser: Any, axe: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><body><img src='missing.png'><p style='width:2000px'>wide</p>"
        "<script>console.error('told')</script></body></html>"
    )
    show(browser, page, PHONE)
    assert any("told" in entry["message"] for entry in browser.get_log("browser"))
    assert browser.execute_script("return document.documentElement.scrollWidth") > PHONE
    browser.execute_script(axe)
    result = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert "image-alt" in {found["id"] for found in result["violations"]}

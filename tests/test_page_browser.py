"""The brief's HTML where it is read and printed: what only a browser knows, measured in Chromium if there is one."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_page import html_of

pytestmark = pytest.mark.full

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]


class Browser:
    """The few WebDriver calls that the tests need."""

    def __init__(self, port: str, folder: Path, binary: str) -> None:
        self.folder = folder
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"]}
        body = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self.session = "/session"
        self.session += f"/{self.post('', body)['sessionId']}"

    # Any: whatever the browser says.
    def post(self, path: str, body: Mapping[str, object]) -> Any:
        answer = self.http.post(self.session + path, json=body)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def close(self) -> None:
        self.http.delete(self.session)
        self.http.close()

    def tool(self, name: str, **values: object) -> Any:
        return self.post("/goog/cdp/execute", {"cmd": name, "params": values})

    def show(self, html: str, *, width: int = 1280, scheme: str = "light") -> None:
        (self.folder / "page.html").write_text(html, encoding="utf-8")
        self.tool("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.tool("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.post("/url", {"url": (self.folder / "page.html").as_uri()})

    def ask(self, script: str) -> Any:
        return self.post("/execute/sync", {"script": script, "args": []})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if driver is None or binary is None:
        pytest.skip("no chromium with its chromedriver on PATH to measure the page in")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            started = (re.search(r"started successfully on port (\d+)", line) for line in process.stdout)
            port = next(filter(None, started))[1]
            session = Browser(port, tmp_path_factory.mktemp("browser"), binary)
            yield session
            session.close()
        finally:
            process.terminate()


# For each piece of text that is seen: its contrast with the nearest background.
CONTRASTS = """
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const lum = c => { const [r, g, b] = c.map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
const under = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c; } };
const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) { const e = walk.currentNode.parentElement;
  if (walk.currentNode.data.trim() && e.checkVisibility()) {
    const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(under(e))].sort((x, y) => x - y);
    found.push([(b + 0.05) / (a + 0.05), walk.currentNode.data]); } }
found.sort((x, y) => x[0] - y[0]);
return [found.length, found[0], getComputedStyle(document.body).backgroundColor];
"""

# A box that scrolls by itself may hold more than it shows; nothing else may stick out.
STICKING_OUT = """
const { scrollWidth, clientWidth } = document.documentElement;
return [scrollWidth - clientWidth, [...document.querySelectorAll('body *')]
  .filter(e => !e.parentElement.closest('.scroll') && e.getBoundingClientRect().right > clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))];
"""

CUT_PAIRS = """
return [...document.querySelectorAll('.scroll:has(.form)')].filter(e => e.scrollWidth > e.clientWidth)
  .map(e => e.outerHTML);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["example", "llamacpp", "hostile"])
def test_words_stand_out_by_day_and_night(browser: Browser, name: str, scheme: str) -> None:
    browser.show(html_of(name), scheme=scheme)
    count, (worst, words), paper = browser.ask(CONTRASTS)
    assert count > 50
    assert worst >= 4.5, words
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(26, 26, 26)"}[scheme]


CUT_TABLES = """
return [...document.querySelectorAll('.panel .scroll')].filter(e => e.scrollWidth > e.clientWidth)
  .map(e => [e.ariaLabel, e.scrollWidth, e.clientWidth]);
"""


@pytest.mark.parametrize("name", ["example", "llamacpp"])
def test_the_tables_of_the_first_page_fit_a_phone(browser: Browser, name: str) -> None:
    browser.show(html_of(name), width=420)
    assert browser.ask(CUT_TABLES) == []


@pytest.mark.parametrize("name", ["hostile", "example"])
def test_a_narrow_screen_scrolls_down_only(browser: Browser, name: str) -> None:
    browser.show(html_of(name), width=360)
    assert browser.ask(STICKING_OUT) == [0, []]
    # Rows of a name and its value fit, however long the value; a flag is never broken.
    assert browser.ask(CUT_PAIRS) == []
    flags = "return [...document.querySelectorAll('main code span')].map(e => e.getClientRects().length)"
    assert set(browser.ask(flags)) <= {1}
    assert browser.ask("return document.title") != "pwned"


@pytest.mark.parametrize(("width", "columns"), [(1600, 2), (700, 1)])
def test_the_first_page_uses_the_width_of_the_screen(browser: Browser, width: int, columns: int) -> None:
    browser.show(html_of("example"), width=width)
    lefts = "return [...document.querySelectorAll('.panel')].map(e => Math.round(e.getBoundingClientRect().left))"
    assert len(set(browser.ask(lefts))) == columns
    assert browser.ask("return document.querySelector('.front').getBoundingClientRect().width") > 0.9 * width - 50


def test_a_long_name_leaves_room_for_the_numbers(browser: Browser) -> None:
    browser.show(html_of("hostile"))
    # Tables of the first page are as wide as their panels, whatever they hold.
    cells = "[...document.querySelectorAll('th, td')].filter(e => !e.closest('.panel'))"
    assert 200 < browser.ask(f"return Math.max(...{cells}.map(e => e.clientWidth))") <= 330


@pytest.mark.parametrize("name", ["example", "hybrid", "llamacpp"])
def test_page_one_prints_on_one_sheet_and_the_evidence_begins_another(browser: Browser, name: str) -> None:
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("no pdftotext on PATH to read the printed pages with")
    browser.show(html_of(name), scheme="dark")
    data = base64.b64decode(browser.tool("Page.printToPDF", preferCSSPageSize=True)["data"])
    printed = subprocess.run([reader, "-layout", "-", "-"], input=data, capture_output=True, check=True).stdout
    first, *rest = " ".join(printed.decode().replace("\f", "\n@\n").split()).split(" @ ")
    assert "Conditions" in first and "What to distrust most" in first and "Contents" not in first
    assert rest and rest[0].startswith("Evidence")

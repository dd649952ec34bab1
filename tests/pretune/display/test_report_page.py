"""The report in a real browser: the system's Chromium, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pretune.analysis import account, importance
from pretune.core import results
from pretune.display import report
from tests.pretune.display.searched import searched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDER = """
[...document.querySelectorAll('main *, header *')].filter(one => !one.closest('.scroll') && !one.closest('pre')
    && !one.closest('.chart') && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(one => one.outerHTML.slice(0, 200))
"""


INK = "getComputedStyle(document.querySelector('.chart text')).fill"
BODY = "getComputedStyle(document.body).color"


def until(page: Page, what: str) -> None:
    """Waits for it by asking: the page lets nobody make a program of text, as playwright's own waiting would."""
    for _ in range(600):
        if page.evaluate(what):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{what} never came")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    name = "a-name-that-is-as-long-as-somebody-would-make-it-who-wants-to-say-all-in-it"
    evil = "<img src=x onerror=alert(1)> " + "unbreakable" * 30
    one = searched(folder / name, trials=60, reason=evil)
    other = searched(folder / "other", trials=20, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "HALVES", 8)
        patch.setattr(importance, "HALVES_OF_FOREST", 2)
        accounts = [account.of(results.read(sweep)) for sweep in (one, other)]
    report.write(report.document(accounts), folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (390, "dark")])
def test_the_page_draws_all_charts_and_fits(browser: Browser, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if scheme == "dark" else "light", offline=True
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append("a name ran as a program"))
    page.goto(page_file.as_uri())
    until(page, "document.documentElement.dataset.drawn !== undefined")
    assert problems == []
    charts, drawn = page.locator(".chart").count(), page.locator(".chart .main-svg >> nth=0").count()
    assert charts > 15
    assert page.locator(".chart:has(.main-svg)").count() == charts, drawn
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(WIDER) == []
    assert page.evaluate(INK) == page.evaluate(BODY), "charts follow light and dark"
    if scheme == "dark":
        page.emulate_media(color_scheme="light")
        until(page, f"{INK} === {BODY}")
    context.close()


def test_the_page_prints_in_ink_on_paper_also_from_a_dark_screen(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(color_scheme="dark", offline=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    until(page, "document.documentElement.dataset.drawn !== undefined")
    page.evaluate("addEventListener('beforeprint', () => { window.paper = document.documentElement.className })")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.paper") == "paper"
    assert page.evaluate("document.documentElement.className") == ""
    context.close()

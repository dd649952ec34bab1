"""The map in a real browser: the system's Chromium, without a network. Pointing at an image shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pretune.analysis.projection import Plane
from pretune.display import image_map
from pretune.display.image_map import Map

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EVIL = "<img src=x onerror=alert(1)></script>"


def drawn(classes: int, count: int = 30) -> Map:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes if classes else np.full(count, -1)
    return Map(
        title=f"Images as {EVIL} sees them",
        plane=Plane(generator.normal(size=(count, 2)), ("component 1", "component 2")),
        thumbnails=[np.full((8, 8, 3), 8 * row, np.uint8) for row in range(count)],
        names=[f"pets/{row}{EVIL}.jpg" for row in range(count)],
        labels=labels,
        class_names=[f"class {label}{EVIL}" for label in range(classes)],
        count=1000,
        method="pca",
        made=["by a test"],
    )


def test_a_page_loads_nothing_and_says_how_many_images_were_drawn() -> None:
    page = image_map.page(drawn(3))
    head = page.partition("<script")[0]
    assert "30 of 1,000 images, drawn at random" in head
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", head)
    assert "default-src 'none'" in head
    assert EVIL not in page
    assert "hidden by a click" in head
    assert "chosen from the list" in image_map.page(drawn(20))
    assert "class" not in re.findall(r'<p class="note">(.*)</p>', image_map.page(drawn(0)))[0]


@pytest.mark.parametrize(
    ("classes", "width", "scheme"),
    [pytest.param(3, 1200, "light", marks=pytest.mark.slow), (20, 375, "dark"), (0, 375, "light")],
)
def test_pointing_at_an_image_shows_it_whatever_its_name(
    browser: Browser, tmp_path: Path, classes: int, width: int, scheme: str
) -> None:
    (tmp_path / "map.html").write_text(image_map.page(drawn(classes)), encoding="utf-8")
    context = browser.new_context(offline=True, viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto((tmp_path / "map.html").as_uri())
    for _ in range(600):
        if page.evaluate("document.documentElement.dataset.drawn === '30'"):
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.querySelectorAll('#map .point').length") == 30
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('#class').offsetParent !== null") == (classes > image_map.LEGEND)
    x, y = page.evaluate(
        "(() => { const box = document.querySelector('#map .point').getBoundingClientRect(); "
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    for _ in range(100):
        if page.evaluate("!document.getElementById('card').hidden"):
            break
        page.wait_for_timeout(50)
    card = page.evaluate("document.getElementById('card').innerText")
    assert "pets/" in card
    assert card.count(EVIL) == (2 if classes else 1)
    assert page.evaluate("document.querySelector('#card img').naturalWidth") == 8
    box = page.evaluate("document.getElementById('card').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= width
    if classes > image_map.LEGEND:
        page.select_option("#class", "3")
        faint = "[...document.querySelectorAll('#map .point')].filter(one => one.style.opacity < 0.1).length"
        assert page.evaluate(faint) == sum(row % classes != 3 for row in range(30))
    assert wrong == []
    context.close()

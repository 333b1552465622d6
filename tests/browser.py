"""Headless Chromium for the tests: what a page draws, says and asks for."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""A browser that draws WebGL without a card and calls nobody."""
SLOW = 120_000
"""Milliseconds after which a page is given up."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the tests that ask for it are skipped, with the reason, where there is none."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install .[dev]")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that was opened, and all that it has said and asked for.

    Attributes:
        said: warnings and errors of its console, and what its scripts did not catch.
        asked: addresses, but for those of data that the page itself holds.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        """Whom it asked; the disk has no name."""
        return {urlsplit(address).hostname or "" for address in self.asked}

    def settled(self) -> None:
        """Wait until what was asked to be drawn is on the screen."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def picture(self, selector: str) -> np.ndarray:
        """What is on the screen there, RGB in [0, 1]."""
        from PIL import Image

        self.settled()
        png = self.page.locator(selector).first.screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float64) / 255


@contextmanager
def visit(browser: Any, address: str, **options: Any) -> Iterator[Visit]:
    """Open a page; `options` are those of Playwright's `new_page`, such as `color_scheme`."""
    page = browser.new_page(**{"viewport": {"width": 600, "height": 700}, **options})
    page.set_default_timeout(SLOW)
    seen = Visit(page)
    page.on(
        "console",
        lambda message: seen.said.append(message.text) if message.type in ("warning", "error") else None,
    )
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("data:", "blob:")) else seen.asked.append(request.url)
        ),
    )
    page.goto(address)
    try:
        yield seen
    finally:
        page.close()

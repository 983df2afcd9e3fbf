"""Pages of the live server in Chromium, for the tests."""

import os
import time
from contextlib import contextmanager

import pytest

from benchmarks.chromium import FOUND

needs_chromium = pytest.mark.skipif(not FOUND, reason="no chromium on the PATH and none named by CHROMIUM")
PATIENCE = 1000 * int(os.environ.get("LIVE_PATIENCE", "60"))  # ms for anything to happen


@contextmanager
def opened(browser, address: str, width: int = 1280, height: int = 900, **how):
    """A page on which the film has begun to play; errors of its script fail the test."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **how)
    context.set_default_timeout(PATIENCE)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    wait(page, "live.players.size && [...live.players.values()][0].video.currentTime > 0.2")
    try:
        yield page
        assert not errors, errors
    finally:
        context.close()


def wait(page, condition: str) -> None:
    """Wait until something is so; the page's own policy forbids playwright's way, which evaluates text in it."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(30)

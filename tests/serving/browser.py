"""Chromium on a live page, for the tests: found on the PATH or named by CHROMIUM, driven by playwright."""

import os
import shutil
import time
from contextlib import contextmanager

import pytest

FOUND = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(not FOUND, reason="no chromium on the PATH and none named by CHROMIUM")
PATIENCE = 1000 * int(os.environ.get("LIVE_PATIENCE", "60"))  # ms for anything to happen
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]


@contextmanager
def chromium():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=ARGUMENTS, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


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


COLOUR = """(film) => {
  const video = live.players.get(film).video, canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 32, 32);
  const data = pen.getImageData(0, 0, 32, 32).data, sums = [0, 0, 0];
  for (let i = 0; i < data.length; i++) if (i % 4 < 3) sums[i % 4] += data[i];
  return sums.map((sum) => sum / 1024);
}"""

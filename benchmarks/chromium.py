"""A Chromium without a window, for the live page: found on the PATH or named by CHROMIUM."""

import os
import shutil
from contextlib import contextmanager

FOUND = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]


@contextmanager
def chromium(patience: float = 60_000):
    """The browser; patience: ms for it to start."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=ARGUMENTS, timeout=patience)
        try:
            yield browser
        finally:
            browser.close()

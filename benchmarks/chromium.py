"""A Chromium without a window, for the live page: found on the PATH or named by CHROMIUM."""

import os
import shutil
from contextlib import contextmanager

FOUND = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]
COLOUR = """(film) => {
  const video = live.players.get(film).video, canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 32, 32);
  const data = pen.getImageData(0, 0, 32, 32).data, sums = [0, 0, 0];
  for (let i = 0; i < data.length; i++) if (i % 4 < 3) sums[i % 4] += data[i];
  return sums.map((sum) => sum / 1024);
}"""  # means of red, green and blue over the picture that a film shows now


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

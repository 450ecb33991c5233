"""Chromium for tests: without a screen, without the network, and in a directory of its own."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--window-size=1280,900",
)  # fmt: skip


@contextmanager
def chromium(directory: Path) -> Iterator[Any]:
    """A browser, which has nothing to complain of at its end; skips the test if none is installed."""
    browser, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver_program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*QUIET, f"--user-data-dir={directory}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        yield driver
        complaints = driver.get_log("browser")
    finally:
        driver.quit()
    assert not complaints

"""A real Chromium without a window: Debian's packages `chromium` and `chromium-driver`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.dashboard.conftest import Running

WAIT_S = 30
PHONE, DESK = 360, 1280
IS_THERE = """
const words = document.getElementById('connection-words');
return document.readyState === 'complete' && document.querySelector('h1') !== null
  && (document.getElementById('live') === null || words.textContent === 'Live');
"""


def find_programs() -> tuple[str, str]:
    """Browser and driver; the test is skipped where they are not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver here: on Debian, apt-get install chromium chromium-driver")
    return browser, driver


class Browser:
    def __init__(self, profile_dir: Path) -> None:
        browser, driver = find_programs()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
            options.add_argument(word)
        if os.getuid() == 0:
            options.add_argument("--no-sandbox")  # Chromium's own needs a user that is not root
        options.add_argument(f"--user-data-dir={profile_dir}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def look(self, *, width: int = DESK, scheme: str = "light") -> None:
        """As on a screen of that width, by a user who likes that scheme."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def sign_in(self, running: Running) -> None:
        """By a link, as a user does."""
        self.driver.get("about:blank")
        self.driver.get(running.dashboard.link())
        self.until(lambda: "sign-in" not in self.driver.current_url)

    def go(self, running: Running, path: str = "") -> None:
        """To a page; it is whole and, where it renews itself, has done so once."""
        self.driver.get(f"{running.dashboard.url}/{path}")
        self.until(lambda: self.run(IS_THERE))

    def until(self, is_so: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: is_so())

    def text(self, selector: str = "body") -> str:
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).text)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Keys on whatever has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def troubles(self) -> list[str]:
        """What the browser complained about since the last time: refused scripts, failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        self.driver.quit()

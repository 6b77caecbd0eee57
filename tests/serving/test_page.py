"""The page in a real browser: what it shows is what the server writes, and nothing that it writes is markup."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from coda.serving.text import Detokenizer
from tests.serving.conftest import Serve, Served, slowed, wait_until

PAGE = Path(__file__).resolve().parents[2] / "coda" / "serving" / "page"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PROMPT, SUFFIX = "def f(x):\n    ", "\n    return <b>y</b>\n"


class Page:
    """The page, and what a person does with it."""

    def __init__(self, browser: Chrome, served: Served) -> None:
        self.browser = browser
        browser.get_log("browser")
        browser.get(f"http://127.0.0.1:{served.port}/")

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def fill(self, **values: Any) -> None:
        for name, value in values.items():
            self[name].clear()
            self[name].send_keys(str(value))

    def run(self, **values: Any) -> str:
        """Denoise to the end; return what the status line says."""
        self.fill(**values)
        self["run"].click()
        self.wait_for_end()
        return self["status"].text

    def wait_for_end(self) -> None:
        wait_until(lambda: not self["stop"].is_enabled())

    def complaints(self) -> list[Any]:
        """Errors of scripts, and violations of the content security policy."""
        return [entry for entry in self.browser.get_log("browser") if "the server responded with" not in str(entry)]

    def cells(self, kind: str = "token") -> list[WebElement]:
        return self["canvas"].find_elements(By.CLASS_NAME, kind)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Chrome, served: Served) -> Page:
    page = Page(browser, served)
    wait_until(lambda: "tiny-coder" in page["model"].text)
    return page


@pytest.mark.slow
def test_a_gap_is_denoised_before_ones_eyes(page: Page, served: Served) -> None:
    settings = {"max_tokens": 12, "seed": 3, "temperature": 1}
    status = page.run(prompt=PROMPT, suffix=SUFFIX, **settings)
    expected = served.alone(PROMPT, SUFFIX, 12, 3, temperature=1.0)
    assert page["canvas"].get_attribute("textContent") == PROMPT + expected + SUFFIX
    assert re.fullmatch(r"\d+ tokens in 12 steps and [\d.]+ s; .*\.", status), status
    assert (page["step"].text, page["masked"].text) == ("12", "0")
    assert float(page["speed"].text) > 0
    hues = {cell.get_attribute("style") for cell in page.cells()}
    assert len(hues) == 12, "every step has a colour of its own"
    assert "step 12" in {cell.get_attribute("title") for cell in page.cells()}
    assert page.complaints() == []


@pytest.mark.slow
def test_a_draft_is_shown_while_it_is_made_and_again(page: Page, served: Served) -> None:
    page.fill(prompt=PROMPT, max_tokens=20, seed=1)
    with slowed(served.model, 0.05):
        page["run"].click()
        wait_until(lambda: int(page["step"].text) >= 4)
        assert 0 < len(page.cells("mask")) <= 16
        page.wait_for_end()
    assert page.cells("mask") == []
    final = page["canvas"].get_attribute("textContent")
    for key, masks in ((Keys.HOME, 20), (Keys.ARROW_RIGHT, 19), (Keys.END, 0)):
        page["time"].send_keys(key)
        assert len(page.cells("mask")) == masks
    assert page["canvas"].get_attribute("textContent") == final


@pytest.mark.slow
@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_stops_the_server(page: Page, served: Served, way: str) -> None:
    page.fill(prompt=PROMPT, max_tokens=60)
    with slowed(served.model, 0.05) as sizes:
        page["prompt"].send_keys(Keys.CONTROL, Keys.ENTER)
        wait_until(lambda: int(page["step"].text) >= 2)
        if way == "button":
            page["stop"].click()
        else:
            page["prompt"].send_keys(Keys.ESCAPE)
        wait_until(lambda: page["status"].text == "Stopped.")
        wait_until(lambda: served.metric("coda_running_rows") == 0)
        assert len(sizes) < 60
    assert not page["stop"].is_enabled()


@pytest.mark.slow
def test_nothing_that_is_written_becomes_markup(page: Page, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">"
    title = page.browser.title
    monkeypatch.setattr(Detokenizer, "text", lambda self, ids: evil)
    monkeypatch.setattr(served.app.state.engine.detokenizer, "_single", {})
    assert " tokens in " in page.run(prompt=evil, suffix=evil, max_tokens=2)
    assert page["canvas"].get_attribute("textContent") == evil * 4
    assert page["canvas"].find_elements(By.CSS_SELECTOR, "img, script") == []
    assert page.browser.title == title
    script = "return fetch('data:text/plain,x').then(() => 'loaded', () => 'refused')"
    assert page.browser.execute_script(script) == "refused", "the policy lets the page reach other places"


@pytest.mark.slow
def test_errors_are_shown_and_gone_with_the_next_run(page: Page) -> None:
    assert "the model has 160 positions" in page.run(prompt=PROMPT, max_tokens=1000)
    assert "bad" in page["status"].get_attribute("class")
    assert " tokens in " in page.run(max_tokens=3)
    assert "bad" not in page["status"].get_attribute("class")
    page.browser.execute_script("fetch = () => Promise.reject(new TypeError('down'))")
    assert page.run() == "The server cannot be reached."


@pytest.mark.slow
def test_a_chat_shows_the_answer(page: Page, served: Served) -> None:
    page["chat"].click()
    assert not page["suffix"].is_enabled()
    page.run(prompt="hello", max_tokens=8, seed=2, temperature=1)
    asked = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert page["canvas"].get_attribute("textContent") == served.alone(asked, tokens=8, seed=2, temperature=1.0)


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_out_of_the_address(browser: Chrome, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("open sesame")
    with serve(api_key_file=str(tmp_path / "keys")) as served:
        page = Page(browser, served)
        wait_until(page["key"].is_displayed)
        assert "no key, or a wrong one" in page["status"].text
        assert "no key, or a wrong one" in page.run(key="wrong")
        page.fill(key="open sesame")
        page["key"].send_keys(Keys.TAB)
        wait_until(lambda: "tiny-coder" in page["model"].text)
        assert " tokens in " in page.run(max_tokens=3)
        assert "sesame" not in page.browser.current_url


@pytest.mark.slow
def test_it_fits_a_phone_and_both_themes(page: Page) -> None:
    try:
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        )
        page.run(prompt="x" * 300, max_tokens=90)
        assert page.browser.execute_script("return document.documentElement.scrollWidth") == 360
        grounds = set()
        for _ in range(2):
            grounds.add(page["canvas"].value_of_css_property("color"))
            page["theme"].click()
        assert len(grounds) == 2
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_every_control_is_reached_by_keyboard_and_named(page: Page) -> None:
    page["theme"].send_keys("")
    reached, named = [], []
    for _ in range(12):
        focused = page.browser.switch_to.active_element
        reached.append(focused.get_attribute("id"))
        named.append(focused.accessible_name)
        focused.send_keys(Keys.TAB)
    assert reached == [
        *("theme", "prompt", "suffix", "max_tokens", "steps", "alg", "block_length", "temperature", "seed", "chat"),
        *("run", "canvas"),
    ]
    assert all(named)


def test_the_page_is_served_under_a_strict_policy_and_loads_nothing_from_elsewhere(served: Served) -> None:
    for path in ("/", "/page/app.js", "/page/style.css", "/page/icon.svg"):
        status, headers, body = served.request("GET", path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", body)
    assert "innerHTML" not in (PAGE / "app.js").read_text()

"""The dashboard in a real browser: live, by keyboard, on a phone, in the dark, and with hostile content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from selenium.webdriver.common.keys import Keys

from clorefleet.domain.deployment import Desired
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import Phase
from tests.dashboard.browser import PHONE, Browser
from tests.dashboard.conftest import Running
from tests.dashboard.seeded import COMING_UP, GLM, TINY, fill_hostile
from tests.fleet.builders import NOW

PAGES = ("", "d/tiny", "d/glm", "timeline", "costs", "plans", "events", "hosts", "hosts/120", "logs")
ASKING = ("d/tiny/stop", "d/tiny/scale", "d/tiny/scale?replicas=3")
TABS_MAX = 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def shown(browser: Browser, running: Running) -> Running:
    """A dashboard that the browser has signed in to."""
    browser.look()
    browser.sign_in(running)
    browser.troubles()
    return running


def wish_of(running: Running, name: str = TINY):
    with running.store.read() as tx:
        return tx.deployment(DeploymentId(name))


def tab_to(browser: Browser, words: str) -> None:
    """Press Tab until something with those words has the focus, as somebody without a mouse does."""
    for _ in range(TABS_MAX):
        browser.press(Keys.TAB)
        if browser.run("return document.activeElement.innerText || ''").strip().replace("\n", " ") == words:
            return
    raise AssertionError(f"Tab never comes to “{words}”")


def test_a_link_signs_in_once_and_leaves_no_code_behind(browser: Browser, running: Running):
    link = running.dashboard.link()
    browser.driver.get("about:blank")
    browser.driver.get(link)
    browser.until(lambda: "Fleet" in browser.driver.title)
    assert "#" not in browser.driver.current_url
    browser.driver.delete_all_cookies()
    browser.driver.get("about:blank")
    browser.driver.get(link)
    browser.until(lambda: "used up" in browser.text())
    assert link.partition("#")[2] not in browser.driver.page_source


def test_every_phase_is_shown_with_its_progress_and_money(browser: Browser, shown: Running):
    text = browser.text()
    for phase in (*COMING_UP, Phase.SERVING, Phase.DRAINING):
        assert phase.value in text
    assert "412 of 744 GB" in text and "55 %" in text
    assert "the driver is too old for CUDA 13" in text
    assert "$0.3282/hour" in text and "of $120.00" in text
    assert browser.run("return document.querySelectorAll('[aria-current=step]').length") == len(COMING_UP) + 1
    assert browser.troubles() == []


NEWS = "return document.querySelector('[aria-live=polite]').textContent"


def test_the_page_renews_itself_without_a_reload(browser: Browser, shown: Running):
    browser.until(lambda: browser.text("#connection") == "Live")
    browser.run("window.mark = 'same page'")
    with shown.store.write() as tx:
        [syncing] = [each for each in tx.open_leases() if each.phase is Phase.SYNCING]
        tx.put_lease(replace(syncing, progress="all 744 GB verified", progress_fraction=1.0))
        tx.add_event(Event(NOW, "job_done", "The weights of server 104 are there.", GLM, LeaseId("l4")))
    browser.until(lambda: "all 744 GB verified" in browser.text() and "100 %" in browser.text())
    browser.until(lambda: "The weights of server 104 are there." in browser.run(NEWS))
    assert browser.run("return window.mark") == "same page"


def test_what_has_the_focus_keeps_it_while_the_page_renews_itself(browser: Browser, shown: Running):
    browser.until(lambda: browser.text("#connection") == "Live")
    browser.run("document.getElementById('stop-glm').focus()")
    with shown.store.write() as tx:
        tx.add_event(Event(NOW, "told", "Something happened above it.", GLM))
        for each in tx.open_leases():
            if each.deployment_id == TINY:
                tx.put_lease(replace(each, progress="another line in the first card"))
    browser.until(lambda: "another line in the first card" in browser.text())
    assert browser.run("return document.activeElement.id") == "stop-glm"


def test_a_lost_connection_is_said_with_the_time_of_what_is_shown(browser: Browser, shown: Running):
    browser.until(lambda: browser.text("#connection") == "Live")
    shown.dashboard.sessions.close(browser.driver.get_cookie("clorefleet-dashboard")["value"])
    browser.until(
        lambda: "Signed out" in browser.text("#connection") and "As of" in browser.text("#connection")
    )


def test_a_deployment_is_stopped_after_a_question_by_keyboard_alone(browser: Browser, shown: Running):
    tab_to(browser, "Stop tiny")
    browser.press(Keys.ENTER)
    browser.until(lambda: "Stop tiny?" in browser.text("h1"))
    assert "ends $0.3282 an hour" in browser.text() and wish_of(shown).desired is Desired.RUNNING
    tab_to(browser, "Keep it")
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.text("h1") == "tiny")
    assert wish_of(shown).desired is Desired.RUNNING
    tab_to(browser, "Stop tiny")
    browser.press(Keys.ENTER)
    browser.until(lambda: "Stop tiny?" in browser.text("h1"))
    tab_to(browser, "Stop tiny")
    browser.press(Keys.ENTER)
    browser.until(lambda: "stopping" in browser.text("main"))
    assert wish_of(shown).desired is Desired.STOPPED and shown.wakes == [None]


def test_another_number_of_replicas_is_kept_after_its_price_was_shown(browser: Browser, shown: Running):
    browser.go(shown, "d/tiny")
    tab_to(browser, "Scale tiny")
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.text("h1") == "Scale tiny")
    browser.run("document.getElementById('replicas').focus()")
    browser.press(Keys.CONTROL + "a", "3", Keys.ENTER)
    browser.until(lambda: browser.text("h1") == "Keep 3 of tiny?")
    assert "$15.75 a day more" in browser.text() and wish_of(shown).replicas == 1
    tab_to(browser, "Keep 3")
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.text("h1") == "tiny")
    assert wish_of(shown).replicas == 3


def test_hostile_content_is_shown_and_never_runs(browser: Browser, serve: Callable[..., Running]):
    running = serve(fill_hostile)
    browser.look()
    browser.sign_in(running)
    browser.troubles()
    for path in (
        "",
        "d/tiny",
        "timeline",
        "costs",
        "plans",
        "events",
        "hosts",
        "hosts/66",
        "logs",
        "d/tiny/stop",
    ):
        browser.go(running, path)
        assert browser.run("return document.title").endswith("clorefleet (sandbox)")
        assert (
            browser.run("return document.querySelectorAll('main img, main script, [onmouseover]').length")
            == 0
        )
        assert browser.troubles() == [], path
    browser.go(running)
    assert "<script>document.title=" in browser.text()


OVERFLOWING = """
return [...document.querySelectorAll('body *')]
  .filter(each => each.getBoundingClientRect().right > window.innerWidth + 1)
  .filter(each => each.closest('.visually-hidden, thead, .steps span, .skip') === null)
  .map(each => each.outerHTML.slice(0, 120));
"""


def test_nothing_is_wider_than_a_phone(browser: Browser, serve: Callable[..., Running]):
    for running in (serve(), serve(fill_hostile)):
        browser.look(width=PHONE)
        browser.sign_in(running)
        for path in (*PAGES[:-2], "logs", *ASKING):
            browser.go(running, path)
            assert browser.run("return document.documentElement.scrollWidth") <= PHONE, (
                path,
                browser.run(OVERFLOWING),
            )


LOW_CONTRAST = """
const parts = text => text.match(/[\\d.]+/g).map(Number);
const lum = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = element => {
  for (let e = element; e !== null; e = e.parentElement) {
    const [r, g, b, alpha] = parts(getComputedStyle(e).backgroundColor);
    if (alpha === undefined || alpha === 1) return [r, g, b];
    if (alpha !== 0) throw new Error('a ground that is half there: ' + e.outerHTML.slice(0, 80));
  }
  throw new Error('nothing has a ground');
};
const found = [];
let seen = 0;
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.nodeValue.trim() !== '');
  if (!own || e.closest('noscript, svg') !== null || !e.checkVisibility()) continue;
  const [one, other] = [lum(parts(getComputedStyle(e).color)), lum(ground(e))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  seen += 1;
  if (ratio < 4.5) found.push([ratio.toFixed(2), e.outerHTML.slice(0, 100)]);
}
return [seen, found];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_a_contrast_of_four_and_a_half_at_least(browser: Browser, shown: Running, scheme: str):
    browser.look(scheme=scheme)
    grounds = set()
    for path in (*PAGES, *ASKING, "d/nobody"):
        browser.go(shown, path)
        seen, found = browser.run(LOW_CONTRAST)
        assert seen > 5 and found == [], path
        grounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 1


def test_the_two_schemes_differ_and_motion_stops_where_it_is_not_wanted(browser: Browser, shown: Running):
    grounds = []
    for scheme in ("light", "dark"):
        browser.look(scheme=scheme)
        grounds.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    assert browser.run("return document.getAnimations().length") == 0


NAMELESS = """
const named = e => (e.getAttribute('aria-label') || e.innerText || e.textContent || '').trim() !== '';
const broken = [...document.querySelectorAll('a, button, progress, meter, svg[role=img], nav, [role=region]')]
  .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 100));
for (const e of document.querySelectorAll('input:not([type=hidden])'))
  if (e.labels.length === 0) broken.push(e.outerHTML);
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
if (new Set(ids).size !== ids.length) broken.push('the same id twice');
if (document.querySelectorAll('h1').length !== 1) broken.push('not one h1');
if (document.querySelectorAll('main').length !== 1) broken.push('not one main');
if (document.documentElement.lang !== 'en') broken.push('no language');
let last = 1;
for (const h of document.querySelectorAll('h1, h2, h3')) {
  const level = Number(h.tagName[1]);
  if (level > last + 1) broken.push('a level is left out: ' + h.innerText);
  last = level;
}
return broken;
"""


def test_everything_has_a_name_and_headings_leave_out_no_level(browser: Browser, shown: Running):
    for path in (*PAGES, *ASKING):
        browser.go(shown, path)
        assert browser.run(NAMELESS) == [], path


def test_the_first_tab_skips_to_the_content_and_the_focus_is_seen(browser: Browser, shown: Running):
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    browser.press(Keys.ENTER)
    assert browser.run("return location.hash") == "#main"
    tab_to(browser, "Scale tiny")
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"

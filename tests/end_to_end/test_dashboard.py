"""The dashboard against a daemon that lives: what is wished for on its pages, the fleet becomes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import CommandLine
from tests.dashboard.conftest import Client
from tests.end_to_end.test_deploy import DEPLOY, a_sandbox, market

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(500)]
NAME = "smollm2-135m"
WAIT_S = 150.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CommandLine]:
    yield from a_sandbox(tmp_path)


@pytest.fixture
def browser(home: CommandLine) -> Iterator[Client]:
    """Requests as the pages make them, signed in by the link that the command printed."""
    program = "from clorefleet.cli.main import main; raise SystemExit(main())"
    serving = subprocess.Popen(
        [sys.executable, "-c", program, "dashboard", "--sandbox", "--json"],
        cwd=home.home,
        env=home.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        yield signed_in(document(serving.stdout)["link"])
    finally:
        serving.terminate()
        serving.wait(timeout=30)


def document(lines: Iterator[str]) -> dict:
    """The first whole JSON document of what is printed; the program goes on."""
    text = ""
    for line in lines:
        text += line
        try:
            return json.loads(text)
        except ValueError:
            continue
    raise AssertionError(f"no document: {text}")


def signed_in(link: str) -> Client:
    where = urlsplit(link)
    dashboard = SimpleNamespace(port=where.port, base=where.path.removesuffix("/sign-in"), link=lambda: link)
    made = Client(SimpleNamespace(dashboard=dashboard, origin=f"http://127.0.0.1:{where.port}"))
    assert made.sign_in().status == 303 and made.cookie
    return made


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until, f"{what}: not within {WAIT_S:.0f} s"
        time.sleep(0.5)


def phases(home: CommandLine) -> list[str]:
    [found] = home("status", "--sandbox", "--all", "--json").json["deployments"]
    return [replica["phase"] for replica in found["replicas"]]


def live_orders(home: CommandLine) -> int:
    return sum(1 for order in market(home, "orders")["orders"] if order["live"])


def test_what_is_wished_for_on_its_pages_the_daemon_does(home: CommandLine, browser: Client):
    deployed = home(*DEPLOY)
    assert deployed.code == 0, deployed.err
    more = browser.token(f"d/{NAME}/scale?replicas=2")
    assert live_orders(home) == 1, "asking what it would cost rents nothing"
    assert browser(f"d/{NAME}/scale", form=more).status == 303
    wait_until(lambda: phases(home) == ["serving"] * 2, "a second replica serves")
    assert live_orders(home) == 2 and "2 serving, 2 wanted" in browser("").text

    assert browser(f"d/{NAME}/scale", form=browser.token(f"d/{NAME}/scale?replicas=1")).status == 303
    wait_until(lambda: phases(home) == ["serving"], "one replica is given back")
    wait_until(lambda: live_orders(home) == 1, "the market lists one order")

    assert browser(f"d/{NAME}/stop", form=browser.token(f"d/{NAME}/stop")).status == 303
    wait_until(lambda: phases(home) == [], "the last is given back")
    assert live_orders(home) == 0

"""The dashboard's process: one per profile, on loopback, and a clean end."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clorefleet.dashboard.server import known_url, listen, only_one, tell_url
from clorefleet.domain.errors import DaemonError
from tests.cli.conftest import CommandLine, cli  # noqa: F401 - a fixture
from tests.dashboard.conftest import Client, Running

MAIN = "from clorefleet.cli.main import main; raise SystemExit(main())"


def test_it_listens_on_loopback_alone():
    with listen(0, or_any=False) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_left_for_a_free_one_unless_it_was_asked_for():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with listen(taken, or_any=True) as listener:
            assert listener.getsockname()[1] != taken
        with pytest.raises(DaemonError, match=f"port {taken}"):
            listen(taken, or_any=False)


def test_a_profile_has_one_dashboard_and_a_killed_one_leaves_nothing_behind(tmp_path: Path):
    tell_url(tmp_path, "http://127.0.0.1:1/killed")
    with only_one(tmp_path) as is_only:
        assert is_only and known_url(tmp_path) is None
        tell_url(tmp_path, "http://127.0.0.1:2/alive")
        with only_one(tmp_path) as another:
            assert not another
        assert known_url(tmp_path) == "http://127.0.0.1:2/alive"
    assert known_url(tmp_path) is None


def test_an_end_does_not_wait_for_the_pages_that_are_open(serve: Callable[..., Running]):
    running = serve()
    client = Client(running)
    client.sign_in()
    connection = http.client.HTTPConnection("127.0.0.1", running.dashboard.port, timeout=20)
    headers = {"Host": f"127.0.0.1:{running.dashboard.port}", "Cookie": client.cookie}
    connection.request("GET", f"{running.dashboard.base}/?live=1", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline().startswith(b"data: ")
    ended = threading.Thread(target=running.dashboard.ended.set)
    ended.start()
    assert answer.read() is not None  # the stream ends, and with it this reading
    connection.close()
    ended.join()


def test_more_live_pages_than_a_user_has_are_refused(serve: Callable[..., Running]):
    running = serve()
    running.dashboard._streams = 12
    client = Client(running)
    client.sign_in()
    assert client("?live=1").status == 503
    assert client("").status == 200


@pytest.fixture
def started(cli: CommandLine) -> Iterator[tuple[subprocess.Popen[str], str]]:  # noqa: F811
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "dashboard"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=cli.home,
        env=cli.env,
    )
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def sign_in_at(link: str) -> int:
    """What a link's code is answered with."""
    parts = urlsplit(link)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0, timeout=20)
    body = f"code={parts.fragment}"
    form = {"Origin": f"http://{parts.netloc}", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", parts.path, body, form)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_command_prints_a_link_a_second_one_to_the_same_and_ends_on_a_signal(
    cli: CommandLine,  # noqa: F811
    started: tuple[subprocess.Popen[str], str],
):
    process, link = started
    second = cli("dashboard", "--json").json
    assert not second["is_new"] and second["link"].partition("#")[0] == link.partition("#")[0]
    assert [sign_in_at(each) for each in (link, second["link"], link)] == [303, 303, 401]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    state = cli.home / "home" / "state" / "default"
    assert known_url(state) is None and list((state / "dashboard-links").iterdir()) == []

from __future__ import annotations

import http.client
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from clorefleet.config.places import make_private_dir
from clorefleet.dashboard.app import Dashboard
from clorefleet.dashboard.reading import DaemonSeen, Sources
from clorefleet.dashboard.server import DashboardServer, listen
from clorefleet.dashboard.sign_in import Links, Sessions
from clorefleet.store.database import Store, open_store
from tests.dashboard.seeded import fill
from tests.fleet.builders import NOW

Seed = Callable[[Store], object]


@dataclass
class Hand:
    """A clock that moves only when told."""

    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    def move(self, by: timedelta) -> None:
        self.at += by


@dataclass
class Running:
    """A dashboard that serves, and what reaches it."""

    dashboard: Dashboard
    store: Store
    clock: Hand
    wakes: list[None] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    tails: dict[str, list[str]] = field(default_factory=dict)
    """By lease."""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.dashboard.port}"


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Seed], Path]:
    """A file with what a seed wrote, made once for all tests of a process."""
    made: dict[Seed, Path] = {}

    def file_of(seed: Seed) -> Path:
        if seed not in made:
            file = tmp_path_factory.mktemp("seeded") / "clorefleet.db"
            store = open_store(f"sqlite:///{file}")
            seed(store)
            store.dispose()
            made[seed] = file
        return made[seed]

    return file_of


@pytest.fixture
def serve(tmp_path: Path, stores: Callable[[Seed], Path]) -> Iterator[Callable[..., Running]]:
    """Start a dashboard on a store."""
    stops: list[Callable[[], None]] = []

    def start(seed: Seed = fill, *, live_every_s: float = 0.05) -> Running:
        file = make_private_dir(tmp_path / "state") / f"{len(stops)}.db"
        shutil.copy(stores(seed), file)
        store = open_store(f"sqlite:///{file}")
        clock, wakes = Hand(), []
        tails = {"l5": ["loading shard 3 of 59", "loading shard 4 of 59"]}
        log = ["2026-11-24 11:59:58 INFO action launch lease_id=l5", "2026-11-24 11:59:59 INFO tick_done"]
        listener = listen(0, or_any=False)
        dashboard = Dashboard(
            store=store,
            sources=Sources(
                find_daemon=lambda: DaemonSeen(4711, "http://127.0.0.1:8411"),
                daemon_log=lambda lines: log[-lines:],
                log_tail=lambda lease_id: tails.get(lease_id, []),
            ),
            now=clock.now,
            links=Links(tmp_path / "state", clock.now),
            sessions=Sessions(clock.now),
            wake=lambda: wakes.append(None),
            port=listener.getsockname()[1],
            profile_name="sandbox",
            flag=" --sandbox",
            is_sandbox=True,
            live_every_s=live_every_s,
        )
        server = DashboardServer(dashboard, listener)
        server.start()
        stops.append(server.stop)
        stops.append(store.dispose)
        return Running(dashboard, store, clock, wakes, log, tails)

    yield start
    for stop in stops:
        stop()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Client:
    """A browser's requests without a browser: any header can be bent. Never follows a redirect."""

    running: Running
    cookie: str = ""

    def __call__(
        self,
        path: str,
        *,
        form: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
    ) -> Answer:
        where = path if path.startswith("/") else f"{self.running.dashboard.base}/{path}"
        body = None if form is None else urlencode(form)
        sent = {"Host": f"127.0.0.1:{self.running.dashboard.port}"}
        if self.cookie:
            sent["Cookie"] = self.cookie
        if form is not None:
            sent |= {"Origin": self.running.origin, "Content-Type": "application/x-www-form-urlencoded"}
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.running.dashboard.port, timeout=20)
        try:
            connection.putrequest(method or ("GET" if form is None else "POST"), where, skip_host=True)
            for name, value in sent.items():
                if value:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(None if body is None else body.encode())
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read().decode())
        finally:
            connection.close()

    def sign_in(self) -> Answer:
        answer = self("sign-in", form={"code": urlsplit(self.running.dashboard.link()).fragment})
        self.cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        return answer

    def token(self, path: str) -> dict[str, str]:
        """The hidden fields of a page's form."""
        page = self(path).text
        return dict(
            re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.partition("<main")[2])
        )


@pytest.fixture
def running(serve: Callable[..., Running]) -> Running:
    return serve()


@pytest.fixture
def client(running: Running) -> Client:
    """Signed in."""
    made = Client(running)
    made.sign_in()
    return made

"""`logs --follow`: what is there, then what comes, until it is interrupted."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.event import Event
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import NOW, deployment

LINE_S_MAX = 60.0


@pytest.fixture
def store(cli: CommandLine) -> Iterator[Store]:
    """Of the default profile, with one deployment."""
    folder = cli.home / "home" / "state" / "default"
    folder.mkdir(parents=True, mode=0o700)
    opened = open_store(f"sqlite:///{folder / 'clorefleet.db'}")
    wish: Deployment = deployment("tiny")
    with opened.write() as tx:
        tx.put_deployment(wish)
        tx.add_event(Event(NOW, "deployment_waits", "first", wish.deployment_id))
    yield opened
    opened.dispose()


def happens(store: Store, text: str) -> None:
    with store.write() as tx:
        tx.add_event(Event(NOW, "deployment_waits", text, deployment("tiny").deployment_id))


@contextmanager
def following(cli: CommandLine, *words: str) -> Iterator[tuple[queue.Queue[str], subprocess.Popen[str]]]:
    """The lines of a command that does not end by itself, as they come."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from clorefleet.cli.main import main; raise SystemExit(main())", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=cli.home,
        env=cli.env,
        # A shell that runs the tests in the background has SIGINT ignored, also in their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True)
    reader.start()
    try:
        yield lines, process
    finally:
        process.kill()
        process.wait()
        reader.join(10)


def test_events_are_followed_from_what_is_there_to_what_comes(cli: CommandLine, store: Store):
    with following(cli, "logs", "tiny", "--follow") as (lines, process):
        assert lines.get(timeout=LINE_S_MAX).endswith("  first\n")
        happens(store, "second")
        assert lines.get(timeout=LINE_S_MAX).endswith("  second\n")
        happens(store, "third")
        happens(store, "fourth")
        assert [lines.get(timeout=LINE_S_MAX).split()[-1] for _ in range(2)] == ["third", "fourth"]
        process.send_signal(signal.SIGINT)
        assert process.wait(LINE_S_MAX) == 130
    assert lines.empty(), "something was told twice"


def test_following_leaves_out_nothing_that_comes_however_few_were_asked_for(cli: CommandLine, store: Store):
    """-n says how many of those that have been."""
    happens(store, "second")
    with following(cli, "logs", "--follow", "-n", "1") as (lines, _):
        assert lines.get(timeout=LINE_S_MAX).endswith("  second\n")
        with store.write() as tx:  # one tick
            for text in ("third", "fourth", "fifth"):
                tx.add_event(Event(NOW, "deployment_waits", text, deployment("tiny").deployment_id))
        came = [lines.get(timeout=LINE_S_MAX).split()[-1] for _ in range(3)]
        assert came == ["third", "fourth", "fifth"]


def test_for_a_program_only_what_happened_is_told(cli: CommandLine, store: Store):
    """One JSON document a line for each thing that happened, and none while nothing does."""
    with following(cli, "logs", "--follow", "--json") as (lines, _):
        for text in ("first", "second"):
            assert json.loads(lines.get(timeout=LINE_S_MAX))["text"] == text
            happens(store, "second")

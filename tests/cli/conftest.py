"""The command line as a user meets it: a process, a home of its own, and a simulated market."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clorefleet.sandbox.settings import SandboxSettings
from clorefleet.sandbox.thread import RunningSandbox

PROGRAM = "from clorefleet.cli.main import main; raise SystemExit(main())"


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class CommandLine:
    home: Path
    env: dict[str, str]
    timeout_s: float = 180

    def __call__(self, *words: str, **env: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.home,
            env=self.env | env,
            timeout=self.timeout_s,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    def answered(self, answer: str, *words: str) -> Run:
        """At a terminal, where somebody types `answer` at the question."""
        ours, theirs = os.openpty()
        try:
            os.write(ours, answer.encode() + b"\n")
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, *words],
                capture_output=True,
                text=True,
                stdin=theirs,
                cwd=self.home,
                env=self.env,
                timeout=self.timeout_s,
            )
        finally:
            os.close(ours)
            os.close(theirs)
        return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
    return CommandLine(tmp_path, clean | {"CLOREFLEET_HOME": str(tmp_path / "home"), "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSandbox]:
    """A market without nodes, for commands that go no further than it."""
    settings = SandboxSettings(
        tmp_path_factory.mktemp("market"), market_only=True, call_interval_real_s=0.0, server_count=3200
    )
    with RunningSandbox(settings) as sandbox:
        yield sandbox


@pytest.fixture
def account(cli: CommandLine, market: RunningSandbox) -> CommandLine:
    """The default profile with a real account's settings: key and address, here of the simulated market."""
    return CommandLine(
        cli.home,
        cli.env
        | {
            "CLORE_API_KEY": market.api_key,
            "CLORE_API_URL": market.market_url,
            # No test asks a service on the network: what answers here stands for the hub.
            "HF_ENDPOINT": market.market_url,
        },
    )

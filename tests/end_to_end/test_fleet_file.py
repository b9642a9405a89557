"""A fleet file from `apply` to a serving replica, told by a command, followed downwards by the daemon."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(400)]
WAIT_S = 300
FLEET = """
[fleet]
budget = "30/day"
timezone = "Europe/Berlin"

[deployments.small]
model = "smollm2-135m"
budget = "16/day"
replicas = 0

[[deployments.small.schedule.windows]]
name = "always"
start = "00:00"
end = "24:00"
replicas = 1

[[notify.command]]
argv = ["/usr/bin/tee", "-a", "{told}"]
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CommandLine]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
    cli = CommandLine(tmp_path, env | {"CLOREFLEET_HOME": str(tmp_path / "home"), "NO_COLOR": "1"})
    assert cli("sandbox", "serve").code == 0
    yield cli
    cli("stop", "--all", "--sandbox")
    cli("sandbox", "stop")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def state(home: CommandLine) -> str:
    [small] = home("status", "--sandbox", "--json").json["deployments"]
    return small["state"]


def test_a_file_is_applied_told_and_followed_downwards(home: CommandLine):
    told = home.home / "told"
    file = home.home / "fleet.toml"
    file.write_text(FLEET.format(told=told), "utf-8")
    file.chmod(0o600)
    assert "+ small is new" in home("diff", "--sandbox").out
    applied = home("apply", "--sandbox")
    assert applied.code == 0 and "at most $16.00 a day" in applied.out
    wait_until(lambda: state(home) == "serving" and told.exists())
    assert json.loads(told.read_text("utf-8").splitlines()[-1])["kind"] == "ready"
    again = home("apply", "--sandbox")
    assert again.code == 0 and "Everything is as" in again.out
    shown = home("schedule", "show", "--sandbox", "--json").json
    assert shown[0]["transitions"][0]["replicas"] == 1 and shown[0]["lead_source"].startswith("the slowest")

    file.write_text(
        file.read_text("utf-8").replace("[[deployments", "enabled = false\n[[deployments"), "utf-8"
    )
    wait_until(lambda: state(home) == "stopped")
    assert "not in the file" not in home("diff", "--sandbox").out

"""The JSON of what needs a daemon, a hub or a rented server is as its schema says.

`tests/cli/test_json.py` has the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import CommandLine
from tests.cli.test_json import schema
from tests.cli.test_logs import following

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(400)]


ENDLESS = {"logs --follow", "logs --engine --follow", "dashboard"}
"""What goes on until it is interrupted, and prints documents as it does."""


def first_document(home: CommandLine, *words: str) -> Any:
    with following(home, *words) as (lines, _):
        text = ""
        while True:
            text += lines.get(timeout=60)
            try:
                return json.loads(text)
            except json.JSONDecodeError:
                continue  # a document of several lines


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CommandLine]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
    cli = CommandLine(tmp_path, env | {"CLOREFLEET_HOME": str(tmp_path / "home")})
    cli.timeout_s = 390
    yield cli
    cli("sandbox", "stop")


def test_a_deployment_s_life_in_json(home: CommandLine):
    (home.home / "fleet.toml").write_text(
        '[deployments.chat]\nmodel = "smollm2-135m"\nbudget = "1/day"\nreplicas = 1\n', "utf-8"
    )
    for name, words in (
        ("sandbox serve", ("sandbox", "serve")),
        ("models add", ("models", "add", "zai-org/GLM-5.1-FP8")),
        ("daemon start", ("daemon", "start")),
        ("deploy", ("deploy", "smollm2-135m", "--budget", "16/day")),
        ("logs --engine --follow", ("logs", "smollm2-135m", "--engine", "--follow")),
        ("logs --follow", ("logs", "smollm2-135m", "--follow")),
        ("dashboard", ("dashboard",)),
        ("logs --engine", ("logs", "smollm2-135m", "--engine")),
        ("status", ("status",)),
        ("hosts list", ("hosts", "list")),
        ("scale", ("scale", "smollm2-135m", "2")),
        ("deploy --detach", ("deploy", "smollm2-135m", "--budget", "16/day", "--detach")),
        ("apply", ("apply",)),
        ("stop", ("stop", "smollm2-135m")),
        ("stop --all", ("stop", "--all")),
        ("daemon stop", ("daemon", "stop")),
    ):
        if name in ENDLESS:
            Draft202012Validator(schema(name)).validate(first_document(home, *words, "--sandbox", "--json"))
            continue
        run = home(*words, "--sandbox", "--json")
        assert run.code == 0, f"{name}: {run.out}{run.err}"
        Draft202012Validator(schema(name)).validate(run.json)

"""Every command's JSON is as its published schema says: one test over all of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from clorefleet.cli.documents import DOCUMENTS
from clorefleet.config.fleet_file import load_fleet_file
from clorefleet.domain.deployment import Desired
from clorefleet.domain.event import Event
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.fleet.change import changes
from clorefleet.report.status import fleet_status
from clorefleet.sandbox.thread import RunningSandbox
from clorefleet.store.codec import encode
from clorefleet.store.database import open_store
from tests.fleet.builders import NOW, deployment, lease

FOLDER = Path(__file__).parents[2] / "docs" / "json"
DRIVER = """
import contextlib, io, json, os, sys
from clorefleet.cli import context, main
told = []
for words in json.load(sys.stdin):
    for name, value in (("sandbox", False), ("as_json", False), ("debug", False), ("profile_name", "")):
        setattr(context.options, name, value)
    sys.argv = ["clorefleet", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main()
    told.append([code, out.getvalue(), err.getvalue()])
json.dump(told, sys.stdout)
"""
TERMINAL = """
class Terminal(io.StringIO):
    def isatty(self):
        return True
told = []
"""
WATCHED = DRIVER.replace("io.StringIO()", "Terminal()").replace("told = []", TERMINAL)
FLEET = """
[deployments.chat]
model = "smollm2-135m"
budget = "1/day"

[deployments.chat.schedule]
timezone = "Europe/Berlin"
windows = [{ days = "mon-fri", start = "08:00", end = "18:00", replicas = 1 }]
"""
LOG = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"

RUNS: dict[str, tuple[str, ...]] = {
    "models list": ("models",),
    "models show": ("models", "glm-5.1"),
    "models calibration": ("models", "calibration"),
    "recipes check": ("recipes", "check"),
    "offers": ("offers", "-n", "3"),
    "prices": ("prices",),
    "init": ("init", "--file", "new.toml"),
    "diff": ("diff", "--file", "fleet.toml"),
    "schedule show": ("schedule", "show", "chat"),
    "optimize": ("optimize",),
    "simulate": ("simulate", "smollm2-135m", "--weeks", "1", "--no-plot"),
    "status": ("status",),
    "logs": ("logs",),
    "diagnose": ("diagnose", "engine.log", "--engine", "vllm"),
    "scale": ("scale", "tiny", "1"),
    "stop": ("stop", "old", "--yes"),
    "stop --all": ("stop", "--all", "--yes", "--profile", "empty"),
    "cost": ("cost",),
    "report": ("report", "--period", "month"),
    "hosts list": ("hosts", "list"),
    "hosts history": ("hosts", "history", "7"),
    "hosts block": ("hosts", "block", "7"),
    "hosts unblock": ("hosts", "unblock", "7"),
    "wallet": ("wallet",),
    "budget": ("budget", "--per-day", "40/day", "--total", "500"),
    "sweep": ("sweep",),
    "db status": ("db", "status"),
    "db upgrade": ("db", "upgrade"),
    "db backup": ("db", "backup"),
    "daemon stop": ("daemon", "stop"),
    "daemon status": ("daemon", "status"),
    "daemon install": ("daemon", "install", "--print"),
    "daemon uninstall": ("daemon", "uninstall"),
    "sandbox status": ("sandbox", "status"),
    "sandbox stop": ("sandbox", "stop"),
    "sandbox reset": ("sandbox", "reset", "--yes"),
    "doctor": ("doctor",),
    "error": ("logs", "no-such-deployment"),
}
"""By document, the words that print one, with something in it where there can be."""
ELSEWHERE = {
    "deploy", "deploy --detach", "apply", "adopt", "models add", "logs --engine", "logs --engine --follow",
    "daemon start", "sandbox serve", "logs --follow", "dashboard",
}  # fmt: skip
"""They need a daemon, a hub or a node: `tests/end_to_end/test_json.py` and `test_adopt.py` there."""


def fill(home: Path, profile: str = "default") -> None:
    """A fleet with one replica that serves and one deployment that was stopped."""
    file = home / "state" / profile / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    held = lease(LeaseState.ORDERED, Phase.SERVING, order_id=OrderId(7), measured_tokens_per_s=3.5)
    segment = LedgerSegment(
        lease_id=held.lease_id,
        deployment_id=held.deployment_id,
        order_id=OrderId(7),
        price=held.plan.price.billed,
        is_spot=False,
        fee_percent=held.plan.price.fee_percent,
        creation_fee=held.plan.price.creation_fee,
        usd_per_unit=held.plan.price.usd_per_unit,
        rate_source="test",
        started_at=NOW,
    )
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment(str(held.deployment_id), budget="16/day"))
        tx.put_deployment(replace(deployment("old", budget="16/day"), desired=Desired.STOPPED))
        tx.put_lease(held)
        tx.put_order_segments(OrderId(7), (segment,))
        tx.add_event(Event(NOW, "order_adopted", "Order 7: the market lists it."))
        tx.add_host_fault(HostFault(ServerId(7), NOW, "unreachable", held.plan.price.creation_fee))


def schema(name: str) -> dict[str, Any]:
    from tools.reference import _file

    found: dict[str, Any] = json.loads((FOLDER / _file(name)).read_text("utf-8"))
    return found


Told = dict[str, tuple[int, str, str]]


def run_all(
    folder: Path,
    market: RunningSandbox,
    *words: str,
    program: str = DRIVER,
    profile: str = "default",
    runs: Mapping[str, tuple[str, ...]] = RUNS,
    columns: int = 80,
) -> Told:
    """What each command of `runs` says in a fresh home, all of them in one process."""
    fill(folder / "home", profile)
    (folder / "fleet.toml").write_text(FLEET, "utf-8")
    (folder / "engine.log").write_text(LOG, "utf-8")
    with open_store(f"sqlite:///{folder / 'home' / 'state' / profile / 'clorefleet.db'}").write() as tx:
        for change in changes(load_fleet_file(folder / "fleet.toml"), (), None, now=NOW).changes:
            if change.after is not None:
                tx.put_deployment(change.after)
    env = os.environ | {
        "CLOREFLEET_HOME": str(folder / "home"),
        # Where systemd's units are: the tester's own stay untouched.
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "CLORE_API_KEY": market.api_key,
        "CLORE_API_URL": market.market_url,
        "HF_ENDPOINT": market.market_url,
        "COLUMNS": str(columns),
        "TERM": "xterm",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([[*run, *words] for run in runs.values()]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(runs, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.fixture(scope="module")
def told(market, tmp_path_factory: pytest.TempPathFactory) -> Told:
    return run_all(tmp_path_factory.mktemp("json"), market, "--json")


@pytest.fixture(scope="module")
def shown(market, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The same for a person at a terminal of 80 columns."""
    return run_all(tmp_path_factory.mktemp("shown"), market, program=WATCHED)


@pytest.fixture(scope="module")
def narrow(market, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What has tables, at one of 40."""
    runs = {name: RUNS[name] for name in TABLES}
    return run_all(tmp_path_factory.mktemp("narrow"), market, program=WATCHED, runs=runs, columns=40)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_schema_is_one(name: str):
    Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_what_a_command_prints_is_as_its_schema_says(told, name: str):
    code, out, err = told[name]
    assert out, (code, err)
    document = json.loads(out)
    if name != "error":
        assert not (isinstance(document, dict) and "error" in document), document
    Draft202012Validator(schema(name)).validate(document)
    assert document or name == "optimize"


def test_every_document_is_held_against_its_schema_somewhere():
    assert set(RUNS) | ELSEWHERE == set(DOCUMENTS) and not set(RUNS) & ELSEWHERE


def test_a_deployment_that_serves_is_told_as_its_schema_says():
    held = lease(LeaseState.ORDERED, Phase.SERVING, order_id=OrderId(7))
    [status] = fleet_status([deployment(str(held.deployment_id))], [held], [], now=NOW).deployments
    document = encode(status) | {"gateway_url": "http://127.0.0.1:8410", "token_file": "token"}
    Draft202012Validator(schema("deploy")).validate(document)


def test_an_event_that_is_followed_is_told_as_its_schema_says():
    Draft202012Validator(schema("logs --follow")).validate(encode(Event(NOW, "tick", "A tick.")))


def test_a_command_that_lacks_a_word_says_so_in_json_too(cli):
    run = cli("hosts", "block", "--json")
    Draft202012Validator(schema("error")).validate(run.json)
    assert run.code == run.json["error"]["exit_code"] == 2


VERBATIM = {"daemon install"}
"""A systemd unit, which is copied."""


@pytest.mark.parametrize("name", sorted(set(RUNS) - VERBATIM))
def test_a_terminal_of_eighty_columns_breaks_no_line(shown, name: str):
    _, out, err = shown[name]
    assert out or err
    for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", out + err).replace("\r", "\n").splitlines():
        # A path or an address has no place where it could be broken.
        assert len(line) <= 80 or max(map(len, line.split())) > 40, line


TABLES = (
    "models list",
    "models show",
    "offers",
    "prices",
    "schedule show",
    "status",
    "cost",
    "hosts list",
    "wallet",
)


@pytest.mark.parametrize("name", TABLES)
def test_a_terminal_of_forty_columns_breaks_no_row(narrow, name: str):
    _, out, _ = narrow[name]
    assert out
    for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", out).replace("\r", "\n").splitlines():
        assert len(line) <= 40 or max(map(len, line.split())) > 20, line

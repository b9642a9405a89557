"""`deploy --dry-run` shows and stops, also where the deployment is there already."""

from __future__ import annotations

import pytest

from clorefleet.domain.deployment import Deployment
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import deployment

THERE = [
    pytest.param(deployment(), "would be $9/day; it is $16/day", False, id="another budget"),
    pytest.param(deployment(has_given_up=True, note="no luck"), "would be tried again", True, id="given up"),
]


@pytest.mark.parametrize("there, told, is_planned", THERE)
def test_a_dry_run_changes_nothing_of_a_deployment_that_is_there(
    account: CommandLine, there: Deployment, told: str, is_planned: bool
):
    store = _store(account)
    with store.write() as tx:
        tx.put_deployment(there)
    run = account("deploy", "smollm2-135m", "--name", "tiny", "--budget", "9/day", "--dry-run", "--yes")
    assert (run.code, told in run.err, "USD/DAY" in run.out) == (0, True, is_planned), run.err
    assert "Nothing was changed" in run.err
    with store.read() as tx:
        assert tx.deployment(there.deployment_id) == there
    assert account("daemon", "status", "--json").json["running"] is False


def test_a_dry_run_as_json_is_the_plan_also_of_a_deployment_that_is_there(account: CommandLine):
    store = _store(account)
    with store.write() as tx:
        tx.put_deployment(deployment())
    words = ("deploy", "smollm2-135m", "--name", "tiny", "--budget", "9/day", "--dry-run", "--json")
    assert account(*words).json["plans"]


def _store(account: CommandLine) -> Store:
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    return open_store(f"sqlite:///{file}")

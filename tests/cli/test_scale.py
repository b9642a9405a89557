"""`clorefleet scale` asks with the money in the question, and does nothing that was not seen."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from clorefleet.cli import scale
from clorefleet.domain.deployment import Deployment
from clorefleet.domain.errors import BadInput, ExitCode
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.wanted import Wanted
from clorefleet.fleet.wish import scaled
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import NOW, deployment, lease

TINY = DeploymentId("tiny")


@pytest.fixture
def store(cli: CommandLine) -> Store:
    """A deployment with one replica that serves at $2.10 a day."""
    file = cli.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    made = open_store(f"sqlite:///{file}")
    with made.write() as tx:
        tx.put_deployment(deployment())
        tx.put_lease(lease(LeaseState.ORDERED, Phase.SERVING))
    return made


def kept(store: Store) -> Deployment:
    with store.read() as tx:
        found = tx.deployment(TINY)
    assert found is not None
    return found


def test_the_question_says_what_it_costs_and_a_no_changes_nothing(cli: CommandLine, store: Store):
    run = cli.answered("n", "scale", "tiny", "3")
    said = " ".join((run.out + run.err).split())
    assert run.code == ExitCode.INTERRUPTED and "It stays as it was." in said
    assert "Keep 3 replicas of tiny? 2 more, at about" in said and "Never above its budget" in said
    assert kept(store) == deployment()


def test_without_a_terminal_it_wants_a_yes(cli: CommandLine, store: Store):
    run = cli("scale", "tiny", "2")
    assert run.code != 0 and "--yes" in run.err and kept(store) == deployment()


def test_what_the_budget_cannot_hold_is_refused_before_anything_is_written(cli: CommandLine, store: Store):
    run = cli("scale", "tiny", "8", "--yes")
    assert run.code == ExitCode.BUDGET and "8 replicas do not fit in the budget of $16/day" in run.err
    assert "about $16.80/day would hold them" in run.err and "Nothing was changed" in run.err
    assert kept(store) == deployment()


def test_the_number_that_is_kept_is_not_asked_about(cli: CommandLine, store: Store):
    run = cli("scale", "tiny", "1", "--json")
    assert run.code == 0 and run.json["replicas"] == run.json["replicas_before"] == 1
    assert Decimal(run.json["usd_per_day_more_estimated"]) == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("tiny", "0"), "cannot be kept"),
        (("tiny", "17"), "cannot be kept"),
        (("tiny", "1", "--max", "3"), "does not follow its load"),
        (("tinny", "2"), "tiny"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_reason(
    cli: CommandLine, store: Store, words: tuple[str, ...], why: str
):
    run = cli("scale", *words, "--yes")
    assert run.code == ExitCode.USAGE and why in run.err and "Nothing was changed" in run.err
    assert kept(store) == deployment()


def test_a_wish_that_changed_since_the_question_is_not_overwritten(store: Store):
    before = kept(store)
    with store.write() as tx:
        tx.put_deployment(replace(before, replicas=5))
    with pytest.raises(BadInput, match="has changed since"):
        scale._write(store, before, scaled(before, 2, now=NOW), NOW)
    assert kept(store).replicas == 5


def test_another_note_of_the_daemon_is_no_change_of_the_wish(store: Store):
    before = kept(store)
    with store.write() as tx:
        tx.put_deployment(replace(before, note="the offers are being read"))
    scale._write(store, before, scaled(before, 2, now=NOW), NOW)
    assert kept(store).replicas == 2


def test_a_yes_is_written_down_with_its_event(store: Store):
    before = kept(store)
    scale._write(store, before, scaled(before, 2, now=NOW), NOW)
    assert kept(store).replicas == 2
    with store.read() as tx:
        [event] = [each for _, each in tx.events(TINY) if each.name == "scale_wished"]
    assert "2 replicas were asked for" in event.text


def test_deploy_again_keeps_the_number_and_names_scale_for_another(account: CommandLine, store: Store):
    with store.write() as tx:
        tx.put_deployment(deployment(replicas=2))
    again = ("deploy", "smollm2-135m", "--budget", "16/day", "--name", "tiny", "--dry-run")
    run = account(*again)
    assert run.code == 0, run.err
    refused = account(*again[:-1], "--replicas", "3")
    assert refused.code == ExitCode.USAGE and "replicas 2 → 3" in refused.err
    assert "clorefleet scale tiny 3" in refused.err and kept(store).replicas == 2
    shown = account(*again, "--replicas", "3")
    assert shown.code == 0 and "replicas 2 → 3" in shown.err and "Without --dry-run" in shown.err
    assert "Worst case of these plans" in shown.out and kept(store).replicas == 2


def test_status_does_not_say_that_a_stop_was_asked_for_once_it_is_deployed_again(cli: CommandLine):
    file = cli.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment())
        tx.put_wanted(TINY, Wanted(0, "you asked to stop"), now=NOW)
    run = cli("status")
    assert run.code == 0 and "starting" in run.out
    assert "asked to stop" not in run.out + run.err and "resting" not in run.out

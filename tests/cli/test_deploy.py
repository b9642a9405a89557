"""What `deploy` and `stop` write is what was asked about: a wish of meanwhile is not undone by a yes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from clorefleet.cli.context import options
from clorefleet.cli.main import main
from clorefleet.daemon import process
from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import ExitCode
from clorefleet.domain.guard import FleetGuard
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.money import parse_budget
from clorefleet.fleet.wish import stopped
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import NOW, deployment, lease

TINY = deployment()
CHEAPER = replace(TINY, requirement=replace(TINY.requirement, budget=parse_budget("9/day")))
DEPLOY = ("deploy", "smollm2-135m", "--name", "tiny", "--budget", "20/day", "--detach")


@pytest.fixture
def store(account: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Of the account, whose commands run in this process; no daemon is started."""
    for name, value in account.env.items():
        monkeypatch.setenv(name, value)
    for name in ("has_run", "debug"):
        monkeypatch.setattr(options, name, False)  # and again after this test

    def no_daemon(*_: object) -> None:
        raise AssertionError("a daemon was started")

    monkeypatch.setattr(process, "ensure_running", no_daemon)
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    return open_store(f"sqlite:///{file}")


@pytest.fixture
def answered(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A command whose question gets a yes, after somebody else wrote `meanwhile`."""

    def run(*words: str, there: Deployment | None, meanwhile: Deployment) -> int:
        def confirm(*_: object, **__: object) -> None:
            with store.write() as tx:
                tx.put_deployment(meanwhile)

        if there is not None:
            with store.write() as tx:
                tx.put_deployment(there)
        monkeypatch.setattr(f"clorefleet.cli.{words[0]}.confirm", confirm)
        monkeypatch.setattr("sys.argv", ["clorefleet", *words])
        return main()

    return run


def kept(store: Store) -> Deployment | None:
    with store.read() as tx:
        return tx.deployment(TINY.deployment_id)


@pytest.mark.parametrize(
    ("there", "meanwhile"),
    [
        pytest.param(TINY, stopped(TINY), id="stopped while another budget was asked about"),
        pytest.param(stopped(TINY), stopped(CHEAPER), id="changed while a start was asked about"),
        pytest.param(None, CHEAPER, id="made while a new one was asked about"),
    ],
)
def test_deploy_undoes_nothing_that_was_wished_while_it_asked(store, answered, there, meanwhile, capsys):
    assert answered(*DEPLOY, there=there, meanwhile=meanwhile) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "has changed since this was asked" in told and "is now" not in told
    assert kept(store) == meanwhile


def test_stop_keeps_what_was_changed_while_it_asked(store, answered):
    """It is never refused: it spends less in any case."""
    with pytest.raises(AssertionError, match="daemon"):
        answered("stop", "tiny", "--debug", there=TINY, meanwhile=CHEAPER)
    assert kept(store) == replace(CHEAPER, desired=Desired.STOPPED)


# -- a budget below what runs


def typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["clorefleet", *words])
    code = main()
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


@pytest.fixture
def serving(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Server 7 serves at $2.10 a day; a daemon is only said to run."""
    with store.write() as tx:
        tx.put_deployment(TINY)
        tx.put_lease(lease(LeaseState.ORDERED, Phase.SERVING))
    info = SimpleNamespace(pid=1, gateway_url="http://127.0.0.1:1")
    monkeypatch.setattr(process, "ensure_running", lambda *_: (info, False))
    monkeypatch.setattr(process, "running_pid", lambda *_: 1)
    monkeypatch.setattr(process, "find", lambda *_: info)
    return store


LOWER = ("deploy", "smollm2-135m", "--name", "tiny", "--budget", "2/day")


def test_a_budget_below_what_runs_says_what_it_ends_before_it_wants_a_yes(serving, capsys, monkeypatch):
    code, said = typed(capsys, monkeypatch, *LOWER)
    assert code == ExitCode.NEEDS_CONFIRMATION and kept(serving) == TINY
    assert "Server 7 of tiny, at $2.10/day, is given back: $2.10/day passes the budget of $2/day." in said
    assert "nothing new is rented" not in said


def test_what_is_about_to_end_is_not_shown_as_what_answers(serving, capsys, monkeypatch):
    code, said = typed(capsys, monkeypatch, *LOWER, "--yes")
    assert code == 0 and "is given back" in said and "The budget of tiny is now $2/day" in said
    assert "answers at" not in said and "clorefleet status --watch" in said
    budget = (kept(serving) or TINY).requirement.budget
    assert str(budget) == "$2/day"


def test_a_dry_run_of_a_lower_budget_says_what_would_end(serving, capsys, monkeypatch):
    code, said = typed(capsys, monkeypatch, *LOWER, "--dry-run")
    assert code == 0 and "would be given back" in said and kept(serving) == TINY


def test_a_budget_that_carries_what_runs_ends_nothing_and_is_watched(serving, capsys, monkeypatch):
    code, said = typed(capsys, monkeypatch, *LOWER[:-1], "3/day", "--yes")
    assert code == 0 and "given back" not in said and "answers at" in said


def test_a_server_that_came_while_it_asked_is_not_ended_by_that_yes(serving, capsys):
    other = lease(
        LeaseState.ORDERED,
        Phase.SERVING,
        lease_id="l2",
        intent_id="l2-rent",
        server_id=8,
        slot=1,
        created_at=NOW,
    )

    def rents(*_: object, **__: object) -> None:
        with serving.write() as tx:
            tx.put_lease(other)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("clorefleet.cli.deploy.confirm", rents)
        patched.setattr("sys.argv", ["clorefleet", *LOWER[:-1], "3/day"])
        assert main() == ExitCode.USAGE
    assert "come to end more: Server 8" in capsys.readouterr().err and kept(serving) == TINY


# -- renting that is stopped


STOPPED = FleetGuard(stopped_at=NOW, stopped_because="13 servers were rented within 1 hour")


def test_while_renting_is_stopped_deploy_rents_nothing_and_says_what_goes_on(store, capsys, monkeypatch):
    with store.write() as tx:
        tx.put_guard(STOPPED)
    code, said = typed(capsys, monkeypatch, *DEPLOY, "--yes")
    assert code == ExitCode.BUDGET and kept(store) is None
    assert "Renting is stopped: 13 servers were rented within 1 hour." in said
    assert "Nothing was rented" in said and "clorefleet budget --resume" in said


@pytest.mark.parametrize("more", [(), ("--detach",)])
def test_deploy_does_not_wait_for_a_replica_that_a_stop_of_renting_keeps_away(
    serving, capsys, monkeypatch, more
):
    with serving.write() as tx:
        tx.put_deployment(replace(TINY, replicas=2))
        tx.put_guard(STOPPED)
    code, said = typed(capsys, monkeypatch, *LOWER[:-1], "16/day", *more)
    assert code == ExitCode.BUDGET and "Renting is stopped" in said and "answers at" not in said


def test_what_serves_is_shown_also_while_renting_is_stopped(serving, capsys, monkeypatch):
    with serving.write() as tx:
        tx.put_guard(STOPPED)
    code, said = typed(capsys, monkeypatch, *LOWER[:-1], "16/day")
    assert code == 0 and "answers at" in said


def test_more_rents_at_once_than_stop_renting_are_told_before(store, capsys, monkeypatch):
    words = (*DEPLOY, "--replicas", "13", "--dry-run")
    code, said = typed(capsys, monkeypatch, *words)
    assert code == 0 and "More than 12 rents within 1 hour stop renting" in said
    code, said = typed(capsys, monkeypatch, *DEPLOY, "--replicas", "12", "--dry-run")
    assert code == 0 and "stop renting" not in said


# -- what is told before


def test_the_worst_case_says_of_which_plan_it_is_and_that_another_may_be_taken(store, capsys, monkeypatch):
    code, said = typed(capsys, monkeypatch, *DEPLOY, "--dry-run")
    assert code == 0 and "Worst case of the first plan: $" in said
    assert "the next that fits is, which may cost more: never above $20/day." in said


@pytest.mark.parametrize("place", ["clorefleet.config.profile.connect", "clorefleet.wiring.make_planner"])
def test_an_interrupt_before_the_wish_is_written_says_that_nothing_was_rented(
    store, capsys, monkeypatch, place
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    code, said = typed(capsys, monkeypatch, *DEPLOY, "--yes")
    assert code == ExitCode.INTERRUPTED and "Nothing was rented." in said and kept(store) is None

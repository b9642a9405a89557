"""The record of servers, for a plan that is only shown.

Read by `plan`, which must start fast and may run before there is a store: on SQLite the file is opened
read-only, with nothing heavy imported, and it is never made or migrated.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from clorefleet.domain.host import HostFault, HostRecord, HostVerdict, Verdict, left_out, newest_cuda
from clorefleet.domain.identity import ServerId
from clorefleet.store.address import sqlite_file

_NOTHING = Decimal(0)
"""What a fault cost is of no matter here."""
_FAULTS = "SELECT server_id, at, reason FROM host_fault"
_VERDICTS = "SELECT server_id, verdict, at FROM host_verdict ORDER BY verdict_id"
_FACTS = (
    "SELECT server_id, measured_at, json_extract(facts, '$.cuda_version[0]'), "
    "json_extract(facts, '$.cuda_version[1]') FROM node_fact ORDER BY measured_at"
)


def read_host_record(store_url: str, *, since: datetime) -> HostRecord:
    """Servers that plans leave out, and CUDA versions measured since then. Empty where there is no store."""
    file = sqlite_file(store_url)
    if file is None:
        return _from_server(store_url, since)
    import sqlite3

    if not file.is_file():
        return HostRecord()
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            faults = connection.execute(_FAULTS).fetchall()
            verdicts = connection.execute(_VERDICTS).fetchall()
            facts = connection.execute(_FACTS).fetchall()
        finally:
            connection.close()
    except sqlite3.Error:
        return HostRecord()
    return HostRecord(
        left_out(
            (HostFault(ServerId(server), _instant(at), reason, _NOTHING) for server, at, reason in faults),
            (HostVerdict(ServerId(server), Verdict(word), _instant(at)) for server, word, at in verdicts),
            since=since,
        ),
        newest_cuda(
            (server, None if major is None else (major, minor or 0))
            for server, at, major, minor in facts
            if _instant(at) >= since
        ),
    )


def _from_server(store_url: str, since: datetime) -> HostRecord:
    from sqlalchemy.exc import SQLAlchemyError

    from clorefleet.domain.errors import StoreError
    from clorefleet.store.database import open_store

    try:
        store = open_store(store_url)
        try:
            with store.read() as tx:
                return tx.host_record(since=since)
        finally:
            store.dispose()
    except (StoreError, SQLAlchemyError, ImportError):
        return HostRecord()


def _instant(text: str) -> datetime:
    """As SQLite keeps it: UTC, without saying so."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)

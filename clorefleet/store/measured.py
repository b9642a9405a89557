"""The replicas whose speed was measured, for the planner's calibration.

Read by `plan`, which must start fast: on SQLite nothing heavy is imported until there is a measurement, and
the database is opened read-only, never made or migrated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clorefleet.store.address import sqlite_file

if TYPE_CHECKING:
    from clorefleet.domain.lease import Lease

LEASES_MAX = 500
"""The newest: older ones were measured on older engines."""
_QUERY = (
    "SELECT document, plan FROM lease WHERE json_extract(document, '$.measured_tokens_per_s') IS NOT NULL "
    "ORDER BY created_at DESC LIMIT ?"
)


def measured_leases(store_url: str) -> tuple[Lease, ...]:
    """Newest first; none when there is no store yet, or it cannot be read: a plan does not need it."""
    file = sqlite_file(store_url)
    if file is None:
        return _from_server(store_url)
    import sqlite3

    if not file.is_file():
        return ()
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            found = [(str(each), str(plan)) for each, plan in connection.execute(_QUERY, (LEASES_MAX,))]
        finally:
            connection.close()
    except sqlite3.Error:
        return ()
    return _leases(found)


def _leases(found: list[tuple[str, str]]) -> tuple[Lease, ...]:
    """From the columns `document` and `plan`, as JSON."""
    if not found:
        return ()
    import json

    from clorefleet.domain.lease import Lease
    from clorefleet.store import codec

    leases = []
    for document, plan in found:
        try:
            leases.append(codec.decode(Lease, {**json.loads(document), "plan": json.loads(plan)}))
        except (ValueError, TypeError):
            continue  # of another version; one measurement less
    return tuple(leases)


def _from_server(store_url: str) -> tuple[Lease, ...]:
    import json

    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlmodel import Session, col, select

    from clorefleet.store.tables import LeaseRow

    query = (
        select(LeaseRow.document, LeaseRow.plan).order_by(col(LeaseRow.created_at).desc()).limit(LEASES_MAX)
    )
    try:
        engine = create_engine(store_url)
        try:
            with Session(engine) as session:
                rows = [(dict(document), dict(plan)) for document, plan in session.exec(query)]
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError):
        return ()
    measured = [row for row in rows if row[0].get("measured_tokens_per_s") is not None]
    return _leases([(json.dumps(document), json.dumps(plan)) for document, plan in measured])

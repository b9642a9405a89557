"""when replicas entered their phases, for reports of what the money was spent on

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_AT = sa.DateTime(timezone=True)
_ENTRY = sa.table(
    "phase_entry",
    sa.column("lease_id", sa.String),
    sa.column("entered_at", _AT),
    sa.column("phase", sa.String),
)
_LEASE = sa.table(
    "lease", sa.column("lease_id", sa.String), sa.column("phase", sa.String), sa.column("phase_since", _AT)
)
_EVENT = sa.table(
    "event",
    sa.column("event_id", sa.Integer),
    sa.column("at", _AT),
    sa.column("name", sa.String),
    sa.column("lease_id", sa.String),
    sa.column("text", sa.String),
)
# What each event says about the phase; `phase_entered` names it in its text: "DEPLOYMENT: PHASE: reason".
_TOLD_BY = {
    "rent_intended": "renting",
    "order_adopted": "waiting for SSH",
    "orphan_adopted": "waiting for SSH",
    "phase_entered": None,
    "replica_serving": "serving",
    "giving_back": "draining",
    "server_failed": "draining",
    "cancelling": "draining",
    "order_reappeared": "draining",
    "order_ended": "ended",
    "order_lost": "ended",
    "order_disowned": "ended",
    "rent_refused": "ended",
    "rent_dropped": "ended",
}
_PHASES = {
    "renting", "waiting for SSH", "probing", "installing", "syncing weights", "launching", "verifying",
    "serving", "draining", "ended",
}  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "phase_entry",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("entered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("lease_id", "entered_at", "phase"),
    )
    _take_over()


def _take_over() -> None:
    """From the events that are still kept, and each lease's present phase. Nothing is made up between."""
    connection = op.get_bind()
    leases = {each.lease_id: each for each in connection.execute(sa.select(_LEASE)).all()}
    events = connection.execute(
        sa.select(_EVENT)
        .where(_EVENT.c.name.in_(list(_TOLD_BY)), _EVENT.c.lease_id != "")
        .order_by(_EVENT.c.event_id)
    )
    entries: dict[str, list[tuple[object, str]]] = {lease_id: [] for lease_id in leases}
    for event in events.all():
        phase = _TOLD_BY[event.name] or event.text.partition(": ")[2].partition(": ")[0]
        known = entries.get(event.lease_id)
        if known is not None and phase in _PHASES and (not known or known[-1][1] != phase):
            known.append((event.at, phase))
    for lease_id, known in entries.items():
        lease = leases[lease_id]
        if not known or known[-1][1] != lease.phase:
            known.append((lease.phase_since, lease.phase))
    rows = [
        {"lease_id": lease_id, "entered_at": at, "phase": phase}
        for lease_id, known in entries.items()
        for at, phase in dict.fromkeys(known)
    ]
    if rows:
        connection.execute(sa.insert(_ENTRY), rows)


def downgrade() -> None:
    op.drop_table("phase_entry")

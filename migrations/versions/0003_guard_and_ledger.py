"""coin rates, wallet readings, fleet guard; a lease's plan apart; ledger segments by order

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_LEASE = sa.table(
    "lease", sa.column("lease_id", sa.String), sa.column("document", sa.JSON), sa.column("plan", sa.JSON)
)


def upgrade() -> None:
    op.create_table(
        "coin_rate",
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("usd_per_unit", sa.String(64), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("currency"),
    )
    op.create_table(
        "wallet_reading",
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("balance", sa.String(64), nullable=False),
        sa.Column("ledger", sa.String(64), nullable=False),
        sa.Column("burn_per_day", sa.String(64), nullable=False),
        sa.Column("day_read_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("day_balance", sa.String(64), nullable=False),
        sa.Column("day_ledger", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("currency"),
    )
    op.create_table(
        "fleet_guard",
        sa.Column("row_id", sa.Integer(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("row_id"),
    )
    op.add_column("foreign_order", sa.Column("consented_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("leadership", sa.Column("beat", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("ledger_segment", sa.Column("order_started_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_ledger_order", "ledger_segment", ["order_id"])
    op.add_column("lease", sa.Column("plan", sa.JSON(), nullable=False, server_default="{}"))
    _move_plans()


def _move_plans() -> None:
    connection = op.get_bind()
    for lease_id, document in connection.execute(sa.select(_LEASE.c.lease_id, _LEASE.c.document)).all():
        rest = dict(document)
        plan = rest.pop("plan")
        connection.execute(
            sa.update(_LEASE).where(_LEASE.c.lease_id == lease_id).values(document=rest, plan=plan)
        )


def downgrade() -> None:
    connection = op.get_bind()
    for lease_id, document, plan in connection.execute(sa.select(_LEASE)).all():
        whole = {**document, "plan": plan}
        connection.execute(sa.update(_LEASE).where(_LEASE.c.lease_id == lease_id).values(document=whole))
    op.drop_column("lease", "plan")
    op.drop_index("ix_ledger_order", "ledger_segment")
    op.drop_column("ledger_segment", "order_started_at")
    op.drop_column("leadership", "beat")
    op.drop_column("foreign_order", "consented_at")
    op.drop_table("fleet_guard")
    op.drop_table("wallet_reading")
    op.drop_table("coin_rate")

"""sums of the ledger's settled segments

Revision ID: 0011
Revises: 0010
"""

from decimal import Context, Decimal

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SEGMENT = sa.table(
    "ledger_segment",
    sa.column("deployment_id", sa.String),
    sa.column("currency", sa.String),
    sa.column("market_spend", sa.String),
    sa.column("usd_per_unit", sa.String),
    sa.column("settled_at", sa.DateTime),
)
_EXACT = Context(prec=60)


def upgrade() -> None:
    total = op.create_table(
        "ledger_total",
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("settled", sa.String(64), nullable=False),
        sa.Column("settled_usd", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "currency"),
    )
    columns = (_SEGMENT.c[name] for name in ("deployment_id", "currency", "market_spend", "usd_per_unit"))
    settled = sa.select(*columns).where(
        _SEGMENT.c.settled_at.is_not(None), _SEGMENT.c.market_spend.is_not(None)
    )
    sums: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    for deployment_id, currency, spend, usd_per_unit in op.get_bind().execute(settled):
        key, (billed, usd) = (deployment_id, currency), (Decimal(spend), Decimal(usd_per_unit))
        before = sums.get(key, (Decimal(0), Decimal(0)))
        sums[key] = _EXACT.add(before[0], billed), _EXACT.add(before[1], _EXACT.multiply(billed, usd))
    rows = [
        {"deployment_id": key[0], "currency": key[1], "settled": str(billed), "settled_usd": str(usd)}
        for key, (billed, usd) in sums.items()
    ]
    if rows:
        op.bulk_insert(total, rows)


def downgrade() -> None:
    op.drop_table("ledger_total")

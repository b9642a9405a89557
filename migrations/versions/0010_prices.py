"""the price history

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_PRICES = ("least", "p10", "p25", "median", "p75", "p90")


def upgrade() -> None:
    op.create_table(
        "price_snapshot",
        sa.Column("gpu", sa.String(), nullable=False),
        sa.Column("is_spot", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lasts_s", sa.Integer(), nullable=False),
        sa.Column("readings", sa.Integer(), nullable=False),
        sa.Column("offers", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.String(64), nullable=False) for name in _PRICES),
        sa.PrimaryKeyConstraint("gpu", "is_spot", "at"),
    )
    op.create_index("ix_price_at", "price_snapshot", ["at"])


def downgrade() -> None:
    op.drop_table("price_snapshot")

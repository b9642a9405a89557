"""schedule and policies of deployments, what is wanted, and how long starts took

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.add_column(sa.Column("policy", sa.JSON(), nullable=True))
    op.create_table(
        "wanted",
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("deployment_id"),
    )
    op.create_table(
        "start_up",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("server_id", sa.Integer(), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("took_s", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("lease_id"),
    )
    with op.batch_alter_table("start_up", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_start_up_deployment_id"), ["deployment_id"], unique=False)


def downgrade() -> None:
    op.drop_table("start_up")
    op.drop_table("wanted")
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.drop_column("policy")

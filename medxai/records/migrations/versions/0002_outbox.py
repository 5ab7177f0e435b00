"""Deliveries become an outbox; received studies and work items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NEW = {
    "path": sa.Text(),
    "sha256": sa.String(64),
    "attempts": sa.Integer(),
    "next_try": sa.Float(),
    "reason": sa.Text(),
    "owner": sa.String(128),
}


def upgrade() -> None:
    """Add the columns and both tables; a transfer that was under way has an unknown end."""
    with op.batch_alter_table("delivery") as table:
        for name, kind in _NEW.items():
            default = "0" if isinstance(kind, sa.Integer | sa.Float) else ""
            table.add_column(sa.Column(name, kind, nullable=False, server_default=default))
        table.create_index("ix_delivery_due", ["destination", "state", "next_try"])
    op.execute("UPDATE delivery SET state = 'uncertain' WHERE state = 'sending'")
    op.create_table(
        "received",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study_key", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("touched", sa.Float(), nullable=False),
        sa.Column("jobs", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_key", name="uq_received"),
    )
    op.create_index("ix_received_state", "received", ["state"])
    op.create_table(
        "work_item",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("study_key", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("sop_instance_uid", "source", name="uq_work_item"),
    )


def downgrade() -> None:
    """Back to deliveries alone; what still waits is forgotten and announced again by the next run."""
    op.drop_table("work_item")
    op.drop_table("received")
    op.execute("DELETE FROM delivery WHERE state IN ('waiting', 'refused', 'withdrawn')")
    op.execute("UPDATE delivery SET state = 'sending' WHERE state = 'uncertain'")
    with op.batch_alter_table("delivery") as table:
        table.drop_index("ix_delivery_due")
        for name in _NEW:
            table.drop_column(name)

"""Notifications that are mailed together, in a summary.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_notifications_recipient_email_created_at": (["recipient_email", "created_at"], "summary_id IS NULL"),
    "ix_notifications_summary_id": (["summary_id"], "summary_id IS NOT NULL"),
}


def upgrade():
    # The blocks below commit this change, so a second run must accept it.
    op.add_column("notifications", sa.Column("summary_id", sa.BigInteger()), if_not_exists=True)
    # Concurrently: a plain CREATE INDEX would block handlers that store while it reads the table.
    with op.get_context().autocommit_block():
        for name, (columns, condition) in INDEXES.items():
            # An interrupted run may have left it.
            op.drop_index(name, "notifications", postgresql_concurrently=True, if_exists=True)
            op.create_index(
                name, "notifications", columns, postgresql_where=sa.text(condition), postgresql_concurrently=True
            )


def downgrade():
    op.execute("DELETE FROM notifications WHERE event_name = 'order.status.updated' AND order_id IS NULL")
    for name in INDEXES:
        op.drop_index(name, "notifications")
    op.drop_column("notifications", "summary_id")

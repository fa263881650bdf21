"""An index finds the next mail to send.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade():
    index_pending_by("id")


def downgrade():
    index_pending_by("next_try_at")


def index_pending_by(column):
    # Concurrently: a plain CREATE INDEX would block senders while it reads the table.
    with op.get_context().autocommit_block():
        # An interrupted run may have left it.
        op.drop_index("ix_notifications_pending_new", "notifications", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_notifications_pending_new",
            "notifications",
            [column],
            postgresql_where=sa.text("status = 'pending'"),
            postgresql_concurrently=True,
        )
        op.drop_index("ix_notifications_pending", "notifications", postgresql_concurrently=True, if_exists=True)
        op.execute("ALTER INDEX ix_notifications_pending_new RENAME TO ix_notifications_pending")

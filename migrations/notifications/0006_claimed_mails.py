"""Mails are claimed, sent outside of a transaction, and may be uncertain.

The release before looks at `status = 'pending'` and `next_try_at` alone, and holds its mail's row lock while it sends.
So its senders and ours pass each other by:

- Ours pass over rows that are locked (SKIP LOCKED), and read them again after the lock: `sent` by then.
- A claim moves next_try_at to the lease's end, so a mail that we hold is not due for the release before.
- From before the dot on next_try_at is 15 minutes ahead. A sender of ours that died there makes its mail uncertain
  within these, which the release before never sends; were none of ours left, it would send it again after them.
- What the release before stores has the defaults below, and is claimed like any other.

Whatever was done when an attempt was cut off is passed over, as the indexes are made beside senders that are at work,
and so each in a transaction of its own.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_notifications_uncertain": ("id", "status = 'uncertain'"),
    "ix_notifications_due_order_mails": (
        "next_try_at",
        "status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NOT NULL",
    ),
    "ix_notifications_due_account_mails": (
        "next_try_at",
        "status IN ('pending', 'uncertain') AND dot_at IS NULL AND order_id IS NULL",
    ),
    "ix_notifications_dot": ("leased_until", "dot_at IS NOT NULL"),
}


def upgrade():
    for column in (
        sa.Column("waited", sa.Interval(), server_default=sa.text("'0'"), nullable=False),
        sa.Column("by_hand", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("lease", sa.Uuid()),
        sa.Column("leased_until", sa.DateTime(timezone=True)),
        sa.Column("dot_at", sa.DateTime(timezone=True)),
        sa.Column("doubts", sa.Integer(), server_default="0", nullable=False),
    ):
        op.add_column("notifications", column, if_not_exists=True)
    check_status("'pending', 'sent', 'failed', 'uncertain'")
    with op.get_context().autocommit_block():
        # Reads the table beside those who write to it, which the check's own statement would hold up.
        op.execute("ALTER TABLE notifications VALIDATE CONSTRAINT ck_notifications_status")
        for name, (column, condition) in INDEXES.items():
            op.drop_index(name, "notifications", postgresql_concurrently=True, if_exists=True)
            op.create_index(
                name, "notifications", [column], postgresql_where=sa.text(condition), postgresql_concurrently=True
            )


def downgrade():
    for name in INDEXES:
        op.drop_index(name, "notifications")
    op.execute("UPDATE notifications SET status = 'failed' WHERE status = 'uncertain'")
    check_status("'pending', 'sent', 'failed'")
    op.execute("ALTER TABLE notifications VALIDATE CONSTRAINT ck_notifications_status")
    for column in ("doubts", "dot_at", "leased_until", "lease", "by_hand", "waited"):
        op.drop_column("notifications", column)


def check_status(statuses):
    op.execute("ALTER TABLE notifications DROP CONSTRAINT ck_notifications_status")
    op.execute(
        f"ALTER TABLE notifications ADD CONSTRAINT ck_notifications_status CHECK (status IN ({statuses})) NOT VALID"
    )

"""Mails are claimed, sent outside of a transaction, and may be uncertain.

The release before reads only `status = 'pending'` and `next_try_at`, and locks a mail's row while it sends the mail.
The senders of both releases can run together:

- New senders skip locked rows (SKIP LOCKED). After the lock they read the row again, and find it `sent`.
- A claim sets next_try_at to the end of its lease, so a claimed mail is not due for old senders.
- Before the final dot, senders of 0.1.0 set next_try_at 15 minutes ahead. If one dies after that, another new sender
  marks the mail `uncertain` within this time, and old senders never send uncertain mails. Only if no new sender is left
  does an old one send it again afterwards. Later releases leave next_try_at as it is, as they do not run beside old
  senders.
- Mails that the release before stores have the defaults below, and are claimed like others.

Each index is made in a transaction of its own, because senders keep running. A second run skips all that an
interrupted run has done.

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
        # Reads the table without blocking writers, which a checked ADD CONSTRAINT would do.
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

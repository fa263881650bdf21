"""Mails that are not about an order.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade():
    op.alter_column("notifications", "order_id", nullable=True)
    op.alter_column("notifications", "sequence", nullable=True)


def downgrade():
    op.execute("DELETE FROM notifications WHERE order_id IS NULL")
    op.alter_column("notifications", "sequence", nullable=False)
    op.alter_column("notifications", "order_id", nullable=False)

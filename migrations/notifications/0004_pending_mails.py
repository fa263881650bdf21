"""The next mail to send is found in a backlog without a look at all that were sent before.

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
    op.drop_index("ix_notifications_pending", "notifications")
    op.create_index(
        "ix_notifications_pending", "notifications", [column], postgresql_where=sa.text("status = 'pending'")
    )

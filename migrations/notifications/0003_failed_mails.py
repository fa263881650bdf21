"""An index finds failed mails.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade():
    op.create_index("ix_notifications_failed", "notifications", ["id"], postgresql_where=sa.text("status = 'failed'"))


def downgrade():
    op.drop_index("ix_notifications_failed", "notifications")

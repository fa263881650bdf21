"""Events in the outbox have the trace that they belong to.

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
    op.add_column("outbox", sa.Column("traceparent", sa.Text()))


def downgrade():
    op.drop_column("outbox", "traceparent")

"""Events in the outbox have the trace that they belong to.

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
    op.add_column("outbox", sa.Column("traceparent", sa.Text()))


def downgrade():
    op.drop_column("outbox", "traceparent")

"""Notifications have the request and the trace that caused them.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("notifications", sa.Column("request_id", sa.Text()))
    op.add_column("notifications", sa.Column("traceparent", sa.Text()))


def downgrade():
    op.drop_column("notifications", "traceparent")
    op.drop_column("notifications", "request_id")

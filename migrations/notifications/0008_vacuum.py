"""The table is vacuumed after 2 % of its rows have changed.

A claim passes over the index entries of all mails that were sent since the last vacuum. PostgreSQL's 20 % would make
claims slower as the table grows.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade():
    # Its lock blocks neither readers nor writers.
    op.execute("ALTER TABLE notifications SET (autovacuum_vacuum_scale_factor = 0.02)")


def downgrade():
    op.execute("ALTER TABLE notifications RESET (autovacuum_vacuum_scale_factor)")

"""Reservations are vacuumed after 2 % of them have changed.

The search for due reservations passes over the index entries of all that were settled since the last vacuum.
PostgreSQL's 20 % would make it slower as the table grows.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade():
    # Its lock blocks neither readers nor writers.
    op.execute("ALTER TABLE reservations SET (autovacuum_vacuum_scale_factor = 0.02)")


def downgrade():
    op.execute("ALTER TABLE reservations RESET (autovacuum_vacuum_scale_factor)")

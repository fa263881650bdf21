"""Attempts know their units, and what a user has open is found without a look at all that they ever ordered.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_attempts_open": ("attempts", "state = 'open'"),
    "ix_orders_open": ("orders", "status IN ('pending', 'confirmed')"),
}


def upgrade():
    # The block below commits it: one that is run again finds it there.
    op.add_column("attempts", sa.Column("units", sa.Integer()), if_not_exists=True)
    # Beside orders that are being placed: a plain CREATE INDEX would hold them up for as long as the table is read.
    with op.get_context().autocommit_block():
        for name, (table, condition) in INDEXES.items():
            # What an attempt that was cut off left.
            op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
            op.create_index(name, table, ["user_id"], postgresql_where=sa.text(condition), postgresql_concurrently=True)


def downgrade():
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.drop_column("attempts", "units")

"""Attempts have their number of units, and indexes find the open orders and attempts of a user.

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
    # The block below commits this change, so a second run must accept it.
    op.add_column("attempts", sa.Column("units", sa.Integer()), if_not_exists=True)
    # Concurrently: a plain CREATE INDEX would block new orders while it reads the table.
    with op.get_context().autocommit_block():
        for name, (table, condition) in INDEXES.items():
            # An interrupted run may have left it.
            op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
            op.create_index(name, table, ["user_id"], postgresql_where=sa.text(condition), postgresql_concurrently=True)


def downgrade():
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.drop_column("attempts", "units")

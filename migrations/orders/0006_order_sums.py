"""Orders are counted once, in sums by day and status, and an index finds the oldest pending orders.

Existing orders are counted by the service, in batches, after it has started.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_orders_pending": ("created_at", "status = 'pending'"),
    "ix_orders_uncounted": ("id", "CAST(counted_status IS DISTINCT FROM status AS integer) = 1"),
}


def upgrade():
    # The block below commits these changes, so a second run must accept them.
    op.add_column("orders", sa.Column("counted_status", sa.Text()), if_not_exists=True)
    op.create_table(
        "order_sums",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("revenue", sa.Numeric(precision=20, scale=2), nullable=False),
        sa.PrimaryKeyConstraint("day", "status"),
        if_not_exists=True,
    )
    # Until the next vacuum, ix_orders_uncounted has an entry of each order that was counted. With PostgreSQL's 20 % of
    # the table they would be more the larger it is.
    op.execute("ALTER TABLE orders SET (autovacuum_vacuum_scale_factor = 0.02)")
    # Concurrently: a plain CREATE INDEX would block new orders while it reads the table.
    with op.get_context().autocommit_block():
        for name, (column, condition) in INDEXES.items():
            # An interrupted run may have left it.
            op.drop_index(name, "orders", postgresql_concurrently=True, if_exists=True)
            op.create_index(name, "orders", [column], postgresql_where=sa.text(condition), postgresql_concurrently=True)


def downgrade():
    for name in INDEXES:
        op.drop_index(name, "orders")
    op.execute("ALTER TABLE orders RESET (autovacuum_vacuum_scale_factor)")
    op.drop_table("order_sums")
    op.drop_column("orders", "counted_status")

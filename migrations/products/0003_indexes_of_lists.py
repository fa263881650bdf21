"""An index of active products for each order of the list: a page far back reads nothing but the index before it.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BY_NAME = {"name": 'COLLATE "und-x-icu"'}
COLUMNS = ("created_at", "price", "name")


def upgrade():
    # Concurrently: a plain CREATE INDEX would block reservations while it reads the table.
    with op.get_context().autocommit_block():
        for column in COLUMNS:
            make_index(f"ix_products_active_{column}", column, postgresql_where=sa.text("is_active"))
        # The release before finds active products by the new index, too.
        op.drop_index("ix_products_name", "products", postgresql_concurrently=True, if_exists=True)


def make_index(name, column, **options):
    # An interrupted run may have left it.
    op.drop_index(name, "products", postgresql_concurrently=True, if_exists=True)
    ops = BY_NAME if column == "name" else {}
    op.create_index(name, "products", [column, "id"], postgresql_ops=ops, postgresql_concurrently=True, **options)


def downgrade():
    with op.get_context().autocommit_block():
        make_index("ix_products_name", "name")
        for column in COLUMNS:
            op.drop_index(f"ix_products_active_{column}", "products", postgresql_concurrently=True, if_exists=True)

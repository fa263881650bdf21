"""Orders have a flag: the customer's address was proven.

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
    # The default is for orders that the release before writes.
    op.add_column("orders", sa.Column("email_verified", sa.Boolean(), server_default="false", nullable=False))


def downgrade():
    op.drop_column("orders", "email_verified")

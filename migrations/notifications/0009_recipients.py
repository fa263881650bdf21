"""An index finds the notifications of an address.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NAME = "ix_notifications_recipient_email"


def upgrade():
    # Concurrently: a plain CREATE INDEX would block handlers that store while it reads the table.
    with op.get_context().autocommit_block():
        # An interrupted run may have left it.
        op.drop_index(NAME, "notifications", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            NAME, "notifications", ["recipient_email"], postgresql_include=["id"], postgresql_concurrently=True
        )


def downgrade():
    op.drop_index(NAME, "notifications")

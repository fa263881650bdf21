"""Names of accounts are compared as people see them: by a key that the service fills.

If names clash, the oldest account gets the key. The others have none until ops/normalize_names.py renames them. Names
that the release before writes during the upgrade have none either.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import IntegrityError

from contracts.names import username_key

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BATCH = 500
NEXT = sa.text("SELECT id, username FROM users WHERE id > :last ORDER BY id LIMIT :batch")
FILL = sa.text("""
UPDATE users u SET username_key = named.key
FROM unnest(CAST(:ids AS bigint[]), CAST(:names AS text[]), CAST(:keys AS text[])) AS named (id, username, key)
WHERE u.id = named.id AND u.username = named.username AND u.username_key IS NULL
AND NOT EXISTS (SELECT FROM users other WHERE other.username_key = named.key)
""")


def upgrade():
    op.add_column("users", sa.Column("username_key", sa.Text()), if_not_exists=True)
    # Services keep running: no statement blocks them for longer than one batch takes.
    with op.get_context().autocommit_block():
        # An interrupted run may have left it.
        op.drop_index("uq_users_username_key", "users", postgresql_concurrently=True, if_exists=True)
        op.create_index("uq_users_username_key", "users", ["username_key"], unique=True, postgresql_concurrently=True)
        fill(op.get_bind())


def fill(connection):
    last = 0
    while rows := connection.execute(NEXT, {"last": last, "batch": BATCH}).all():
        oldest = {}
        for row in rows:
            oldest.setdefault(username_key(row.username), row)
        ids, names = [row.id for row in oldest.values()], [row.username for row in oldest.values()]
        try:
            connection.execute(FILL, {"ids": ids, "names": names, "keys": list(oldest)})
        except IntegrityError:
            # A process of this release has just taken one of the keys. The next round sees it.
            continue
        last = rows[-1].id


def downgrade():
    op.drop_index("uq_users_username_key", "users")
    op.drop_column("users", "username_key")

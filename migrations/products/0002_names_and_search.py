"""SKUs are compared by a key that the service fills; names, categories and descriptions are in NFC.

Of SKUs that clash the oldest product's gets the key; the others stay as they are, without one, until
scripts/normalize_names.py renames them. So does a SKU that the release before writes meanwhile.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import IntegrityError

from contracts.names import normal_sku

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BATCH = 500
NEXT = sa.text("SELECT id, sku FROM products WHERE id > :last ORDER BY id LIMIT :batch")
FILL = sa.text("""
UPDATE products p SET sku_key = named.key
FROM unnest(CAST(:ids AS bigint[]), CAST(:skus AS text[]), CAST(:keys AS text[])) AS named (id, sku, key)
WHERE p.id = named.id AND p.sku = named.sku AND p.sku_key IS NULL
AND NOT EXISTS (SELECT FROM products other WHERE other.sku_key = named.key)
""")
NORMALIZE = sa.text("""
UPDATE products SET name = normalize(name), category = normalize(category), description = normalize(description)
WHERE id > :last AND id <= :end
AND (name IS NOT NORMALIZED OR category IS NOT NORMALIZED OR description IS NOT NORMALIZED)
""")


def upgrade():
    op.add_column("products", sa.Column("sku_key", sa.Text()), if_not_exists=True)
    # Beside running services: no statement holds them up for longer than a batch takes.
    with op.get_context().autocommit_block():
        # What an attempt that was cut off left.
        op.drop_index("uq_products_sku_key", "products", postgresql_concurrently=True, if_exists=True)
        op.create_index("uq_products_sku_key", "products", ["sku_key"], unique=True, postgresql_concurrently=True)
        fill(op.get_bind())


def fill(connection):
    last = 0
    while rows := connection.execute(NEXT, {"last": last, "batch": BATCH}).all():
        oldest = {}
        for row in rows:
            oldest.setdefault(normal_sku(row.sku), row)
        ids, skus = [row.id for row in oldest.values()], [row.sku for row in oldest.values()]
        try:
            connection.execute(FILL, {"ids": ids, "skus": skus, "keys": list(oldest)})
        except IntegrityError:
            # A process of this release took one of the keys in this moment: now it is seen.
            continue
        connection.execute(NORMALIZE, {"last": last, "end": rows[-1].id})
        last = rows[-1].id


def downgrade():
    op.drop_index("uq_products_sku_key", "products")
    op.drop_column("products", "sku_key")

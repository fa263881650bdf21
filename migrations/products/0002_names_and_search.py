"""Columns that the service fills, to compare SKUs and to find products. Texts become NFC.

If SKUs clash, the oldest product gets the key. The others have none until ops/normalize_names.py renames them. SKUs
that the release before writes during the upgrade have none either.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError

from contracts.names import normal_sku
from services.products_search import search_columns

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BATCH = 500
NEXT = sa.text("SELECT * FROM products WHERE id > :last ORDER BY id LIMIT :batch")
FILL = sa.text("""
UPDATE products p SET sku_key = named.key
FROM unnest(CAST(:ids AS bigint[]), CAST(:skus AS text[]), CAST(:keys AS text[])) AS named (id, sku, key)
WHERE p.id = named.id AND p.sku = named.sku AND p.sku_key IS NULL
AND NOT EXISTS (SELECT FROM products other WHERE other.sku_key = named.key)
""")
INDEX = sa.text("""
UPDATE products p SET search_text = made.words, search_pieces = string_to_array(made.pieces, ' '),
    search_version = p.version
FROM unnest(CAST(:ids AS bigint[]), CAST(:versions AS integer[]), CAST(:words AS text[]), CAST(:pieces AS text[]))
    AS made (id, version, words, pieces)
WHERE p.id = made.id AND p.version = made.version
""")
NORMALIZE = sa.text("""
UPDATE products SET name = normalize(name), category = normalize(category), description = normalize(description)
WHERE id > :last AND id <= :end
AND (name IS NOT NORMALIZED OR category IS NOT NORMALIZED OR description IS NOT NORMALIZED)
""")


def upgrade():
    op.add_column("products", sa.Column("sku_key", sa.Text()), if_not_exists=True)
    op.add_column("products", sa.Column("search_text", sa.Text()), if_not_exists=True)
    op.add_column("products", sa.Column("search_pieces", postgresql.ARRAY(sa.Text())), if_not_exists=True)
    op.add_column("products", sa.Column("search_version", sa.Integer()), if_not_exists=True)
    # Services keep running: no statement blocks them for longer than one batch takes.
    with op.get_context().autocommit_block():
        make_index("uq_products_sku_key", ["sku_key"], unique=True)
        fill(op.get_bind())
        make_index("ix_products_name", ["name", "id"], postgresql_ops={"name": 'COLLATE "und-x-icu"'})
        make_index("ix_products_search_pieces", ["search_pieces"], postgresql_using="gin")
        stale = sa.text("search_version IS DISTINCT FROM version")
        make_index("ix_products_unindexed", ["id"], postgresql_where=stale)


def make_index(name, columns, **options):
    # An interrupted run may have left it.
    op.drop_index(name, "products", postgresql_concurrently=True, if_exists=True)
    op.create_index(name, "products", columns, postgresql_concurrently=True, **options)


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
            # A process of this release has just taken one of the keys. The next round sees it.
            continue
        connection.execute(NORMALIZE, {"last": last, "end": rows[-1].id})
        made = [search_columns(row.name, row.sku, row.category, row.description) for row in rows]
        connection.execute(
            INDEX,
            {
                "ids": [row.id for row in rows],
                "versions": [row.version for row in rows],
                "words": [each["search_text"] for each in made],
                "pieces": [" ".join(each["search_pieces"]) for each in made],
            },
        )
        last = rows[-1].id


def downgrade():
    for name in ("ix_products_unindexed", "ix_products_search_pieces", "ix_products_name", "uq_products_sku_key"):
        op.drop_index(name, "products")
    for name in ("search_version", "search_pieces", "search_text", "sku_key"):
        op.drop_column("products", name)

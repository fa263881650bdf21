"""The statements of stock. Each does a whole step.

A reservation locks its products first, by id, and inserts its own row last. A release locks the reservation's row
first, then the products, by id. A reservation that exists locks no product. So they can deadlock in one case only: two
calls of one reservation overlap, and its release comes between them. Then PostgreSQL ends one of the two: an event is
handled again, a call gets ServiceUnavailable, and the settling finds the reservation in its next round.
"""

from sqlalchemy import text

from nameko_reliable.statements import Statement

# All lines or none, with the reservation, its lines and the ledger.
# A row for each line, by product. is_reserved: the same in all; true if this call reserved everything. Then
# stock_quantity and revision are the product's new ones. Else nothing was written: the reservation exists, or a line
# can't be reserved (is_active is null for an unknown product), or both, since a call with the same id may have taken
# the stock meanwhile.
RESERVE = Statement("""
WITH wanted AS MATERIALIZED (
    SELECT product_id, quantity, unit_price
    FROM unnest(%(product_ids)s::bigint[], %(quantities)s::integer[], %(unit_prices)s::numeric[])
         AS w (product_id, quantity, unit_price)
), locked AS MATERIALIZED (
    -- By id, so two carts cannot deadlock.
    SELECT id, name, price, stock_quantity, is_active, revision FROM products
    WHERE id = ANY (%(product_ids)s::bigint[])
      AND NOT EXISTS (SELECT FROM reservations WHERE id = %(reservation_id)s::uuid)
    ORDER BY id FOR UPDATE
), fitting AS MATERIALIZED (
    SELECT l.id, l.name, l.price, l.stock_quantity, l.revision, w.quantity
    FROM locked l JOIN wanted w ON w.product_id = l.id
    WHERE l.is_active AND l.stock_quantity >= w.quantity AND (w.unit_price IS NULL OR w.unit_price = l.price)
), tested AS MATERIALIZED (
    SELECT count(*) = cardinality(%(product_ids)s::bigint[]) AS is_complete,
           clock_timestamp() - statement_timestamp()
               > make_interval(secs => %(seconds_left)s::float8) IS TRUE AS is_late
    FROM fitting
), claim AS (
    INSERT INTO reservations (id, state)
    SELECT %(reservation_id)s::uuid, 'open' FROM tested WHERE is_complete AND NOT is_late
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), sold AS (
    -- From the locked row. p is the row as of the start of the statement, and the table's CHECK is first tested on it:
    -- after a restock p.stock_quantity - f.quantity may be negative.
    UPDATE products p SET stock_quantity = f.stock_quantity - f.quantity, revision = f.revision + 1
    FROM fitting f CROSS JOIN claim WHERE p.id = f.id
    RETURNING p.id, p.stock_quantity, p.revision
), kept AS (
    INSERT INTO reservation_lines (reservation_id, product_id, quantity, product_name, product_price)
    SELECT claim.id, f.id, f.quantity, f.name, f.price FROM claim CROSS JOIN fitting f
), moved AS (
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT f.id, -f.quantity, 'reservation', claim.id FROM claim CROSS JOIN fitting f
)
SELECT t.is_late, EXISTS (SELECT FROM claim) AS is_reserved, w.product_id AS id, w.quantity,
       l.name, l.price, l.is_active, l.stock_quantity AS available, s.stock_quantity, s.revision
FROM tested t CROSS JOIN wanted w LEFT JOIN locked l ON l.id = w.product_id LEFT JOIN sold s ON s.id = w.product_id
ORDER BY w.product_id
""")

# A row for each product that got its units back. None: the reservation is in another state, or unknown.
RELEASE = Statement("""
WITH released AS (
    UPDATE reservations SET state = 'released'
    WHERE id = %(reservation_id)s::uuid AND state = ANY (%(states)s::text[]) RETURNING id
), line AS MATERIALIZED (
    SELECT product_id, quantity FROM reservation_lines WHERE reservation_id IN (SELECT id FROM released)
), locked AS MATERIALIZED (
    -- By id, so a release cannot deadlock with a reservation.
    SELECT id FROM products WHERE id IN (SELECT product_id FROM line) ORDER BY id FOR UPDATE
), returned AS (
    UPDATE products p SET stock_quantity = p.stock_quantity + line.quantity, revision = p.revision + 1
    FROM locked JOIN line ON line.product_id = locked.id WHERE p.id = locked.id
    RETURNING p.id, p.price, p.stock_quantity, p.is_active, p.revision
), moved AS (
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT product_id, quantity, 'release', %(reservation_id)s::uuid FROM line
)
SELECT id, price, stock_quantity, is_active, revision FROM returned
""")

# Before RELEASE, in the same transaction: a reservation that comes later finds itself released.
TOMBSTONE = Statement("""
INSERT INTO reservations (id, state) VALUES (%(reservation_id)s::uuid, 'released') ON CONFLICT (id) DO NOTHING
""")

# One row: whether this transaction may settle. At most one does.
TAKE_SETTLING = Statement("SELECT pg_try_advisory_xact_lock(hashtext('settle reservations')) AS is_taken")

# The next ids, in order. The due ones are found first: otherwise PostgreSQL might read all reservations in this order.
DUE_RESERVATIONS = Statement("""
WITH due AS MATERIALIZED (
    SELECT id FROM reservations
    WHERE state = 'open' AND created_at < now() - make_interval(secs => %(settle_after_seconds)s::float8)
)
SELECT id FROM due WHERE id > %(after)s::uuid ORDER BY id LIMIT %(most)s::bigint
""")

# Locked by id, as in every statement that locks several reservations. A reservation that was released meanwhile stays
# released.
COMMIT_ORDERED = Statement("""
WITH locked AS MATERIALIZED (
    SELECT id FROM reservations WHERE id = ANY (%(reservation_ids)s::uuid[]) AND state = 'open' ORDER BY id FOR UPDATE
)
UPDATE reservations r SET state = 'committed' FROM locked WHERE r.id = locked.id
""")

# It reads the whole ledger, so it runs seldom.
COUNT_MISMATCHES = text("""
SELECT count(*) FROM products p
LEFT JOIN (SELECT product_id, sum(delta) AS stock FROM stock_movements GROUP BY product_id) m ON m.product_id = p.id
WHERE p.stock_quantity <> coalesce(m.stock, 0)
""")

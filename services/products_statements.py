"""The statements of stock. Each does a whole step."""

from sqlalchemy import text

# Only the call that inserts the reservation goes on. A line without enough stock changes nothing: the caller sees it in
# the answer and rolls everything back.
RESERVE = text("""
WITH claim AS (
    INSERT INTO reservations (id, state) VALUES (:reservation_id, 'open')
    ON CONFLICT (id) DO NOTHING RETURNING id
), wanted AS (
    SELECT * FROM unnest(CAST(:product_ids AS bigint[]), CAST(:quantities AS integer[])) AS w (product_id, quantity)
), locked AS MATERIALIZED (
    -- By id, so two carts cannot deadlock.
    SELECT id, name, price, stock_quantity, is_active, revision FROM products
    WHERE id = ANY (CAST(:product_ids AS bigint[])) AND EXISTS (SELECT FROM claim)
    ORDER BY id FOR UPDATE
), sold AS (
    -- Computed from the locked row: p is the row as of the begin of the statement.
    UPDATE products p SET stock_quantity = l.stock_quantity - w.quantity, revision = l.revision + 1
    FROM locked l JOIN wanted w ON w.product_id = l.id
    WHERE p.id = l.id AND l.is_active AND l.stock_quantity >= w.quantity
    RETURNING p.id, p.stock_quantity, p.revision
), kept AS (
    INSERT INTO reservation_lines (reservation_id, product_id, quantity, product_name, product_price)
    SELECT :reservation_id, l.id, w.quantity, l.name, l.price FROM locked l JOIN wanted w ON w.product_id = l.id
), moved AS (
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT s.id, -w.quantity, 'reservation', :reservation_id FROM sold s JOIN wanted w ON w.product_id = s.id
)
SELECT w.product_id AS id, w.quantity, l.name, l.price, l.is_active, l.stock_quantity AS available,
       s.stock_quantity, s.revision, EXISTS (SELECT FROM claim) AS claimed
FROM wanted w LEFT JOIN locked l ON l.id = w.product_id LEFT JOIN sold s ON s.id = w.product_id
ORDER BY w.product_id
""")

RELEASE = text("""
WITH released AS (
    UPDATE reservations SET state = 'released' WHERE id = :reservation_id AND state = ANY (:states) RETURNING id
), line AS (
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
    SELECT product_id, quantity, 'release', :reservation_id FROM line
)
SELECT * FROM returned
""")

TOMBSTONE = text("INSERT INTO reservations (id, state) VALUES (:id, 'released') ON CONFLICT DO NOTHING")

COMMIT = text("UPDATE reservations SET state = 'committed' WHERE id = :id AND state = 'open'")

# It reads the whole ledger, so it runs seldom.
COUNT_MISMATCHES = text("""
SELECT count(*) FROM products p
LEFT JOIN (SELECT product_id, sum(delta) AS stock FROM stock_movements GROUP BY product_id) m ON m.product_id = p.id
WHERE p.stock_quantity <> coalesce(m.stock, 0)
""")

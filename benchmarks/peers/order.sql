\set user random(1, 1000)
\set first random(1, 100)
\set second 1 + :first % 100
WITH attempt AS (
    INSERT INTO attempts (reservation_id, user_id, key, state, leased_until)
    VALUES (gen_random_uuid(), :user, gen_random_uuid()::text, 'ordered', now() + interval '10 seconds')
    RETURNING reservation_id, user_id
), locked AS MATERIALIZED (
    SELECT id, name, price, stock_quantity FROM products WHERE id IN (:first, :second) ORDER BY id FOR UPDATE
), sold AS (
    UPDATE products p SET stock_quantity = l.stock_quantity - 1, revision = revision + 1 FROM locked l
    WHERE p.id = l.id AND l.stock_quantity >= 1 RETURNING p.id
), moved AS (
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT sold.id, -1, 'reservation', reservation_id FROM sold, attempt
), placed AS (
    INSERT INTO orders (reservation_id, user_id, user_email, status, total_amount)
    SELECT reservation_id, user_id, 'customer@forage.example', 'pending', (SELECT sum(price) FROM locked) FROM attempt
    RETURNING id, total_amount
), item AS (
    INSERT INTO order_items (order_id, product_id, product_name, product_price, quantity, subtotal)
    SELECT placed.id, l.id, l.name, l.price, 1, l.price FROM placed, locked l
), step AS (
    INSERT INTO status_steps (order_id, status) SELECT id, 'pending' FROM placed
)
INSERT INTO outbox (event_name, key, payload)
SELECT 'order.created', placed.id, jsonb_build_object('order_id', placed.id, 'total_amount', total_amount, 'items',
    (SELECT jsonb_agg(jsonb_build_object('product_id', id, 'product_name', name, 'product_price', price)) FROM locked))
FROM placed;

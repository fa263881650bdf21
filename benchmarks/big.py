"""The work that may grow with the data, with 10,000 products and 100,000 orders more. It is the last scenario."""

from itertools import repeat

from psycopg2.extras import execute_values

from benchmarks.load import request
from benchmarks.musts import order_row
from benchmarks.orders import place_orders
from benchmarks.reads import all_send, authorization, list_rows
from benchmarks.shop import CUSTOMERS, scenario, seconds_for
from contracts.names import normal_sku
from services.products_search import search_columns

PRODUCTS = 10_000
ORDERS = 100_000
BUYERS = 10_000
# Far above the ids of real accounts.
FIRST_BUYER = 10**9
PAGE = 20
PRICE = "9.90"
STOCK = 10**9
# Of one statement.
MOST_ORDERS = 100_000

# Both databases know an order's reservation, and the lines of an order, by its number n.
NUMBERS = "generate_series(%(first)s, %(last)s) AS n"
RESERVATION = "md5('big order ' || n)::uuid"
LINES = f"""
    SELECT n, line, {RESERVATION} AS reservation_id, %(first_product)s + (n * 7 + line) %% {PRODUCTS} AS product_id
    FROM {NUMBERS}, generate_series(0, 1) AS line
"""
PRODUCT_STATEMENTS = (
    f"INSERT INTO reservations (id, state) SELECT {RESERVATION}, 'committed' FROM {NUMBERS}",
    f"""
    INSERT INTO reservation_lines (reservation_id, product_id, quantity, product_name, product_price)
    SELECT reservation_id, product_id, 1, 'Product ' || product_id, {PRICE} FROM ({LINES}) AS lines
    """,
    f"""
    INSERT INTO stock_movements (product_id, delta, reason, reservation_id)
    SELECT product_id, -1, 'reservation', reservation_id FROM ({LINES}) AS lines
    """,
    f"""
    UPDATE products SET stock_quantity = stock_quantity - sold
    FROM (SELECT product_id, count(*) AS sold FROM ({LINES}) AS lines GROUP BY product_id) AS counted
    WHERE id = product_id
    """,
    f"INSERT INTO inbox (event_id) SELECT gen_random_uuid() FROM {NUMBERS}",
)
# The books compare orders.orders with products.reservations.
ORDER_STATEMENTS = (
    f"""
    INSERT INTO attempts (reservation_id, user_id, key, fingerprint, units, state)
    SELECT {RESERVATION}, {FIRST_BUYER} + n %% {BUYERS}, gen_random_uuid(), md5(n::text), 2, 'ordered'
    FROM {NUMBERS}
    """,
    f"""
    INSERT INTO orders (reservation_id, user_id, user_email, email_verified, status, total_amount)
    SELECT {RESERVATION}, {FIRST_BUYER} + n %% {BUYERS}, 'buyer-' || n %% {BUYERS} || '@forage.example', true,
        'delivered', 2 * {PRICE}
    FROM {NUMBERS} ORDER BY n
    """,
    f"""
    INSERT INTO order_items (order_id, product_id, product_name, product_price, quantity, subtotal)
    SELECT o.id, product_id, 'Product ' || product_id, {PRICE}, 1, {PRICE}
    FROM ({LINES}) AS lines JOIN orders o USING (reservation_id) ORDER BY n, line
    """,
    f"""
    INSERT INTO status_steps (order_id, status, by)
    SELECT id, step.status, CASE step.status WHEN 'pending' THEN 'customer' ELSE 'admin' END
    FROM {NUMBERS} JOIN orders ON reservation_id = {RESERVATION},
        unnest(ARRAY['pending', 'confirmed', 'shipped', 'delivered']) WITH ORDINALITY AS step (status, number)
    ORDER BY id, number
    """,
)
NOTIFICATIONS = f"""
    INSERT INTO notifications (event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject,
        message, status, attempts, tries)
    SELECT event_id, 'order.created',
        jsonb_build_object('event_id', event_id, 'version', 1, 'timestamp', '2026-01-01T00:00:00.000000Z',
            'order_id', order_id, 'sequence', 1, 'user_id', user_id, 'user_email', email, 'email_verified', true,
            'status', 'pending', 'total_amount', '19.80', 'reservation_id', event_id, 'items', jsonb_build_array()),
        order_id, 1, user_id, email, 'Thank you! We have your order ' || order_id,
        'We have your order and have set everything in it aside for you.', 'sent', 1, 1
    FROM (
        SELECT gen_random_uuid() AS event_id, %(first_order)s + n - %(first)s AS order_id,
            {FIRST_BUYER} + n %% {BUYERS} AS user_id, 'buyer-' || n %% {BUYERS} || '@forage.example' AS email
        FROM {NUMBERS}
    ) AS made_up ORDER BY order_id
"""


@scenario("big")
def big(shop, report):
    print(f"\nFilling the databases with {PRODUCTS:,} products and {ORDERS:,} orders", flush=True)
    report.note(f"That took {seconds_for(lambda: fill(shop) or True):.0f} s.")
    report.title(f"With {PRODUCTS:,} products and {ORDERS:,} orders more")
    admin = authorization(shop.admin())
    for number in (1, PRODUCTS // PAGE):
        page = request("GET", f"/products?limit={PAGE}&page={number}", **admin)
        report.requests(f"page {number} of {PRODUCTS:,} products, not cached", shop.port, all_send(page))
    product = request("GET", f"/products/{shop.products()[0]['id']}", **admin)
    report.requests("a product, not cached", shop.port, all_send(product))
    list_rows(shop, report)
    back_office_rows(shop, report)
    products, tokens = shop.products(), shop.customers(CUSTOMERS)
    for connections in (1, 16):
        place_orders(shop, report, order_row(2, connections), connections, products, tokens, 2)
    shop.check_books()
    report.note("The books are right.")


def back_office_rows(shop, report):
    """Returns {work: its row}."""
    admin = authorization(shop.admin())
    every_order = request("GET", "/orders?all=true&limit=10", **admin)
    summary = request("GET", "/admin/summary", **admin)
    works = {
        "GET /orders?all=true (10 orders)": all_send(every_order),
        "GET /admin/summary, 1 connection": lambda: [repeat(summary)],
    }
    return {work: report.requests(work, shop.port, clients) for work, clients in works.items()}


def fill(shop):
    """Add the products and orders, with books that agree, as if they had been delivered."""
    add_orders(shop, add_products(shop), ORDERS)


def add_orders(shop, first_product, count):
    """Add orders of the products that `add_products` made."""
    shop.wait_until_settled()
    shop.deliver_orders()
    before = shop.count("orders", f"orders WHERE user_id >= {FIRST_BUYER}")
    for first in range(before + 1, before + count + 1, MOST_ORDERS):
        last = min(first + MOST_ORDERS - 1, before + count)
        numbers = {"first_product": first_product, "first": first, "last": last}
        for statement in PRODUCT_STATEMENTS:
            _execute(shop, "products", statement, numbers)
        for statement in ORDER_STATEMENTS:
            _execute(shop, "orders", statement, numbers)
        reservations = f"SELECT {RESERVATION} FROM {NUMBERS}"
        [[first_order, last_order]] = _execute(
            shop, "orders", f"SELECT min(id), max(id) FROM orders WHERE reservation_id IN ({reservations})", numbers
        )
        assert last_order - first_order == last - first, "orders were placed meanwhile"
        _execute(shop, "notifications", NOTIFICATIONS, {**numbers, "first_order": first_order})
    shop.wait_until_counted()
    for service in ("products", "orders", "notifications"):
        # Else autovacuum would do it while the rows are measured.
        shop.sql(service, "VACUUM ANALYZE")
    # Each statement has written all products again.
    shop.sql("products", "VACUUM FULL ANALYZE products")


def _execute(shop, service, statement, parameters):
    with shop.cursor(service) as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def add_products(shop):
    """Add PRODUCTS products. Returns the id of the first one."""
    [[first]] = shop.sql("products", "SELECT max(id) + 1 FROM products")
    rows = []
    for product_id in range(first, first + PRODUCTS):
        name, sku, category = f"Product {product_id}", f"BIG-{product_id}", f"Category {product_id % 20}"
        description = f"One of {PRODUCTS} products: dried, in a paper bag, number {product_id}."
        columns = search_columns(name, sku, category, description)
        search = (columns["search_text"], columns["search_pieces"])
        rows.append((product_id, name, description, PRICE, STOCK, sku, normal_sku(sku), category, *search, 1))
    with shop.cursor("products") as cursor:
        execute_values(
            cursor,
            "INSERT INTO products (id, name, description, price, stock_quantity, sku, sku_key, category, search_text,"
            " search_pieces, search_version) OVERRIDING SYSTEM VALUE VALUES %s",
            rows,
        )
        cursor.execute(
            "INSERT INTO stock_movements (product_id, delta, reason)"
            f" SELECT id, {STOCK}, 'edit' FROM products WHERE id >= {first}"
        )
        cursor.execute(f"SELECT setval(pg_get_serial_sequence('products', 'id'), {first + PRODUCTS})")
    return first
